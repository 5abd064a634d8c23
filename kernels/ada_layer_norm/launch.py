"""How AdaLayerNorm and AdaRMSNorm run on a GPU: one launch, a block per token that holds its whole row."""

from __future__ import annotations

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Condition, Integer, Kernel, Launch, Pointer, Program, as_float32

__all__ = ["PROGRAMS"]

_EPSILON = as_float32(1e-6)
_BLOCKS = (256, 512, 1024, 2048, 4096)
"""Rows are padded to the next power of two: widths up to 4096."""


def _program(op: str, name: str, centred: int) -> Program:
    kernel = Kernel(
        name=name,
        function="vitrify.kernels.ada_layer_norm.kernel:ada_norm",
        tiles="ada_norm",
        parameters=(
            Pointer("x", ACTIVATION),
            Pointer("modulation", DType.FLOAT32),
            Integer("tokens"),
            Integer("width", divisible_by=16),
            Integer("columns", divisible_by=16),
            Integer("factor_at", divisible_by=16),
            Integer("shift_at", divisible_by=16),
            Pointer("y", ACTIVATION, written=True),
        ),
        sizes=("batch",),
        options={"CENTRED": centred},
        variants=tuple({"BLOCK": block, "EPSILON": _EPSILON} for block in _BLOCKS),
        grid=("tokens", "batch"),
        flops="8 * batch * tokens * width",
        moved_bytes="2 * itemsize * batch * tokens * width + 8 * batch * width",
    )
    launch = Launch(kernel, constants={"BLOCK": f"max({_BLOCKS[0]}, power(width))", "EPSILON": "epsilon"})
    conditions = tuple(Condition(f"{at} + width", "<=", "columns") for at in ("factor_at", "shift_at"))
    return Program(op=op, version=1, launches=(launch,), conditions=conditions)


PROGRAMS = (_program("AdaLayerNorm", "ada_layer_norm", 1), _program("AdaRMSNorm", "ada_rms_norm", 0))
