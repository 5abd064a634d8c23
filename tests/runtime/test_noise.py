"""The reference is torch itself: the same seeds, sizes around every boundary, streams of several draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vitrify.engine.errors import RequestError
from vitrify.runtime import noise

SEEDS = [0, 1, 7, 123456789, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, 2**64 - 1, -1, -5, -(2**63)]


def randn(shape: Any, seed: int) -> Any:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()


def check(got: Any, expected: Any) -> None:
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_size_to_70(seed: int) -> None:
    for size in range(71):
        check(noise.normal(size, seed), randn((size,), seed))


@pytest.mark.parametrize("shape", [(1, 16, 128, 128), (2, 8, 16, 16), (3, 5, 7, 11), (1_000_003,)])
@pytest.mark.parametrize("seed", [0, 2**33 + 17])
def test_large_shapes(shape: tuple[int, ...], seed: int) -> None:
    check(noise.normal(shape, seed), randn(shape, seed))


def test_consecutive_draws_keep_the_stream() -> None:
    """Odd small draws leave half a pair behind; large draws between them must not touch it."""
    ours, theirs = noise.Generator(11), torch.Generator("cpu").manual_seed(11)
    for size in (3, 1, 5, 20, 1, 16, 7, 0, 2, 33, 15, 15, 17, 1, 1):
        check(ours.normal(size), torch.randn(size, generator=theirs).numpy())


def test_only_the_low_32_bits_of_a_seed_matter() -> None:
    assert np.array_equal(noise.normal(40, 9), noise.normal(40, 2**32 + 9))
    assert not np.array_equal(noise.normal(40, 9), noise.normal(40, 10))


def test_numpy_integers_are_seeds() -> None:
    assert np.array_equal(noise.normal(4, np.int64(9)), noise.normal(4, 9))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, "1", None, True])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(RequestError, match="seed"):
        noise.normal(4, seed)  # type: ignore[arg-type]


def test_bad_shape() -> None:
    with pytest.raises(RequestError, match="extents"):
        noise.normal((2, -1), 0)
