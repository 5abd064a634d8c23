"""The Conv2d family in standard ONNX ops: what comes before the convolution, itself, and what follows it, joined.

The norm is InstanceNormalization over groups: the ONNX reference evaluator cannot run GroupNormalization in a function.
"""

# onnxscript reads the functions' source; to a type checker it is pseudo-code.
# mypy: ignore-errors
# The name that is returned is the output's name.
# ruff: noqa: RET504

from onnxscript import opset18 as op
from onnxscript import script, values

from vitrify.kernels.joined import Joined

__all__ = ["BODIES"]

_DOMAIN = values.Opset("vitrify", 1)
_FLOAT, _BFLOAT16 = 1, 16


@script(_DOMAIN, default_opset=op)
def _nothing(x):
    a = op.Identity(x)
    return a


@script(_DOMAIN, default_opset=op)
def _norm_silu(x, norm_weight, norm_bias, groups: int, epsilon: float):
    group_count = op.Reshape(op.Constant(value_int=groups), op.Constant(value_ints=[1]))
    grouped = op.Reshape(x, op.Concat(op.Constant(value_ints=[0]), group_count, op.Constant(value_ints=[-1]), axis=0))
    ones = op.Expand(op.Constant(value_floats=[1.0]), group_count)
    zeros = op.Expand(op.Constant(value_floats=[0.0]), group_count)
    even = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=epsilon), op.Shape(x))
    pixels = op.Constant(value_ints=[1, 2])
    normed = op.Add(op.Mul(even, op.Unsqueeze(norm_weight, pixels)), op.Unsqueeze(norm_bias, pixels))
    a = op.Mul(normed, op.Sigmoid(normed))
    return a


@script(_DOMAIN, default_opset=op)
def _upsample(x):
    twice = op.Constant(value_floats=[1.0, 1.0, 2.0, 2.0])
    a = op.Resize(x, None, twice, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return a


@script(_DOMAIN, default_opset=op)
def _float32_conv(a, weight, bias):
    c = op.Conv(a, op.Cast(weight, to=_FLOAT), bias, auto_pad="SAME_UPPER")
    return c


@script(_DOMAIN, default_opset=op)
def _bf16_conv(a, weight, bias):
    rounded = op.Cast(op.Cast(a, to=_BFLOAT16), to=_FLOAT)
    c = op.Conv(rounded, op.Cast(op.Cast(weight, to=_BFLOAT16), to=_FLOAT), bias, auto_pad="SAME_UPPER")
    return c


@script(_DOMAIN, default_opset=op)
def _identity(c):
    y = op.Identity(c)
    return y


@script(_DOMAIN, default_opset=op)
def _residual(c, residual):
    y = op.Add(residual, c)
    return y


_FAMILY = {
    "Conv2d": (_nothing, _identity),
    "Conv2dResidual": (_nothing, _residual),
    "GroupNormSiluConv2d": (_norm_silu, _identity),
    "GroupNormSiluConv2dResidual": (_norm_silu, _residual),
    "UpsampleConv2d": (_upsample, _identity),
}

BODIES = {
    name + suffix: Joined(name + suffix, (before, conv, after))
    for suffix, conv in {"": _float32_conv, "Bf16": _bf16_conv}.items()
    for name, (before, after) in _FAMILY.items()
}
