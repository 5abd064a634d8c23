"""Linear layers as Gemm with the weight as stored: `[out, in]`, read transposed.

The tracer writes MatMul(x, Transpose(W)); a runtime folds each Transpose into a private copy of the weight.
"""

from __future__ import annotations

import onnx_ir as ir

from vitrify.export.passes.shapes import constant

__all__ = ["linears_as_gemm"]


def linears_as_gemm(model: ir.Model, parameters: frozenset[str]) -> None:
    """Rules: (1) MatMul(x, Transpose(W)) becomes Gemm(x, W, transB=1) for a parameter W; (2) the bias added next, if
    it is a parameter of W's out features and the product has no other reader, becomes Gemm's C; (3) x of more than two
    dimensions is flattened before and restored after; where one of those has no name, the MatMul stays."""
    sizes: dict[str, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        x, weight = node.inputs[0], _stored(node.inputs[1], parameters)
        if weight is None or weight.shape is None or x is None or not _can_flatten(x):
            continue
        assert x.shape is not None
        out_features, in_features = weight.shape.numpy()
        last, bias = _with_bias(node, parameters, out_features)
        result = last.outputs[0]
        steps: list[ir.Node] = []
        flat = x
        if len(x.shape) > 2:
            flat = _node(
                steps, "Reshape", [x, constant(model.graph, f"rows_of_{in_features}", [-1, in_features])], f"{result.name}.rows"
            )
        gemm = _node(
            steps,
            "Gemm",
            [flat, weight] + ([bias] if bias is not None else []),
            f"{result.name}.product",
            [ir.AttrInt64("transB", 1)],
        )
        if len(x.shape) > 2:
            target = _target(model, x, out_features, sizes, steps)
            made = _node(steps, "Reshape", [gemm, target], f"{result.name}.linear")
        else:
            made = gemm
        made.shape, made.type = result.shape, result.type
        model.graph.insert_after(last, steps)
        name = result.name
        ir.convenience.replace_all_uses_with(result, made, replace_graph_outputs=True)
        for dead in dict.fromkeys((last, node)):
            model.graph.remove(dead, safe=True)
        made.name = name


def _stored(value: ir.Value | None, parameters: frozenset[str]) -> ir.Value | None:
    """W where `value` is Transpose(W) of a 2-D parameter."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Transpose":
        return None
    weight = producer.inputs[0]
    return weight if weight is not None and weight.name in parameters and len(weight.shape or ()) == 2 else None


def _can_flatten(x: ir.Value) -> bool:
    """Whether x has rows, and leading dimensions whose names tell how to restore them."""
    if x.shape is None or len(x.shape) < 2:
        return False
    return len(x.shape) == 2 or all(isinstance(d, int) or d.value is not None for d in list(x.shape)[:-1])


def _with_bias(node: ir.Node, parameters: frozenset[str], out_features: int) -> tuple[ir.Node, ir.Value | None]:
    product = node.outputs[0]
    uses = tuple(product.uses())
    if len(uses) == 1 and not product.is_graph_output() and uses[0].node.op_type == "Add":
        add = uses[0].node
        other = add.inputs[1 - uses[0].idx]
        if other is not None and other.name in parameters and list(other.shape or ()) == [out_features]:
            return add, other
    return node, None


def _target(model: ir.Model, x: ir.Value, out_features: int, sizes: dict[str, ir.Value], steps: list[ir.Node]) -> ir.Value:
    """The shape `[*x's leading dims, out_features]` as a value; made once per set of dims."""
    assert x.shape is not None
    leading = list(x.shape)[:-1]
    key = f"{leading}_{out_features}"
    if key not in sizes:
        parts: list[ir.Value] = []
        for axis, dim in enumerate(leading):
            if isinstance(dim, int):
                parts.append(constant(model.graph, f"size_{dim}", [dim]))
                continue
            symbol = f"dim {dim}"
            if symbol not in sizes:
                attributes = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)]
                sizes[symbol] = _node(steps, "Shape", [x], f"size_of_{str(dim).replace(' + ', '_plus_')}", attributes)
                sizes[symbol].dtype, sizes[symbol].shape = ir.DataType.INT64, ir.Shape([1])
            parts.append(sizes[symbol])
        parts.append(constant(model.graph, f"size_{out_features}", [out_features]))
        sizes[key] = _node(
            steps,
            "Concat",
            parts,
            "shape_of_" + "_".join(str(d).replace(" + ", "_plus_") for d in (*leading, out_features)),
            [ir.AttrInt64("axis", 0)],
        )
        sizes[key].dtype, sizes[key].shape = ir.DataType.INT64, ir.Shape([len(parts)])
    return sizes[key]


def _node(steps: list[ir.Node], op: str, inputs: list[ir.Value], name: str, attributes: list[ir.Attr] | None = None) -> ir.Value:
    node = ir.Node("", op, inputs, attributes or [], num_outputs=1)
    node.outputs[0].name = name
    steps.append(node)
    return node.outputs[0]
