"""How ResidualDiff runs on a GPU: a launch over pieces of the rows, and one that adds the pieces up."""

from __future__ import annotations

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Integer, Kernel, Launch, Pointer, Program, Scratch

__all__ = ["PROGRAMS"]

_PIECE = 8192
_MODULE = "vitrify.kernels.residual_diff.kernel"

_PIECES = Kernel(
    name="residual_diff",
    function=f"{_MODULE}:residual_diff",
    tiles="residual_diff",
    parameters=(
        Pointer("h1", ACTIVATION),
        Pointer("h0", ACTIVATION),
        Pointer("r_ref", ACTIVATION),
        Integer("row", divisible_by=16),
        Pointer("r", ACTIVATION, written=True),
        Pointer("partial", DType.FLOAT32, written=True),
    ),
    sizes=("batch",),
    options={"PIECE": _PIECE},
    grid=("cdiv(row, PIECE)", "batch"),
    flops="5 * batch * row",
    moved_bytes="4 * itemsize * batch * row",
)
_TOTAL = Kernel(
    name="residual_diff_total",
    function=f"{_MODULE}:residual_diff_total",
    tiles="residual_diff_total",
    parameters=(Pointer("partial", DType.FLOAT32), Integer("pieces"), Pointer("sums", DType.FLOAT32, written=True)),
    sizes=("batch",),
    grid=("batch",),
    flops="2 * batch * pieces",
    moved_bytes="8 * batch * pieces",
    dtypes=(DType.FLOAT32,),
)

_COUNT = f"cdiv(tokens * width, {_PIECE})"

PROGRAMS = (
    Program(
        op="ResidualDiff",
        version=1,
        scratch=(Scratch("partial", DType.FLOAT32, f"batch * {_COUNT} * 2"),),
        launches=(
            Launch(_PIECES, {"row": "tokens * width"}),
            Launch(_TOTAL, {"pieces": _COUNT}),
        ),
    ),
)
