"""Reshape targets by position: `[0, 0, heads, dim]` instead of sizes gathered from whichever tensor the tracer chose.

The tracer reads `batch` from one input and uses it everywhere; a segment that lacks that input could not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["constant", "positional_reshapes"]


def constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    """The int64 vector `values` as an initializer of `graph`, made once per name."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(values, dtype=np.int64), name=name))
    value.dtype = ir.DataType.INT64
    value.shape = ir.Shape([len(values)])
    graph.register_initializer(value)
    return value


def positional_reshapes(model: ir.Model) -> None:
    """Rules: (1) a dimension equal to the input's at the same position is 0; (2) at most one other may be unknown, as −1;
    (3) a Reshape that needs more stays as traced."""
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].is_initializer():
            continue
        source, target = node.inputs[0], node.outputs[0]
        assert source is not None
        if source.shape is None or target.shape is None:
            continue
        dims = _by_position([str(d) if not isinstance(d, int) else d for d in source.shape], list(target.shape))
        if dims is not None:
            name = "shape_" + "_".join(str(d).replace("-", "m") for d in dims)
            node.replace_input_with(1, constant(model.graph, name, dims))
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _by_position(source: list[int | str], target: list[int | ir.SymbolicDim]) -> list[int] | None:
    result: list[int] = []
    unknown = 0
    for position, dim in enumerate(target):
        if isinstance(dim, int):
            if dim == 0:
                return None
            result.append(dim)
        elif position < len(source) and dim.value is not None and source[position] == str(dim):
            result.append(0)
        else:
            unknown += 1
            result.append(-1)
    return result if unknown <= 1 else None
