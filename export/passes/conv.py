"""Convolutions that keep the image's size as our Conv2d, with what stands around them: GroupNorm and SiLU before, a doubled
image, the residual after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitrify.export.passes.patterns import dims, is_alone, leave, made_by, our_node, put
from vitrify.kernels.conv.contract import KERNELS
from vitrify.kernels.op import DOMAIN

__all__ = ["fuse_convs"]

_DOUBLED = (1.0, 1.0, 2.0, 2.0)
_FLOAT = 1
"""ONNX's number of float32."""
_NORMED = "GroupNormSiluConv2d"
_WITH_RESIDUAL = ("Conv2d", _NORMED)


def fuse_convs(model: ir.Model, parameters: frozenset[str]) -> None:
    """Rules: (1) Conv(x, W, b) with W and b parameters, a square kernel of 1 or 3, stride 1 and as many zeros around x as keep
    its size becomes Conv2d; (2) if x is SiLU(GroupNormalization(z)), which nobody else reads, GroupNormSiluConv2d; (3) if x is
    z with every pixel doubled, UpsampleConv2d; (4) the tensor of y's sizes that is added next, if nobody else reads the
    convolution, is taken in: Conv2dResidual, GroupNormSiluConv2dResidual. What then is read by nobody stays for `sweep`."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Conv" and node.domain == "":
            reason = _why_not(node, parameters)
            if reason is None:
                _take(graph, node)
            else:
                leave(node, reason)
    for node in list(graph):
        if node.op_type == "Add" and node.domain == "":
            _take_residual(graph, node)


def _why_not(node: ir.Node, parameters: frozenset[str]) -> str | None:
    """Why Conv2d does not compute what `node` does."""
    x, weight, bias = (*node.inputs, None)[:3]
    if x is not None and x.dtype not in (None, ir.DataType.FLOAT):
        return f"Conv2d takes float32, x is {x.dtype}"
    if x is None or weight is None or weight.name not in parameters or bias is None or bias.name not in parameters:
        return "weight or bias is no parameter"
    sizes = dims(weight)
    if sizes is None or len(sizes) != 4 or len(dims(x) or ()) != 4:
        return "Conv2d takes [batch, channels, height, width]"
    side = sizes[2]
    if side not in KERNELS or sizes[3] != side:
        return f"Conv2d has square kernels of 1 and 3, this one is {sizes[2]} x {sizes[3]}"
    assert isinstance(side, int)
    expected = {"group": 1, "strides": [1, 1], "dilations": [1, 1], "pads": [side // 2] * 4, "auto_pad": "NOTSET"}
    for name, value in expected.items():
        found = node.attributes.get(name)
        given = ([0] * 4 if name == "pads" else value) if found is None else found.value
        given = list(given) if isinstance(given, (list, tuple)) else given
        if given != value:
            return f"Conv2d has {name} {value}, this one {given}"
    return None


def _take(graph: ir.Graph, node: ir.Node) -> None:
    """Rules 1 to 3."""
    x, weight, bias = node.inputs[:3]
    assert x is not None
    assert weight is not None
    assert bias is not None
    if (norm := _norm_before_silu(x)) is not None:
        z, scale, shift = (v for v in norm.inputs if v is not None)
        attributes = {"groups": norm.attributes["num_groups"].as_int(), "epsilon": _epsilon(norm)}
        put(graph, our_node(_NORMED, [z, scale, shift, weight, bias], attributes), node.outputs[0])
    elif (small := _doubled(x)) is not None:
        put(graph, our_node("UpsampleConv2d", [small, weight, bias]), node.outputs[0])
    else:
        put(graph, our_node("Conv2d", [x, weight, bias]), node.outputs[0])


def _norm_before_silu(x: ir.Value) -> ir.Node | None:
    """The GroupNormalization of rule 2."""
    product = made_by(x, "Mul")
    if product is None or not is_alone(x):
        return None
    for position, factor in enumerate(product.inputs):
        sigmoid, normed = made_by(factor, "Sigmoid"), product.inputs[1 - position]
        if sigmoid is None or factor is None or normed is None or sigmoid.inputs[0] is not normed or not is_alone(factor):
            continue
        norm = made_by(normed, "GroupNormalization")
        readers = {use.node for use in normed.uses()}
        if norm is None or readers != {product, sigmoid} or normed.is_graph_output():
            continue
        stash = norm.attributes.get("stash_type")
        channels = (dims(norm.inputs[0]) or [None])[1:2]
        if (stash is None or stash.as_int() == _FLOAT) and all(dims(value) == channels for value in norm.inputs[1:]):
            return norm
    return None


def _epsilon(norm: ir.Node) -> float:
    given = norm.attributes.get("epsilon")
    return 1e-5 if given is None else given.as_float()


def _doubled(x: ir.Value) -> ir.Value | None:
    """z of rule 3."""
    resize = made_by(x, "Resize")
    if resize is None or not is_alone(x) or len(resize.inputs) < 3:
        return None
    scales = resize.inputs[2]
    if scales is None or scales.const_value is None or (len(resize.inputs) > 3 and resize.inputs[3] is not None):
        return None
    axes = resize.attributes.get("axes")
    if axes is not None and list(axes.as_ints()) != [0, 1, 2, 3]:
        return None
    texts = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if any(name not in resize.attributes or resize.attributes[name].as_string() != text for name, text in texts.items()):
        return None
    return resize.inputs[0] if np.array_equal(scales.const_value.numpy(), _DOUBLED) else None


def _take_residual(graph: ir.Graph, node: ir.Node) -> None:
    """Rule 4. Of two convolutions the one behind a norm takes the other in."""
    found = [
        (made.op_type == _NORMED, made, node.inputs[1 - position])
        for position, value in enumerate(node.inputs)
        for name in _WITH_RESIDUAL
        if value is not None and is_alone(value) and (made := made_by(value, name, DOMAIN)) is not None
    ]
    for _, layer, residual in sorted(found, key=lambda one: not one[0]):
        shape = dims(layer.outputs[0])
        if residual is None or shape is None or None in shape or not shape == dims(residual) == dims(node.outputs[0]):
            leave(node, "the residual has other sizes than the convolution")
            continue
        given = [v for v in layer.inputs if v is not None]
        attributes: dict[str, int | float] = {}
        if layer.op_type == _NORMED:
            attributes = {"groups": layer.attributes["groups"].as_int(), "epsilon": layer.attributes["epsilon"].as_float()}
        put(graph, our_node(f"{layer.op_type}Residual", [*given, residual], attributes), node.outputs[0])
        graph.remove(layer, safe=True)
        return
