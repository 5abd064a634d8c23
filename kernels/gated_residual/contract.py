"""GatedResidual as data."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import Attribute, OpContract

__all__ = ["CONTRACTS"]

_HIDDEN = ("batch", "tokens", "width")

CONTRACTS = (
    OpContract(
        name="GatedResidual",
        version=1,
        summary="x + gate · y, the gate from columns of the modulation table",
        inputs=(
            TensorSpec("x", DType.FLOAT32, _HIDDEN),
            TensorSpec("y", DType.FLOAT32, _HIDDEN),
            TensorSpec("modulation", DType.FLOAT32, ("batch", "columns")),
        ),
        outputs=(TensorSpec("out", DType.FLOAT32, _HIDDEN),),
        tolerances={DType.FLOAT32: 2e-7, DType.FLOAT16: 1e-3, DType.BFLOAT16: 6e-3},
        awkward={
            "batch": (1, 3),
            "tokens": (1, 63, 123, 1025),
            "width": (1, 31, 192, 1024, 3072),
            "columns": (2, 63, 390, 3072, 9216),
        },
        attributes=(Attribute("gate_at", int, None, "first of the width columns of modulation that hold the gate"),),
    ),
)
"""gate_at + width lies within the columns."""
