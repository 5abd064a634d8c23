"""How the Taylor family runs on a GPU: one launch an op."""

from __future__ import annotations

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Integer, Kernel, Launch, Pointer, Program

__all__ = ["PROGRAMS"]

_MODULE = "vitrify.kernels.taylor.kernel"
_ELEMENTS = Integer("elements", divisible_by=16)


def _factor(name: str, *, written: bool = False) -> Pointer:
    return Pointer(name, DType.FLOAT32, written=written)


def _update(order: int) -> Program:
    kernel = Kernel(
        name=f"taylor_update_{order}",
        function=f"{_MODULE}:taylor_update",
        tiles="pointwise",
        parameters=(
            Pointer("y", ACTIVATION),
            *(_factor(f"f{i}") for i in range(order)),
            _factor("inverse"),
            _ELEMENTS,
            *(_factor(f"g{i}", written=True) for i in range(order + 1)),
        ),
        options={"ORDER": order},
        grid=("cdiv(elements, BLOCK)",),
        flops=f"{2 * order} * elements",
        moved_bytes=f"elements * (itemsize + 4 * {2 * order + 1})",
    )
    return _program(f"TaylorUpdate{order}", kernel)


def _predict(order: int) -> Program:
    kernel = Kernel(
        name=f"taylor_predict_{order}",
        function=f"{_MODULE}:taylor_predict",
        tiles="pointwise",
        parameters=(
            *(_factor(f"f{i}") for i in range(order + 1)),
            _factor("ahead"),
            _ELEMENTS,
            Pointer("y", ACTIVATION, written=True),
        ),
        options={"ORDER": order},
        grid=("cdiv(elements, BLOCK)",),
        flops=f"{2 * order} * elements",
        moved_bytes=f"elements * (itemsize + 4 * {order + 1})",
    )
    return _program(f"TaylorPredict{order}", kernel)


def _program(op: str, kernel: Kernel) -> Program:
    return Program(op=op, version=1, launches=(Launch(kernel, {"elements": "batch * tokens * width"}),))


PROGRAMS = (_update(1), _update(2), _predict(1), _predict(2))
