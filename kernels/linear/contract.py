"""The Linear family as data: one row per signature."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import Attribute, OpContract

__all__ = ["CONTRACTS", "WEIGHT_DTYPES"]

WEIGHT_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
"""As the checkpoint stores them; every kernel multiplies and adds in float32."""

_X = TensorSpec("x", DType.FLOAT32, ("batch", "tokens", "in"))
_X_0 = TensorSpec("x_0", DType.FLOAT32, ("batch", "tokens", "in_0"))
_X_1 = TensorSpec("x_1", DType.FLOAT32, ("batch", "tokens", "in_1"))
_WEIGHT = TensorSpec("weight", DType.FLOAT32, ("out", "in"))
_WEIGHT_2 = TensorSpec("weight", DType.FLOAT32, ("out", "in_0 + in_1"))
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


def _contract(name: str, summary: str, inputs: tuple[TensorSpec, ...], attributes: tuple[Attribute, ...]) -> OpContract:
    dims = {dim for tensor in inputs for extent in tensor.shape if isinstance(extent, str) for dim in extent.split(" + ")}
    return OpContract(
        name=name,
        version=1,
        summary=summary,
        inputs=inputs,
        outputs=(_Y,),
        dtypes={"weight": WEIGHT_DTYPES},
        attributes=attributes,
        tolerances={DType.FLOAT32: 5e-6, DType.FLOAT16: 1e-3, DType.BFLOAT16: 6e-3},
        awkward={dim: sizes for dim, sizes in _SIZES.items() if dim in dims},
    )


CONTRACTS = tuple(_contract(*row) for row in _ROWS)
