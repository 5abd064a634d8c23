"""The Taylor family as data: Newton's divided differences of orders 1 and 2."""

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import OpContract

__all__ = ["CONTRACTS"]


def _held(name: str) -> TensorSpec:
    return TensorSpec(name, DType.FLOAT32, ("batch", "tokens", "width"))


def _contract(name: str, summary: str, inputs: tuple[TensorSpec, ...], outputs: tuple[str, ...]) -> OpContract:
    return OpContract(
        name=name,
        version=1,
        summary=summary,
        inputs=inputs,
        outputs=tuple(map(_held, outputs)),
        tolerances={DType.FLOAT32: 1e-6, DType.FLOAT16: 1e-3, DType.BFLOAT16: 6e-3},
        awkward={"batch": (1, 3), "tokens": (1, 63, 123, 1025), "width": (1, 31, 192, 3072)},
    )


_Y, _F0, _F1, _F2 = map(_held, ("y", "f0", "f1", "f2"))


def _scalars(name: str, count: int) -> TensorSpec:
    return TensorSpec(name, DType.FLOAT32, (count,))


CONTRACTS = (
    _contract("TaylorUpdate1", "the factors of order 1 after a computed step", (_Y, _F0, _scalars("inverse", 1)), ("g0", "g1")),
    _contract(
        "TaylorUpdate2",
        "the factors of order 2 after a computed step",
        (_Y, _F0, _F1, _scalars("inverse", 2)),
        ("g0", "g1", "g2"),
    ),
    _contract("TaylorPredict1", "what a skipped step would give, order 1", (_F0, _F1, _scalars("ahead", 1)), ("y",)),
    _contract("TaylorPredict2", "what a skipped step would give, order 2", (_F0, _F1, _F2, _scalars("ahead", 2)), ("y",)),
)
