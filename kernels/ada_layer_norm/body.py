"""AdaLayerNorm and AdaRMSNorm in standard ONNX ops: what a runtime without our library executes."""

# onnxscript reads this source; to a type checker it is pseudo-code.
# A returned name is the output's name.
# mypy: ignore-errors
# ruff: noqa: RET504

import onnx
from onnxscript import opset23 as op
from onnxscript import script, values

__all__ = ["BODIES"]

_VITRIFY = values.Opset("vitrify", 1)
_ONE = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])


@script(_VITRIFY, default_opset=op)
def AdaLayerNorm(x, modulation, factor_at: int, shift_at: int, epsilon: float):  # noqa: N802
    width = op.Shape(x, start=2, end=3)
    one = op.Constant(value_ints=[1])
    factor_start = op.Reshape(op.Constant(value_int=factor_at), one)
    shift_start = op.Reshape(op.Constant(value_int=shift_at), one)
    factor = op.Slice(modulation, factor_start, op.Add(factor_start, width), one)
    shift = op.Slice(modulation, shift_start, op.Add(shift_start, width), one)
    weights = op.CastLike(op.ConstantOfShape(width, value=_ONE), x)
    normalised = op.LayerNormalization(x, weights, axis=-1, epsilon=epsilon)
    y = op.Add(op.Mul(normalised, op.CastLike(op.Unsqueeze(factor, one), x)), op.CastLike(op.Unsqueeze(shift, one), x))
    return y


@script(_VITRIFY, default_opset=op)
def AdaRMSNorm(x, modulation, factor_at: int, shift_at: int, epsilon: float):  # noqa: N802
    width = op.Shape(x, start=2, end=3)
    one = op.Constant(value_ints=[1])
    factor_start = op.Reshape(op.Constant(value_int=factor_at), one)
    shift_start = op.Reshape(op.Constant(value_int=shift_at), one)
    factor = op.Slice(modulation, factor_start, op.Add(factor_start, width), one)
    shift = op.Slice(modulation, shift_start, op.Add(shift_start, width), one)
    weights = op.CastLike(op.ConstantOfShape(width, value=_ONE), x)
    normalised = op.RMSNormalization(x, weights, axis=-1, epsilon=epsilon)
    y = op.Add(op.Mul(normalised, op.CastLike(op.Unsqueeze(factor, one), x)), op.CastLike(op.Unsqueeze(shift, one), x))
    return y


BODIES = {"AdaLayerNorm": AdaLayerNorm, "AdaRMSNorm": AdaRMSNorm}
