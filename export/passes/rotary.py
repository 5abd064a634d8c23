"""The rotary embedding as one op: ONNX's RotaryEmbedding (opset 23, interleaved) for the ten that PyTorch's arithmetic traces to.

Su et al. 2021 (RoFormer): each pair (a, b) of channels turns by an angle, to (a·cos − b·sin, a·sin + b·cos).
"""

from __future__ import annotations

import onnx_ir as ir

from vitrify.export.passes.patterns import made_by, number
from vitrify.export.passes.shapes import constant

__all__ = ["rotary_as_op"]


def rotary_as_op(model: ir.Model) -> None:
    """Rules: (1) x·C + turned(x)·S becomes RotaryEmbedding, for x [batch, tokens, heads, dim], turned(x) its pairs (−b, a),
    and tables C, S [1, tokens, 1, dim] that hold each pair's angle twice: the family's module makes them so, parity shows it;
    (2) the op's tables are every second column, [tokens, dim / 2], repeated for the batch, made once for each pair of tables;
    they hang on the request alone, so that `hoist` takes them out of the loop."""
    tables: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]] = {}
    for node in list(model.graph):
        found = _match(node)
        if found is None:
            continue
        x, cosine, sine = found
        assert x.shape is not None
        heads, dim = x.shape[2], x.shape[3]
        if not isinstance(heads, int) or not isinstance(dim, int):
            continue
        steps: list[ir.Node] = []
        key = (cosine, sine)
        if key not in tables:
            tables[key] = (_halved(model, x, cosine, steps), _halved(model, x, sine, steps))
        name = str(node.outputs[0].name)
        rows = _add(steps, "Reshape", [x, constant(model.graph, f"rows_{heads * dim}", [0, 0, heads * dim])], f"{name}.rows")
        attributes = [ir.AttrInt64("interleaved", 1), ir.AttrInt64("num_heads", heads)]
        turned = _add(steps, "RotaryEmbedding", [rows, *tables[key]], f"{name}.turned", attributes)
        back = _add(
            steps, "Reshape", [turned, constant(model.graph, f"heads_{heads}_{dim}", [0, 0, heads, dim])], f"{name}.heads"
        )
        result = node.outputs[0]
        for value in (rows, turned, back):
            value.type = result.type
        rows.shape = turned.shape = ir.Shape([*list(x.shape)[:2], heads * dim])
        back.shape = result.shape
        model.graph.insert_after(node, steps)
        ir.convenience.replace_all_uses_with(result, back)


def _match(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """(x, C, S) where `node` is the Add of rule 1."""
    if node.op_type != "Add":
        return None
    straight, crossed = (made_by(v, "Mul") for v in node.inputs)
    if straight is None or crossed is None:
        return None
    x, cosine = straight.inputs
    back = made_by(crossed.inputs[0], "Reshape")
    pairs = made_by(back.inputs[0], "Concat") if back is not None else None
    if x is None or cosine is None or pairs is None or len(pairs.inputs) != 2 or not _is_table(cosine):
        return None
    first, second = (made_by(v, "Unsqueeze") for v in pairs.inputs)
    negated = made_by(first.inputs[0], "Neg") if first is not None else None
    if second is None or negated is None:
        return None
    b, a = _channel(negated.inputs[0]), _channel(second.inputs[0])
    if b is None or a is None or b[0] is not a[0] or (a[1], b[1]) != (0, 1):
        return None
    split = made_by(a[0], "Reshape")
    sine = crossed.inputs[1]
    if split is None or split.inputs[0] is not x or sine is None or not _is_table(sine) or len(x.shape or ()) != 4:
        return None
    return x, cosine, sine


def _channel(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(pairs, 0 or 1) where `value` is Squeeze(Slice(pairs)) of one of the two channels of [..., 2]."""
    squeeze = made_by(value, "Squeeze")
    part = made_by(squeeze.inputs[0], "Slice") if squeeze is not None else None
    if part is None or part.inputs[0] is None or part.inputs[0].shape is None:
        return None
    shape = part.inputs[0].shape
    start, axis = number(part.inputs[1]), number(part.inputs[3] if len(part.inputs) > 3 else None)
    if (
        axis not in (-1, len(shape) - 1)
        or shape[-1] != 2
        or start is None
        or (squeeze is not None and squeeze.outputs[0] is None)
    ):
        return None
    made = part.outputs[0].shape
    return (part.inputs[0], start) if made is not None and made[-1] == 1 else None


def _halved(model: ir.Model, x: ir.Value, table: ir.Value, steps: list[ir.Node]) -> ir.Value:
    """[1, tokens, 1, dim] → [tokens, dim / 2] → [batch, tokens, dim / 2]."""
    assert table.shape is not None
    assert x.shape is not None
    name, graph = str(table.name), model.graph
    flat = _add(steps, "Squeeze", [table, constant(graph, "axes_0_2", [0, 2])], f"{name}.flat")
    ends = [constant(graph, f"int_{n}", [n]) for n in (0, 2**63 - 1, 1, 2)]
    half = _add(steps, "Slice", [flat, ends[0], ends[1], ends[2], ends[3]], f"{name}.half")
    batch = _add(steps, "Shape", [x], f"{name}.batch", [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)])
    batch.type, batch.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    target = _add(steps, "Concat", [batch, constant(graph, "ones_2", [1, 1])], f"{name}.target", [ir.AttrInt64("axis", 0)])
    target.type, target.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([3])
    spread = _add(steps, "Expand", [half, target], f"{name}.spread")
    tokens, dim = table.shape[1], table.shape[3]
    assert isinstance(dim, int)
    for value, shape in ((flat, [tokens, dim]), (half, [tokens, dim // 2]), (spread, [x.shape[0], tokens, dim // 2])):
        value.type, value.shape = table.type, ir.Shape(shape)
    return spread


def _is_table(value: ir.Value) -> bool:
    shape = list(value.shape or ())
    return len(shape) == 4 and shape[0] == 1 and shape[2] == 1 and isinstance(shape[3], int)


def _add(steps: list[ir.Node], op: str, inputs: list[ir.Value], name: str, attributes: list[ir.Attr] | None = None) -> ir.Value:
    node = ir.Node("", op, inputs, attributes or [], num_outputs=1)
    node.outputs[0].name = name
    steps.append(node)
    return node.outputs[0]
