"""One op as an ONNX graph with its body beside it, and random inputs for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrify.bench.op_cases import OpCase
from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels import registry
from vitrify.kernels.op import DOMAIN

__all__ = ["op_inputs", "op_model"]

_OPSET = 23
_SEED = 20240801


def op_inputs(case: OpCase) -> dict[str, NDArray[Any]]:
    """Input → values of standard deviation 1 from a fixed seed, constants in their stored dtype.

    Weights, of two dimensions and constant, are scaled so that a product keeps its inputs' size; in int8 they fill its range.
    """
    rng = np.random.default_rng(_SEED)
    found = {}
    for tensor in registry.contract(case.op).inputs:
        values = rng.standard_normal(_shape(case, tensor), dtype=np.float32)
        if tensor.name in case.constants:
            if values.ndim == 2:
                values /= np.sqrt(np.float32(values.shape[1]))
            dtype = case.constants[tensor.name]
            if dtype is DType.INT8:
                values = np.rint(values / np.abs(values).max() * 127)
            values = values.astype(dtype.numpy)
        found[tensor.name] = values
    return found


def op_model(case: OpCase, inputs: dict[str, NDArray[Any]]) -> bytes:
    """A graph of that one node, sizes fixed, its body in the model's functions."""
    import onnx
    from onnx import helper

    contract = registry.contract(case.op)
    attributes: dict[str, Any] = dict(case.attributes)
    graph = helper.make_graph(
        [
            helper.make_node(
                case.op, [t.name for t in contract.inputs], [t.name for t in contract.outputs], domain=DOMAIN, **attributes
            )
        ],
        "one_op",
        [
            helper.make_tensor_value_info(t.name, t.dtype.onnx, _shape(case, t))
            for t in contract.inputs
            if t.name not in case.constants
        ],
        [helper.make_tensor_value_info(t.name, t.dtype.onnx, _shape(case, t)) for t in contract.outputs],
        [
            helper.make_tensor(name, dtype.onnx, inputs[name].shape, inputs[name].tobytes(), raw=True)
            for name, dtype in case.constants.items()
        ],
    )
    imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, contract.version)]
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=imports, functions=[registry.function(case.op, _OPSET)], ir_version=10
    )
    return bytes(model.SerializeToString())


def _shape(case: OpCase, tensor: TensorSpec) -> tuple[int, ...]:
    def size(dim: int | str) -> int:
        return dim if isinstance(dim, int) else sum(case.dims[term] for term in dim.split(" + "))

    return tuple(size(dim) for dim in tensor.shape)
