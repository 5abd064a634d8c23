"""ResidualDiff as data."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import OpContract

__all__ = ["CONTRACTS", "RESIDUAL_DIFF"]

_HIDDEN = ("batch", "tokens", "width")

RESIDUAL_DIFF = OpContract(
    name="ResidualDiff",
    version=1,
    summary="the residual of a block, and the sums of |r − r_ref| and |r_ref| per row, in one pass",
    inputs=(
        TensorSpec("h1", DType.FLOAT32, _HIDDEN),
        TensorSpec("h0", DType.FLOAT32, _HIDDEN),
        TensorSpec("r_ref", DType.FLOAT32, _HIDDEN),
    ),
    outputs=(
        TensorSpec("r", DType.FLOAT32, _HIDDEN),
        TensorSpec("sums", DType.FLOAT32, ("batch", 2)),
    ),
    tolerances={DType.FLOAT32: 5e-6, DType.FLOAT16: 1e-3, DType.BFLOAT16: 8e-3},
    awkward={"batch": (1, 3), "tokens": (1, 63, 123, 1025), "width": (1, 31, 192, 3072)},
)

CONTRACTS = (RESIDUAL_DIFF,)
