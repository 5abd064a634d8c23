"""The Taylor family in standard ONNX ops: what a runtime without our library executes."""

# onnxscript reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors
# The name that is returned is the output's name.
# ruff: noqa: RET504

from onnxscript import opset18 as op
from onnxscript import script, values

__all__ = ["BODIES"]

_DOMAIN = values.Opset("vitrify", 1)


@script(_DOMAIN, default_opset=op)
def TaylorUpdate1(y, f0, inverse):  # noqa: N802
    g0 = op.Identity(y)
    g1 = op.Mul(op.Sub(y, f0), inverse)
    return g0, g1


@script(_DOMAIN, default_opset=op)
def TaylorUpdate2(y, f0, f1, inverse):  # noqa: N802
    zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    g0 = op.Identity(y)
    g1 = op.Mul(op.Sub(y, f0), op.Gather(inverse, zero))
    g2 = op.Mul(op.Sub(g1, f1), op.Gather(inverse, one))
    return g0, g1, g2


@script(_DOMAIN, default_opset=op)
def TaylorPredict1(f0, f1, ahead):  # noqa: N802
    y = op.Add(f0, op.Mul(f1, ahead))
    return y


@script(_DOMAIN, default_opset=op)
def TaylorPredict2(f0, f1, f2, ahead):  # noqa: N802
    zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    slope = op.Add(f1, op.Mul(op.Gather(ahead, one), f2))
    y = op.Add(f0, op.Mul(op.Gather(ahead, zero), slope))
    return y


BODIES = {f.name: f for f in (TaylorUpdate1, TaylorUpdate2, TaylorPredict1, TaylorPredict2)}
