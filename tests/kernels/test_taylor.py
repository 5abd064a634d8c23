"""The Taylor family: reference, body and native kernel against float64 and against polynomials, at every level."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_close
from tests.kernels.op_runs import Array, native, others
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.kernels import registry

OPS = ("TaylorUpdate1", "TaylorUpdate2", "TaylorPredict1", "TaylorPredict2")
TOLERANCE = registry.contract("TaylorUpdate1").tolerances[DType.FLOAT32]
SIZES = [(1, 1, 1), (3, 1, 31), (2, 63, 192), (1, 123, 1024), (2, 1025, 65), (3, 7, 4)]
SCALARS = {"inverse": (-0.2, 0.125), "ahead": (3.0, 8.0)}


def inputs(op: str, size: tuple[int, int, int]) -> dict[str, Array]:
    rng = np.random.default_rng([OPS.index(op), *size])
    order = int(op[-1])
    return {
        tensor.name: np.array(SCALARS[tensor.name][:order], np.float32)
        if tensor.name in SCALARS
        else rng.standard_normal(size, dtype=np.float32)
        for tensor in registry.contract(op).inputs
    }


def exact(op: str, given: dict[str, Array]) -> list[Array]:
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    if op.startswith("TaylorUpdate"):
        factors = [wide["y"]]
        for number, inverse in enumerate(wide["inverse"]):
            factors.append((factors[-1] - wide[f"f{number}"]) * inverse)
        return factors
    factors = [array for name, array in wide.items() if name != "ahead"]
    products = np.cumprod(wide["ahead"])
    return [np.asarray(factors[0] + sum(f * p for f, p in zip(factors[1:], products, strict=True)))]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_kernel_is_right_at_every_level(op: str, size: tuple[int, int, int], cpu_level: str) -> None:
    given = inputs(op, size)
    for y, expected in zip(native(op, given, {}), exact(op, given), strict=True):
        assert_close(y, expected, TOLERANCE, f"{op} {cpu_level}")


@pytest.mark.parametrize("op", OPS)
def test_reference_body_and_kernel_agree_everywhere(op: str) -> None:
    for size in SIZES:
        given = inputs(op, size)
        for who, outputs in others(op, given, {}).items():
            for y, expected in zip(outputs, exact(op, given), strict=True):
                assert_close(y, expected, TOLERANCE, f"{op} {size} {who}")


def test_a_parabola_is_continued_over_uneven_steps(cpu_level: str) -> None:
    """What order 2 promises, from its own updates alone: nothing of the formulas above."""
    rng = np.random.default_rng(3)
    coefficients = rng.standard_normal((3, 2, 5, 33))
    steps, wanted = (2.0, 3.0, 7.0), 9.0

    def at(step: float) -> Array:
        return np.asarray(coefficients[0] + coefficients[1] * step + coefficients[2] * step * step).astype(np.float32)

    one = np.array([1 / (steps[1] - steps[0])], np.float32)
    f0, f1 = native("TaylorUpdate1", {"y": at(steps[1]), "f0": at(steps[0]), "inverse": one}, {})
    two = np.array([1 / (steps[2] - steps[1]), 1 / (steps[2] - steps[0])], np.float32)
    g0, g1, g2 = native("TaylorUpdate2", {"y": at(steps[2]), "f0": f0, "f1": f1, "inverse": two}, {})
    ahead = np.array([wanted - steps[2], wanted - steps[1]], np.float32)
    (y,) = native("TaylorPredict2", {"f0": g0, "f1": g1, "f2": g2, "ahead": ahead}, {})
    assert_close(y, at(wanted), 5e-6, cpu_level)
    (line,) = native("TaylorPredict1", {"f0": g0, "f1": g1, "ahead": ahead[:1]}, {})
    assert np.abs(line - at(wanted)).max() > 1, "a parabola that a line continues as well would show nothing"


@pytest.mark.parametrize("op", OPS)
def test_the_threads_change_no_bit(op: str, cpu_level: str) -> None:
    given = inputs(op, (3, 700, 63))
    alone = [y.tobytes() for y in native(op, given, {})]
    for threads in (2, 3, 7):
        assert [y.tobytes() for y in native(op, given, {}, threads=threads)] == alone, (cpu_level, threads)


@pytest.mark.parametrize("size", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_an_empty_dimension(op: str, size: tuple[int, int, int]) -> None:
    assert all(y.shape == size for y in native(op, inputs(op, size), {}))


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("TaylorUpdate1", {"f0": (2, 3, 5)}, "TaylorUpdate1: f0 has 5 along width, expected 4"),
        ("TaylorUpdate2", {"inverse": (1,)}, "TaylorUpdate2: inverse has 1 along 2, expected 2"),
        ("TaylorPredict1", {"ahead": (2,)}, "TaylorPredict1: ahead has 2 along 1, expected 1"),
        ("TaylorPredict2", {"f2": (1, 3, 4)}, "TaylorPredict2: f2 has 1 along batch, expected 2"),
    ],
)
def test_wrong_shapes_are_named(op: str, change: dict[str, tuple[int, ...]], message: str) -> None:
    given = inputs(op, (2, 3, 4)) | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(BackendError, match=message):
        native(op, given, {})
