"""How the Linear family runs on a GPU: one launch an op. Without a gate the rows of the batch are one long matrix."""

from __future__ import annotations

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Condition, Integer, Kernel, Launch, Pointer, Program

__all__ = ["PROGRAMS"]

_X, _WEIGHT = Pointer("x_0", ACTIVATION), Pointer("weight", ACTIVATION)
_BIAS = Pointer("bias", DType.FLOAT32)
_GATED = (Pointer("modulation", DType.FLOAT32), Pointer("residual", ACTIVATION))
_Y = Pointer("y", ACTIVATION, written=True)
_TOKENS, _IN_0, _IN_1, _OUT = Integer("tokens"), Integer("in_0", 16), Integer("in_1", 16), Integer("out", 16)
_GATE = (Integer("columns", 16), Integer("gate_at", 16))
_INSIDE = Condition("gate_at + out", "<=", "columns")


def _kernel(
    name: str, pointers: tuple[Pointer, ...], numbers: tuple[Integer, ...], features: str, written: int, *, gelu: int = 0
) -> Kernel:
    """features: the width of x. written: tensors shaped as y that are read or written."""
    return Kernel(
        name=name,
        function="vitrify.kernels.linear.kernel:linear",
        tiles="linear",
        parameters=(*pointers, *numbers, _Y),
        sizes=("batch",),
        options={"GELU": gelu},
        grid=("cdiv(tokens, BLOCK_M) * cdiv(out, BLOCK_N)", "batch"),
        flops=f"2 * batch * tokens * out * ({features})",
        moved_bytes=f"itemsize * (batch * tokens * ({features}) + out * ({features}) + {written} * batch * tokens * out)",
        tensor_core=True,
    )


def _plain(op: str, name: str, pointers: tuple[Pointer, ...], *, gelu: int = 0) -> Program:
    kernel = _kernel(name, pointers, (_TOKENS, _IN_0, _OUT), "in_0", 1, gelu=gelu)
    arguments = {"x_0": "x", "in_0": "in", "tokens": "batch * tokens", "batch": "1"}
    return Program(op=op, version=1, launches=(Launch(kernel, arguments),))


PROGRAMS = (
    _plain("Linear", "linear", (_X, _WEIGHT, _BIAS)),
    _plain("LinearNoBias", "linear_no_bias", (_X, _WEIGHT)),
    _plain("LinearGelu", "linear_gelu", (_X, _WEIGHT, _BIAS), gelu=1),
    Program(
        op="LinearGatedResidual",
        version=1,
        conditions=(_INSIDE,),
        launches=(
            Launch(
                _kernel("linear_gated_residual", (_X, _WEIGHT, _BIAS, *_GATED), (_TOKENS, _IN_0, _OUT, *_GATE), "in_0", 2),
                {"x_0": "x", "in_0": "in"},
            ),
        ),
    ),
    Program(
        op="Linear2GatedResidual",
        version=1,
        conditions=(_INSIDE,),
        launches=(
            Launch(
                _kernel(
                    "linear_2_gated_residual",
                    (_X, Pointer("x_1", ACTIVATION), _WEIGHT, _BIAS, *_GATED),
                    (_TOKENS, _IN_0, _IN_1, _OUT, *_GATE),
                    "in_0 + in_1",
                    2,
                )
            ),
        ),
    ),
)
