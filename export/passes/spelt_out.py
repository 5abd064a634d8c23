"""Norms and activations that a module spells out in arithmetic, as the ops that they are: one pass over memory, not eight."""

from __future__ import annotations

import math

import onnx_ir as ir

from vitrify.export.passes.patterns import dims, is_alone, made_by, number, put

__all__ = ["name_what_is_spelt_out"]

_CUBIC = 0.044715
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_CLOSE = 1e-6
"""Constants are float32."""


def name_what_is_spelt_out(model: ir.Model, parameters: frozenset[str]) -> None:
    """Rules: (1) w · (x · 1/√(mean(x²) + ε)), the mean over the last dimension and w a parameter of its size, becomes
    RMSNormalization(x, w); (2) x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))) becomes Gelu in its tanh form. What others read of
    the arithmetic in between stays with it. What then is read by nobody stays for `sweep`."""
    for node in list(model.graph):
        if node.op_type != "Mul":
            continue
        if (norm := _rms_norm(node, parameters)) is not None:
            x, weight, epsilon = norm
            attributes = [ir.AttrInt64("axis", -1), ir.AttrFloat32("epsilon", epsilon)]
            put(model.graph, ir.Node("", "RMSNormalization", [x, weight], attributes, num_outputs=1), node.outputs[0])
        elif (x_of_gelu := _tanh_gelu(node)) is not None:
            put(
                model.graph,
                ir.Node("", "Gelu", [x_of_gelu], [ir.AttrString("approximate", "tanh")], num_outputs=1),
                node.outputs[0],
            )


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _is(value: ir.Value | None, wanted: float) -> bool:
    found = _scalar(value)
    return found is not None and math.isclose(found, wanted, rel_tol=_CLOSE)


def _with_scalar(value: ir.Value | None, op_type: str, wanted: float) -> ir.Value | None:
    """The other operand where `value` is Mul or Add with that constant on either side."""
    node = made_by(value, op_type)
    if node is None:
        return None
    for position, operand in enumerate(node.inputs):
        if _is(operand, wanted):
            return node.inputs[1 - position]
    return None


def _power(value: ir.Value | None, exponent: int) -> ir.Value | None:
    """x where `value` is x to that power."""
    node = made_by(value, "Pow")
    return node.inputs[0] if node is not None and _is(node.inputs[1], exponent) else None


def _rms_norm(node: ir.Node, parameters: frozenset[str]) -> tuple[ir.Value, ir.Value, float] | None:
    """(x, w, ε) of rule 1."""
    for position, weight in enumerate(node.inputs):
        normed = node.inputs[1 - position]
        product = made_by(normed, "Mul")
        if weight is None or weight.name not in parameters or normed is None or product is None or not is_alone(normed):
            continue
        for side, root in enumerate(product.inputs):
            x = product.inputs[1 - side]
            found = _mean_square(root)
            if x is None or found is None or found[0] is not x:
                continue
            shape = dims(x)
            if shape is not None and isinstance(shape[-1], int) and dims(weight) == [shape[-1]]:
                return x, weight, found[1]
    return None


def _mean_square(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, ε) where `value` is 1/√(mean(x²) + ε) over the last dimension, which it keeps."""
    inverse = made_by(value, "Reciprocal")
    root = made_by(inverse.inputs[0], "Sqrt") if inverse is not None else None
    total = made_by(root.inputs[0], "Add") if root is not None else None
    if total is None:
        return None
    for position, operand in enumerate(total.inputs):
        epsilon, mean = _scalar(operand), made_by(total.inputs[1 - position], "ReduceMean")
        if epsilon is None or mean is None or len(mean.inputs) != 2:
            continue
        x = _power(mean.inputs[0], 2)
        rank = len(dims(mean.inputs[0]) or ())
        keeps = "keepdims" not in mean.attributes or mean.attributes["keepdims"].as_int() == 1
        if x is not None and keeps and rank and number(mean.inputs[1]) in (-1, rank - 1):
            return x, epsilon
    return None


def _tanh_gelu(node: ir.Node) -> ir.Value | None:
    """x of rule 2."""
    for position, half in enumerate(node.inputs):
        x = _with_scalar(half, "Mul", 0.5)
        tanh = made_by(_with_scalar(node.inputs[1 - position], "Add", 1.0), "Tanh")
        inner = made_by(_with_scalar(tanh.inputs[0], "Mul", _SQRT_2_OVER_PI), "Add") if tanh is not None else None
        if x is None or inner is None:
            continue
        for side, cubic in enumerate(inner.inputs):
            if inner.inputs[1 - side] is x and _power(_with_scalar(cubic, "Mul", _CUBIC), 3) is x:
                return x
    return None
