"""The Linear family in float32, in standard ONNX ops: what a runtime without our library executes.

The product is Reshape–Gemm(transB)–Reshape: a runtime then packs the stored weight as it is; MatMul would need it transposed.
GELU is spelt out, in the order in which ONNX Runtime finds its FastGelu again: the ONNX reference evaluator cannot run Gelu
in a function.
"""

# onnxscript reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors
# The name that is returned is the output's name.
# ruff: noqa: RET504

from onnxscript import opset18 as op
from onnxscript import script, values

from vitrify.kernels.linear.rounded_body import ROUNDED_BODIES

__all__ = ["BODIES"]

_DOMAIN = values.Opset("vitrify", 1)
_FLOAT = 1
_CUBIC = 0.044715
_SQRT_2_OVER_PI = 0.7978845608028654


@script(_DOMAIN, default_opset=op)
def Linear(x, weight, bias):  # noqa: N802
    rows = op.Concat(op.Constant(value_ints=[-1]), op.Shape(weight, start=1), axis=0)
    flat = op.Gemm(op.Reshape(x, rows, allowzero=1), op.Cast(weight, to=_FLOAT), bias, transB=1)
    shape = op.Concat(op.Shape(x, end=2), op.Shape(weight, end=1), axis=0)
    y = op.Reshape(flat, shape, allowzero=1)
    return y


@script(_DOMAIN, default_opset=op)
def LinearNoBias(x, weight):  # noqa: N802
    rows = op.Concat(op.Constant(value_ints=[-1]), op.Shape(weight, start=1), axis=0)
    flat = op.Gemm(op.Reshape(x, rows, allowzero=1), op.Cast(weight, to=_FLOAT), transB=1)
    shape = op.Concat(op.Shape(x, end=2), op.Shape(weight, end=1), axis=0)
    y = op.Reshape(flat, shape, allowzero=1)
    return y


@script(_DOMAIN, default_opset=op)
def LinearGelu(x, weight, bias):  # noqa: N802
    rows = op.Concat(op.Constant(value_ints=[-1]), op.Shape(weight, start=1), axis=0)
    flat = op.Gemm(op.Reshape(x, rows, allowzero=1), op.Cast(weight, to=_FLOAT), bias, transB=1)
    shape = op.Concat(op.Shape(x, end=2), op.Shape(weight, end=1), axis=0)
    cubic = op.Add(op.Mul(op.Mul(_CUBIC, flat), flat), 1.0)
    gelu = op.Mul(op.Mul(flat, 0.5), op.Add(op.Tanh(op.Mul(op.Mul(flat, _SQRT_2_OVER_PI), cubic)), 1.0))
    y = op.Reshape(gelu, shape, allowzero=1)
    return y


@script(_DOMAIN, default_opset=op)
def LinearGatedResidual(x, weight, bias, modulation, residual, gate_at: int):  # noqa: N802
    rows = op.Concat(op.Constant(value_ints=[-1]), op.Shape(weight, start=1), axis=0)
    flat = op.Gemm(op.Reshape(x, rows, allowzero=1), op.Cast(weight, to=_FLOAT), bias, transB=1)
    shape = op.Concat(op.Shape(x, end=2), op.Shape(weight, end=1), axis=0)
    one = op.Constant(value_ints=[1])
    start = op.Reshape(op.Constant(value_int=gate_at), one)
    gate = op.Unsqueeze(op.Slice(modulation, start, op.Add(start, op.Shape(weight, end=1)), one), one)
    y = op.Add(residual, op.Mul(gate, op.Reshape(flat, shape, allowzero=1)))
    return y


@script(_DOMAIN, default_opset=op)
def Linear2GatedResidual(x_0, x_1, weight, bias, modulation, residual, gate_at: int):  # noqa: N802
    x = op.Concat(x_0, x_1, axis=2)
    rows = op.Concat(op.Constant(value_ints=[-1]), op.Shape(weight, start=1), axis=0)
    flat = op.Gemm(op.Reshape(x, rows, allowzero=1), op.Cast(weight, to=_FLOAT), bias, transB=1)
    shape = op.Concat(op.Shape(x, end=2), op.Shape(weight, end=1), axis=0)
    one = op.Constant(value_ints=[1])
    start = op.Reshape(op.Constant(value_int=gate_at), one)
    gate = op.Unsqueeze(op.Slice(modulation, start, op.Add(start, op.Shape(weight, end=1)), one), one)
    y = op.Add(residual, op.Mul(gate, op.Reshape(flat, shape, allowzero=1)))
    return y


BODIES = {
    **{f.name: f for f in (Linear, LinearNoBias, LinearGelu, LinearGatedResidual, Linear2GatedResidual)},
    **ROUNDED_BODIES,
}
