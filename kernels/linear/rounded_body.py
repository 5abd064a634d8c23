"""The Linear family in bfloat16 and int8, in standard ONNX ops: each body is a product and what follows it, joined."""

# onnxscript reads the functions' source; to a type checker it is pseudo-code.
# mypy: ignore-errors
# The name that is returned is the output's name.
# ruff: noqa: RET504

from onnxscript import opset18 as op
from onnxscript import script, values

from vitrify.kernels.joined import Joined

__all__ = ["ROUNDED_BODIES"]

_DOMAIN = values.Opset("vitrify", 1)
_FLOAT, _BFLOAT16, _INT8 = 1, 16, 3
_SMALLEST = 1e-30
_CUBIC = 0.044715
_SQRT_2_OVER_PI = 0.7978845608028654


@script(_DOMAIN, default_opset=op)
def _bf16_product(x, weight):
    rounded = op.Cast(op.Cast(x, to=_BFLOAT16), to=_FLOAT)
    p = op.MatMul(rounded, op.Transpose(op.Cast(op.Cast(weight, to=_BFLOAT16), to=_FLOAT), perm=[1, 0]))
    return p


@script(_DOMAIN, default_opset=op)
def _int8_product(x, weight, weight_scale):
    largest = op.Max(op.ReduceMax(op.Abs(x), op.Constant(value_ints=[-1]), keepdims=1), _SMALLEST)
    quantised = op.Cast(op.Round(x * (127.0 / largest)), to=_INT8)
    whole = op.MatMulInteger(quantised, op.Transpose(weight, perm=[1, 0]))
    p = op.Cast(whole, to=_FLOAT) * (largest / 127.0) * weight_scale
    return p


@script(_DOMAIN, default_opset=op)
def _concat(x_0, x_1):
    x = op.Concat(x_0, x_1, axis=2)
    return x


@script(_DOMAIN, default_opset=op)
def _identity(p):
    y = op.Identity(p)
    return y


@script(_DOMAIN, default_opset=op)
def _bias(p, bias):
    y = op.Add(p, bias)
    return y


@script(_DOMAIN, default_opset=op)
def _gelu(p, bias):
    z = op.Add(p, bias)
    cubic = op.Add(op.Mul(op.Mul(_CUBIC, z), z), 1.0)
    y = op.Mul(op.Mul(z, 0.5), op.Add(op.Tanh(op.Mul(op.Mul(z, _SQRT_2_OVER_PI), cubic)), 1.0))
    return y


@script(_DOMAIN, default_opset=op)
def _gated_residual(p, bias, modulation, residual, gate_at: int):
    one = op.Constant(value_ints=[1])
    start = op.Reshape(op.Constant(value_int=gate_at), one)
    gate = op.Unsqueeze(op.Slice(modulation, start, op.Add(start, op.Shape(bias)), one), one)
    y = op.Add(residual, op.Mul(gate, op.Add(p, bias)))
    return y


_PRODUCTS = {"Bf16": _bf16_product, "Int8": _int8_product}
_FAMILY = {
    "Linear": ((), _bias),
    "LinearNoBias": ((), _identity),
    "LinearGelu": ((), _gelu),
    "LinearGatedResidual": ((), _gated_residual),
    "Linear2GatedResidual": ((_concat,), _gated_residual),
}

ROUNDED_BODIES = {
    name + precision: Joined(name + precision, (*before, product, after))
    for precision, product in _PRODUCTS.items()
    for name, (before, after) in _FAMILY.items()
}
