"""AdaLayerNorm and AdaRMSNorm: reference, body and native kernel against float64, at every level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compare import assert_close
from tests.kernels.op_models import one_op_model, session
from tests.kernels.op_runs import Array, native, others
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.engine.native_kernel import NativeKernel
from vitrify.kernels import registry

OPS = ("AdaLayerNorm", "AdaRMSNorm")
TOLERANCE = registry.contract("AdaLayerNorm").tolerances[DType.FLOAT32]
SIZES = [(1, 1, 1), (3, 1, 31), (2, 63, 192), (1, 123, 1024), (2, 1025, 65), (1, 63, 3073), (3, 7, 4)]


def attributes(width: int) -> dict[str, Any]:
    """The shift lies before the factor, with columns around both."""
    return {"factor_at": width + 4, "shift_at": 3, "epsilon": 1e-6}


def inputs(size: tuple[int, int, int]) -> dict[str, Array]:
    batch, tokens, width = size
    rng = np.random.default_rng(size)
    x = rng.standard_normal(size) * np.linspace(0.2, 30, tokens)[None, :, None] + np.linspace(-2, 2, batch)[:, None, None]
    # Columns that are not the op's would be noticed.
    modulation = np.full((batch, 2 * width + 6), np.nan)
    modulation[:, 3 : 3 + width] = rng.standard_normal((batch, width))
    modulation[:, width + 4 : 2 * width + 4] = 1 + 0.3 * rng.standard_normal((batch, width))
    return {"x": x.astype(np.float32), "modulation": modulation.astype(np.float32)}


def exact(op: str, given: dict[str, Array]) -> Array:
    """In float64, by numpy: nothing of the reference's."""
    x, modulation = (array.astype(np.float64) for array in given.values())
    width = x.shape[-1]
    if op == "AdaLayerNorm":
        x = x - x.mean(-1, keepdims=True)
    factor, shift = modulation[:, None, width + 4 : 2 * width + 4], modulation[:, None, 3 : 3 + width]
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * factor + shift)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_kernel_is_right_at_every_level(op: str, size: tuple[int, int, int], cpu_level: str) -> None:
    given = inputs(size)
    assert_close(native(op, given, attributes(size[2]))[0], exact(op, given), TOLERANCE, f"{op} {cpu_level}")


@pytest.mark.parametrize("op", OPS)
def test_reference_body_and_kernel_agree_everywhere(op: str) -> None:
    for size in SIZES:
        given = inputs(size)
        for who, (y,) in others(op, given, attributes(size[2])).items():
            assert_close(y, exact(op, given), TOLERANCE, f"{op} {size} {who}")


@pytest.mark.parametrize("op", OPS)
def test_the_threads_and_the_batch_change_no_bit(op: str, cpu_level: str) -> None:
    given = inputs((3, 700, 63))
    (alone,) = native(op, given, attributes(63))
    for threads in (2, 3, 7):
        assert native(op, given, attributes(63), threads=threads)[0].tobytes() == alone.tobytes(), (cpu_level, threads)
    for row in range(3):
        one = {name: array[row : row + 1] for name, array in given.items()}
        assert native(op, one, attributes(63))[0].tobytes() == alone[row : row + 1].tobytes(), (cpu_level, row)


def test_a_mean_far_from_zero_costs_no_accuracy(cpu_level: str) -> None:
    """A mean of 3e4 deviations: a single pass in float32 would lose every digit, one with a rounded mean four of them."""
    given = inputs((1, 9, 1000))
    given["x"] = (np.random.default_rng(0).standard_normal((1, 9, 1000)) + 3e4).astype(np.float32)
    assert_close(native("AdaLayerNorm", given, attributes(1000))[0], exact("AdaLayerNorm", given), TOLERANCE, cpu_level)


def test_a_constant_row_gives_the_shift(cpu_level: str) -> None:
    given = inputs((2, 3, 37))
    given["x"][:] = 7.25
    (y,) = native("AdaLayerNorm", given, attributes(37))
    assert np.array_equal(y, np.broadcast_to(given["modulation"][:, None, 3:40], y.shape)), cpu_level


@pytest.mark.parametrize("hostile", [np.nan, np.inf])
def test_a_hostile_value_reaches_its_row_and_no_other(hostile: float, cpu_level: str) -> None:
    given = inputs((1, 30, 70))
    (clean,) = native("AdaLayerNorm", given, attributes(70))
    given["x"][0, 7, 69] = hostile
    (y,) = native("AdaLayerNorm", given, attributes(70))
    assert np.isnan(y[0, 7]).all(), cpu_level
    assert np.array_equal(np.delete(y, 7, axis=1), np.delete(clean, 7, axis=1)), cpu_level


@pytest.mark.parametrize("size", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_an_empty_dimension(op: str, size: tuple[int, int, int]) -> None:
    given = {"x": np.zeros(size, np.float32), "modulation": np.zeros((size[0], 2 * size[2] + 6), np.float32)}
    assert native(op, given, attributes(size[2]))[0].shape == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modulation": (3, 14)}, "AdaLayerNorm: modulation has 3 along batch, expected 2"),
        ({"modulation": (2, 11)}, r"modulation has 11 along columns, expected at least 8 \(factor_at\) \+ 4 \(width\)"),
        ({"modulation": (2, 3)}, r"modulation has 3 along columns, expected at least 8 \(factor_at\)"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    given = inputs((2, 3, 4)) | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(BackendError, match=message):
        native("AdaLayerNorm", given, attributes(4))


def test_a_wrong_rank_or_dtype_is_named() -> None:
    kernel = NativeKernel("AdaLayerNorm", [None, None], attributes=attributes(4))
    x, modulation = inputs((2, 3, 4)).values()
    for wrong, message in ((x[0], "has rank 2, expected 3"), (x.astype(np.float64), "has dtype float64, which it may not have")):
        with pytest.raises(BackendError, match=f"AdaLayerNorm: x {message}"):
            kernel.run([wrong, modulation], [np.zeros_like(x)])


@pytest.mark.parametrize("op", OPS)
def test_a_place_before_the_first_column_is_said_when_the_session_opens(op: str) -> None:
    model = one_op_model(op, attributes=attributes(4) | {"shift_at": -1})
    with pytest.raises(Exception, match="attribute shift_at is -1, expected 0 or more") as raised:
        session(model.SerializeToString(), library=True)
    assert type(raised.value).__module__.startswith("onnxruntime")
