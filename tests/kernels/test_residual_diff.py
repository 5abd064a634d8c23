"""ResidualDiff: reference, function body and native kernel against one float64 reference, and against each other."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from tests.compare import assert_close
from tests.kernels.op_models import one_op_model, session
from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.kernels import registry
from vitrify.kernels.residual_diff.contract import RESIDUAL_DIFF

Array = NDArray[np.float32]

TOLERANCE = RESIDUAL_DIFF.tolerances[DType.FLOAT32]
# The contract leaves room for runtimes that add a row up plainly in float32; our kernel promises more.
KERNEL_TOLERANCE = 2e-7
SIZES = list(itertools.product(*(RESIDUAL_DIFF.awkward[dim] for dim in ("batch", "tokens", "width"))))
# Beyond it the interpreted runtimes only repeat what the smaller sizes have shown.
SMALL = [size for size in SIZES if np.prod(size) <= 400_000]


def inputs(size: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng([seed, *size])
    h1, h0, r_ref = (rng.standard_normal(size, dtype=np.float32) for _ in range(3))
    # As in use: the reference lies near the residual, and rows differ in scale.
    r_ref = (h1 - h0 + 0.1 * r_ref) * np.linspace(0.5, 2, size[0], dtype=np.float32).reshape(-1, 1, 1)
    return [h1, h0, r_ref]


def exact(h1: Array, h0: Array, r_ref: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """In float64, but for r itself: the sums are those of the float32 residual that is handed on."""
    r = h1.astype(np.float64) - h0
    stored = (h1 - h0).astype(np.float64)
    sums = np.stack([np.abs(stored - r_ref).sum((1, 2)), np.abs(r_ref.astype(np.float64)).sum((1, 2))], axis=1)
    return r, sums


def native(h1: Array, h0: Array, r_ref: Array) -> tuple[Array, Array]:
    """The kernel through its C entry, into outputs full of NaN."""
    r, sums = np.full_like(h1, np.nan), np.full((h1.shape[0], 2), np.nan, np.float32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (h1, h0, r_ref, r, sums)]
    native_library.load().vitrify_residual_diff_f32(*pointers, *(ctypes.c_int64(n) for n in h1.shape))
    return r, sums


@pytest.fixture(params=native_library.cpu_levels())
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    native_library.force_cpu_level(request.param)
    yield request.param
    native_library.force_cpu_level(None)


@pytest.fixture(scope="module")
def body_session() -> onnxruntime.InferenceSession:
    return session(one_op_model("ResidualDiff").SerializeToString(), library=False)


def session_with_library() -> onnxruntime.InferenceSession:
    return session(one_op_model("ResidualDiff", with_body=False).SerializeToString(), library=True)


@pytest.fixture(scope="module")
def kernel_session() -> onnxruntime.InferenceSession:
    return session_with_library()


def feed(arrays: list[Array]) -> dict[str, Array]:
    return dict(zip(("h1", "h0", "r_ref"), arrays, strict=True))


def check(results: tuple[Array, Array], arrays: list[Array], what: str, tolerance: float = TOLERANCE) -> None:
    for name, actual, expected in zip(("r", "sums"), results, exact(*arrays), strict=True):
        assert_close(actual, expected, tolerance, f"{what} {name}")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_reference_is_right(size: tuple[int, ...]) -> None:
    arrays = inputs(size)
    r, sums = registry.reference("ResidualDiff")(*map(torch.from_numpy, arrays))
    check((r.numpy(), sums.numpy()), arrays, "reference")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_body_is_right_in_onnxruntime(size: tuple[int, ...], body_session: onnxruntime.InferenceSession) -> None:
    arrays = inputs(size)
    check(tuple(body_session.run(None, feed(arrays))), arrays, "body")


@pytest.mark.parametrize("size", SMALL, ids=str)
def test_body_is_right_in_the_onnx_reference_evaluator(size: tuple[int, ...]) -> None:
    arrays = inputs(size)
    check(tuple(ReferenceEvaluator(one_op_model("ResidualDiff")).run(None, feed(arrays))), arrays, "evaluator")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_is_right_at_every_level(size: tuple[int, ...], cpu_level: str) -> None:
    arrays = inputs(size)
    r, sums = native(*arrays)
    check((r, sums), arrays, cpu_level, KERNEL_TOLERANCE)
    assert np.array_equal(r, arrays[0] - arrays[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_runs_in_onnxruntime(size: tuple[int, ...], kernel_session: onnxruntime.InferenceSession) -> None:
    arrays = inputs(size)
    results = kernel_session.run(None, feed(arrays))
    for actual, expected in zip(results, native(*arrays), strict=True):
        assert np.array_equal(actual, expected)


def test_every_level_gives_the_same_bits() -> None:
    arrays = inputs((3, 1025, 192))
    results = []
    for level in native_library.cpu_levels():
        native_library.force_cpu_level(level)
        results.append(native(*arrays))
    native_library.force_cpu_level(None)
    for r, sums in results[1:]:
        assert r.tobytes() == results[0][0].tobytes()
        assert sums.tobytes() == results[0][1].tobytes()


def test_rows_do_not_touch_each_other(cpu_level: str) -> None:
    """A row's result is the same at any place in any batch, bit for bit."""
    arrays = inputs((3, 123, 192))
    r, sums = native(*arrays)
    for row in range(3):
        alone = native(*(np.ascontiguousarray(array[row : row + 1]) for array in arrays))
        assert alone[0].tobytes() == r[row : row + 1].tobytes(), cpu_level
        assert alone[1].tobytes() == sums[row : row + 1].tobytes(), cpu_level


def test_more_rows_than_pieces_in_flight() -> None:
    arrays = inputs((700, 1, 31))
    check(native(*arrays), arrays, "700 rows", KERNEL_TOLERANCE)


def test_no_tokens_give_zero_sums(kernel_session: onnxruntime.InferenceSession) -> None:
    r, sums = kernel_session.run(None, feed(inputs((2, 0, 31))))
    assert r.shape == (2, 0, 31)
    assert np.array_equal(sums, np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("hostile", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_hostile_value_reaches_its_row_and_no_other(hostile: float, where: int, cpu_level: str) -> None:
    arrays = inputs((2, 63, 31))
    clean = native(*arrays)[1]
    arrays[where][1, 62, 30] = hostile
    sums = native(*arrays)[1]
    assert np.array_equal(sums[0], clean[0]), cpu_level
    assert not np.isfinite(sums[1, 0]), cpu_level


def test_sums_survive_cancellation() -> None:
    """One large value and a million small ones: float32 added one by one would lose the small."""
    h1 = np.full((1, 1025, 1025), 1e-4, np.float32)
    h1[0, 0, 0] = 1e4
    arrays = [h1, np.zeros_like(h1), np.zeros_like(h1)]
    _r, sums = native(*arrays)
    assert_close(sums[:, 0], [np.abs(h1.astype(np.float64)).sum()], 1e-6, "sum")
