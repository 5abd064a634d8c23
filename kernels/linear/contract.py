"""The Linear family as data: one row per signature, each in three precisions."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import Attribute, OpContract

__all__ = ["CONTRACTS", "MOST_IN_INT8", "WEIGHT_DTYPES"]

WEIGHT_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
"""As the checkpoint stores them, where the precision is float32 or bfloat16."""

MOST_IN_INT8 = 2**17
"""The most input features in int8: a sum of so many products, each at most 127 · 128, fits an int32."""

_X = TensorSpec("x", DType.FLOAT32, ("batch", "tokens", "in"))
_X_0 = TensorSpec("x_0", DType.FLOAT32, ("batch", "tokens", "in_0"))
_X_1 = TensorSpec("x_1", DType.FLOAT32, ("batch", "tokens", "in_1"))
_WEIGHT = TensorSpec("weight", DType.FLOAT32, ("out", "in"))
_WEIGHT_2 = TensorSpec("weight", DType.FLOAT32, ("out", "in_0 + in_1"))
_WEIGHT_SCALE = TensorSpec("weight_scale", DType.FLOAT32, ("out",))
_BIAS = TensorSpec("bias", DType.FLOAT32, ("out",))
_MODULATION = TensorSpec("modulation", DType.FLOAT32, ("batch", "columns"))
_RESIDUAL = TensorSpec("residual", DType.FLOAT32, ("batch", "tokens", "out"))
_Y = TensorSpec("y", DType.FLOAT32, ("batch", "tokens", "out"))

_GATE_AT = Attribute("gate_at", int, None, "the gate is the columns gate_at .. gate_at + out of modulation")

_SIZES = {
    "batch": (1, 3),
    "tokens": (1, 63, 123, 1025),
    "in": (1, 31, 192, 193, 3072),
    "out": (1, 31, 192, 193, 3072),
    "in_0": (1, 31, 193, 3072),
    "in_1": (1, 64, 193, 12288),
    "columns": (6144,),
}

_ROWS: tuple[tuple[str, str, tuple[TensorSpec, ...], tuple[Attribute, ...]], ...] = (
    ("Linear", "x · weightᵀ + bias", (_X, _WEIGHT, _BIAS), ()),
    ("LinearNoBias", "x · weightᵀ", (_X, _WEIGHT), ()),
    ("LinearGelu", "gelu(x · weightᵀ + bias), the tanh form", (_X, _WEIGHT, _BIAS), ()),
    (
        "LinearGatedResidual",
        "residual + gate · (x · weightᵀ + bias)",
        (_X, _WEIGHT, _BIAS, _MODULATION, _RESIDUAL),
        (_GATE_AT,),
    ),
    (
        "Linear2GatedResidual",
        "residual + gate · (concat(x_0, x_1) · weightᵀ + bias), x in two parts along its features",
        (_X_0, _X_1, _WEIGHT_2, _BIAS, _MODULATION, _RESIDUAL),
        (_GATE_AT,),
    ),
)


# Suffix of the op's name → what its arithmetic is.
_PRECISIONS = {
    "": "in float32 or no less exact",
    "Bf16": "of x and weight rounded to bfloat16, sums in float32",
    "Int8": "of x rounded to int8 per token and an int8 weight scaled per output, sums in int32",
}


def _contract(
    name: str, summary: str, inputs: tuple[TensorSpec, ...], attributes: tuple[Attribute, ...], precision: str
) -> OpContract:
    dims = {dim for tensor in inputs for extent in tensor.shape if isinstance(extent, str) for dim in extent.split(" + ")}
    if precision == "Int8":
        inputs = tuple(one for tensor in inputs for one in _in_int8(tensor))
    return OpContract(
        name=name + precision,
        version=1,
        summary=f"{summary}; products {_PRECISIONS[precision]}",
        inputs=inputs,
        outputs=(_Y,),
        dtypes={} if precision == "Int8" else {"weight": WEIGHT_DTYPES},
        attributes=attributes,
        tolerances={DType.FLOAT32: 5e-6, DType.FLOAT16: 1e-3, DType.BFLOAT16: 6e-3},
        awkward={dim: sizes for dim, sizes in _SIZES.items() if dim in dims},
    )


def _in_int8(tensor: TensorSpec) -> tuple[TensorSpec, ...]:
    if tensor.name != "weight":
        return (tensor,)
    return TensorSpec("weight", DType.INT8, tensor.shape), _WEIGHT_SCALE


CONTRACTS = tuple(_contract(*row, precision) for precision in _PRECISIONS for row in _ROWS)
