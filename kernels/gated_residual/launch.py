"""How GatedResidual runs on a GPU: one launch over tiles of tokens and columns."""

from __future__ import annotations

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Condition, Integer, Kernel, Launch, Pointer, Program

__all__ = ["PROGRAMS"]

_KERNEL = Kernel(
    name="gated_residual",
    function="vitrify.kernels.gated_residual.kernel:gated_residual",
    tiles="gated_residual",
    parameters=(
        Pointer("x", ACTIVATION),
        Pointer("y", ACTIVATION),
        Pointer("modulation", DType.FLOAT32),
        Integer("tokens"),
        Integer("width", divisible_by=16),
        Integer("columns", divisible_by=16),
        Integer("gate_at", divisible_by=16),
        Pointer("out", ACTIVATION, written=True),
    ),
    sizes=("batch",),
    grid=("cdiv(width, BLOCK_W)", "cdiv(tokens, BLOCK_T)", "batch"),
    flops="2 * batch * tokens * width",
    moved_bytes="3 * itemsize * batch * tokens * width + 4 * batch * width",
)

_INSIDE = Condition("gate_at + width", "<=", "columns")

PROGRAMS = (Program(op="GatedResidual", version=1, launches=(Launch(_KERNEL),), conditions=(_INSIDE,)),)
