"""AdaLayerNorm and AdaRMSNorm as data."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import Attribute, OpContract

__all__ = ["CONTRACTS"]


def _contract(name: str, summary: str) -> OpContract:
    return OpContract(
        name=name,
        version=1,
        summary=summary,
        inputs=(
            TensorSpec("x", DType.FLOAT32, ("batch", "tokens", "width")),
            TensorSpec("modulation", DType.FLOAT32, ("batch", "columns")),
        ),
        outputs=(TensorSpec("y", DType.FLOAT32, ("batch", "tokens", "width")),),
        tolerances={DType.FLOAT32: 1e-6, DType.FLOAT16: 1e-3, DType.BFLOAT16: 6e-3},
        awkward={
            "batch": (1, 3),
            "tokens": (1, 63, 123, 1025),
            "width": (1, 31, 192, 1024, 3072),
            "columns": (2, 63, 390, 3072, 9216),
        },
        attributes=(
            Attribute("factor_at", int, None, "first of the width columns of modulation that hold 1 + scale"),
            Attribute("shift_at", int, None, "first of the width columns that hold the shift"),
            Attribute("epsilon", float, None, "added to the variance, or to the mean square, before the root"),
        ),
    )


CONTRACTS = (
    _contract("AdaLayerNorm", "(x − mean) / sqrt(variance + epsilon) · factor + shift, over the width"),
    _contract("AdaRMSNorm", "x / sqrt(mean(x²) + epsilon) · factor + shift, over the width"),
)
"""factor_at + width and shift_at + width lie within the columns."""
