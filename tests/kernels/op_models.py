"""One-op ONNX models for the tests: a node of the domain `vitrify` with its body beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.specs import TensorSpec
from vitrify.kernels import registry
from vitrify.kernels.op import DOMAIN

__all__ = ["OPSET", "mark", "one_op_model", "session"]

OPSET = 23


def one_op_model(
    name: str,
    *,
    attributes: Mapping[str, int | float] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    dtypes: Mapping[str, DType] | None = None,
    marked: bool = False,
    with_body: bool = True,
) -> onnx.ModelProto:
    """A graph of that node alone.

    attributes: what the node says; one that must be given and is not is 1. constants: inputs that are initializers, with
    their own dtype. dtypes: inputs that have another dtype than the contract's first.
    `marked` adds 1000 to the body's first output: whoever returns it has run the body.
    """
    contract = registry.contract(name)
    said = {a.name: a.kind(1) for a in contract.attributes if a.default is None} | dict(attributes or {})
    inputs, outputs = [t.name for t in contract.inputs], [t.name for t in contract.outputs]
    constants = constants or {}
    graph = helper.make_graph(
        [helper.make_node(name, inputs, outputs, domain=DOMAIN, **said)],
        "one_op",
        [_value(t, (dtypes or {}).get(t.name, t.dtype)) for t in contract.inputs if t.name not in constants],
        [_value(t, t.dtype) for t in contract.outputs],
        [_initializer(key, array) for key, array in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, contract.version)]
    functions = []
    if with_body:
        body = registry.function(name, OPSET)
        functions.append(mark(body) if marked else body)
    # IR version 10: the newest that every runtime under test reads.
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def session(model: bytes | Path, *, library: bool) -> onnxruntime.InferenceSession:
    """A session on the process's one thread pool: once that is made, ONNX Runtime refuses sessions with a pool of their own."""
    OrtCpuBackend(kernels="portable")
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4  # The errors provoked here would be logged as well as raised.
    if library:
        options.register_custom_ops_library(str(native_library.path()))
    given = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _value(tensor: TensorSpec, dtype: DType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, dtype.onnx, list(tensor.shape))


def _initializer(name: str, array: np.ndarray) -> onnx.TensorProto:
    dtype = DType.from_numpy(array.dtype)
    return helper.make_tensor(name, dtype.onnx, array.shape, array.tobytes(), raw=True)


def mark(body: onnx.FunctionProto) -> onnx.FunctionProto:
    """The body, which now adds 1000 to its first output."""
    first = body.output[0]
    for node in body.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == first:
                    names[i] = "unmarked"
    body.node.append(helper.make_node("Constant", [], ["mark"], value_float=1000.0))
    body.node.append(helper.make_node("Add", ["unmarked", "mark"], [first]))
    return body
