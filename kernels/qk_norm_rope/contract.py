"""QkNormRope as data."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import Attribute, OpContract

__all__ = ["CONTRACTS"]

CONTRACTS = (
    OpContract(
        name="QkNormRope",
        version=1,
        summary="the queries or keys of an attention, normalised per head (RMS) and turned by the rotary tables",
        inputs=(
            TensorSpec("x", DType.FLOAT32, ("batch", "tokens", "width")),
            TensorSpec("norm", DType.FLOAT32, ("head_dim",)),
            TensorSpec("cos", DType.FLOAT32, ("tokens", "half")),
            TensorSpec("sin", DType.FLOAT32, ("tokens", "half")),
        ),
        outputs=(TensorSpec("y", DType.FLOAT32, ("batch", "tokens", "width")),),
        tolerances={DType.FLOAT32: 1e-6, DType.FLOAT16: 1e-3, DType.BFLOAT16: 6e-3},
        awkward={
            "batch": (1, 2),
            "tokens": (1, 63, 123, 1025),
            "width": (64, 128),
            "head_dim": (2, 30, 32, 34, 64, 128, 512),
            "half": (1, 15, 16, 17, 32, 64, 256),
        },
        attributes=(
            Attribute("num_heads", int, None, "heads along the width; head_dim = width / num_heads"),
            Attribute("epsilon", float, None, "added to the mean square before the root"),
        ),
    ),
)
"""width = num_heads · head_dim and half = head_dim / 2."""
