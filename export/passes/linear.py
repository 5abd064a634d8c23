"""Linear layers as our Linear over the weight as stored, `[out, in]`.

The tracer writes MatMul(x, Transpose(W)); a runtime folds each Transpose into a private copy of the weight.
"""

from __future__ import annotations

import onnx_ir as ir

from vitrify.export.passes.patterns import is_alone, leave, made_by, our_node, put
from vitrify.kernels.op import DOMAIN

__all__ = ["fuse_linears"]


def fuse_linears(model: ir.Model, parameters: frozenset[str]) -> None:
    """Rules: (1) MatMul(x, Transpose(W)) becomes LinearNoBias(x, W) for a parameter W and x [batch, tokens, in];
    (2) for x [rows, in] it becomes Gemm(x, W, transB=1), for other ranks it stays; (3) the bias added next, if it is a
    parameter of W's out features and the product has no other reader, is taken in: Linear, or Gemm's C; (4) so is a GELU
    in its tanh form that alone reads a Linear: LinearGelu."""
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        x, weight = node.inputs[0], _stored(node.inputs[1], parameters)
        if x is None or x.shape is None or weight is None or weight.shape is None:
            leave(node, "no linear layer: the second factor is no transposed parameter")
            continue
        if len(x.shape) not in (2, 3):
            leave(node, f"x has {len(x.shape)} dimensions; Linear takes [batch, tokens, in]")
            continue
        last, bias = _with_bias(node, parameters, int(weight.shape.numpy()[0]))
        inputs = [x, weight] if bias is None else [x, weight, bias]
        if len(x.shape) == 2:
            made = ir.Node("", "Gemm", inputs, [ir.AttrInt64("transB", 1)], num_outputs=1)
            leave(made, "x has a row per sample and no tokens: Gemm is made for that")
        else:
            made = our_node("LinearNoBias" if bias is None else "Linear", inputs)
        put(model.graph, made, last.outputs[0])
        if last is not node:
            model.graph.remove(node, safe=True)
    for node in list(model.graph):
        if node.op_type == "Gelu":
            _take_gelu(model.graph, node)


def _stored(value: ir.Value | None, parameters: frozenset[str]) -> ir.Value | None:
    """W where `value` is Transpose(W) of a 2-D parameter."""
    producer = made_by(value, "Transpose")
    weight = None if producer is None else producer.inputs[0]
    return weight if weight is not None and weight.name in parameters and len(weight.shape or ()) == 2 else None


def _with_bias(node: ir.Node, parameters: frozenset[str], out_features: int) -> tuple[ir.Node, ir.Value | None]:
    """The node whose result is the layer's, and the bias it adds."""
    product = node.outputs[0]
    if is_alone(product):
        (use,) = product.uses()
        if use.node.op_type == "Add":
            other = use.node.inputs[1 - use.idx]
            if other is not None and other.name in parameters and list(other.shape or ()) == [out_features]:
                return use.node, other
    return node, None


def _take_gelu(graph: ir.Graph, node: ir.Node) -> None:
    """Rule 4."""
    layer = made_by(node.inputs[0], "Linear", DOMAIN)
    if "approximate" not in node.attributes or node.attributes["approximate"].as_string() != "tanh":
        leave(node, "GELU by the error function; LinearGelu has the tanh form")
    elif layer is None or not is_alone(layer.outputs[0]):
        leave(node, "does not follow a Linear with a bias that it alone reads")
    else:
        put(graph, our_node("LinearGelu", [v for v in layer.inputs if v is not None]), node.outputs[0])
        graph.remove(layer, safe=True)
