"""Parameters tied to the source's bytes: external data into the safetensors files, lifted to float32 where they are read.

Rules: (1) a parameter keeps its name, shape and stored dtype; (2) an op of ours that takes an input in that dtype reads it as
stored; for all other readers a stored bf16 or fp16 is cast to float32, once; (3) location, offset and length point into the
file beside the graph: weights exist once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from vitrify.engine.dtypes import DType
from vitrify.export.source import TensorLocation
from vitrify.kernels import registry
from vitrify.kernels.op import DOMAIN

__all__ = ["tie_parameters"]


def tie_parameters(model: ir.Model, locations: Mapping[str, TensorLocation], folder: Path) -> None:
    """Turn the parameters among `model`'s inputs into initializers of external data. folder: where graph and files lie."""
    graph = model.graph
    for value in [v for v in graph.inputs if v.name in locations]:
        assert value.name is not None
        place = locations[value.name]
        graph.inputs.remove(value)
        stored = ir.ExternalTensor(
            location=place.file.name,
            offset=place.offset,
            length=place.nbytes,
            dtype=ir.DataType(place.dtype.onnx),
            shape=ir.Shape(list(place.shape)),
            name=value.name,
            base_dir=folder,
        )
        readers = tuple(value.uses())
        value.const_value = stored
        value.dtype = ir.DataType(place.dtype.onnx)
        graph.register_initializer(value)
        lifting = [use for use in readers if not _reads_stored(use.node, use.idx, place.dtype)]
        if place.dtype is not DType.FLOAT32 and lifting:
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", DType.FLOAT32.onnx)], num_outputs=1)
            lifted = cast.outputs[0]
            lifted.name, lifted.dtype, lifted.shape = f"{value.name}.float32", ir.DataType.FLOAT, value.shape
            graph.insert_before(graph[0], cast)
            for use in lifting:
                use.node.replace_input_with(use.idx, lifted)


def _reads_stored(reader: ir.Node, index: int, dtype: DType) -> bool:
    """Whether the reader is an op of ours whose contract allows `dtype` for this input."""
    if reader.domain != DOMAIN:
        return False
    op = registry.contract(reader.op_type)
    return dtype in op.dtypes.get(op.inputs[index].name, ())
