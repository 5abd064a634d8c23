"""The Conv2d family as data: one row per signature, each in two precisions."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.linear.contract import WEIGHT_DTYPES
from vitrify.kernels.op import Attribute, OpContract

__all__ = ["CONTRACTS", "KERNELS"]

KERNELS = (1, 3)
"""Widths of the kernels that there are: squares, of stride 1, with as many zeros around x as keep its size."""

_X = TensorSpec("x", DType.FLOAT32, ("batch", "in", "height", "width"))
_NORM_WEIGHT = TensorSpec("norm_weight", DType.FLOAT32, ("in",))
_NORM_BIAS = TensorSpec("norm_bias", DType.FLOAT32, ("in",))
_WEIGHT = TensorSpec("weight", DType.FLOAT32, ("out", "in", "kernel", "kernel"))
_BIAS = TensorSpec("bias", DType.FLOAT32, ("out",))
_RESIDUAL = TensorSpec("residual", DType.FLOAT32, ("batch", "out", "height", "width"))
_Y = TensorSpec("y", DType.FLOAT32, ("batch", "out", "height", "width"))
_TWICE = TensorSpec("y", DType.FLOAT32, ("batch", "out", "height + height", "width + width"))

_NORM = (
    Attribute("groups", int, None, "of channels that are normalised together; divides in"),
    Attribute("epsilon", float, None, "added to a group's variance"),
)

_ROWS: tuple[tuple[str, str, tuple[TensorSpec, ...], TensorSpec, tuple[Attribute, ...]], ...] = (
    ("Conv2d", "conv(x, weight) + bias", (_X, _WEIGHT, _BIAS), _Y, ()),
    ("Conv2dResidual", "residual + conv(x, weight) + bias", (_X, _WEIGHT, _BIAS, _RESIDUAL), _Y, ()),
    (
        "GroupNormSiluConv2d",
        "conv(silu(group_norm(x)), weight) + bias",
        (_X, _NORM_WEIGHT, _NORM_BIAS, _WEIGHT, _BIAS),
        _Y,
        _NORM,
    ),
    (
        "GroupNormSiluConv2dResidual",
        "residual + conv(silu(group_norm(x)), weight) + bias",
        (_X, _NORM_WEIGHT, _NORM_BIAS, _WEIGHT, _BIAS, _RESIDUAL),
        _Y,
        _NORM,
    ),
    ("UpsampleConv2d", "conv(x with every pixel as 2 x 2, weight) + bias", (_X, _WEIGHT, _BIAS), _TWICE, ()),
)

# Suffix of the op's name → what its arithmetic is.
_PRECISIONS = {
    "": "in float32 or no less exact",
    "Bf16": "of the convolution's x and weight rounded to bfloat16, sums in float32",
}
_TOLERANCE = 5e-6
# Where x is normalised in float32 and then rounded to bfloat16, its last bits may turn the rounding the other way, by one part in
# 256, and do so in a few of a hundred thousand.
_TOLERANCE_ROUNDED_NORM = 1e-4

CONTRACTS = tuple(
    OpContract(
        name=name + suffix,
        version=1,
        summary=f"{summary}; products {precision}",
        inputs=inputs,
        outputs=(output,),
        dtypes={"weight": WEIGHT_DTYPES},
        attributes=attributes,
        tolerances={DType.FLOAT32: _TOLERANCE_ROUNDED_NORM if suffix and attributes else _TOLERANCE},
        awkward={
            "batch": (1, 3),
            "in": (1, 16, 31, 96, 512),
            "out": (1, 3, 16, 49, 512),
            "height": (1, 2, 8, 17, 64),
            "width": (1, 3, 8, 31, 90, 256),
            "kernel": KERNELS,
        },
    )
    for suffix, precision in _PRECISIONS.items()
    for name, summary, inputs, output, attributes in _ROWS
)
