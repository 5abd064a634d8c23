"""Masks whose gaps grow."""

from __future__ import annotations

import numpy as np
import pytest

from vitrify.engine.cache_policy import Mask
from vitrify.engine.cache_presets import named_cache
from vitrify.engine.growing_mask import growing_mask


def test_growing_masks() -> None:
    for steps in (5, 12, 28, 50):
        for computed in range(2, steps + 1):
            for warmup, growth in ((1, 1.0), (3, 1.2), (5, 1.5)):
                mask = growing_mask(steps, computed, warmup, growth)
                at = np.flatnonzero(mask)
                assert (len(mask), len(at)) == (steps, computed)
                assert at[: min(warmup, computed)].tolist() == list(range(min(warmup, computed)))
                if warmup < computed < steps - 1:
                    ended = np.flatnonzero(growing_mask(steps, computed, warmup, growth, steps - 2))
                    assert (len(ended), ended[-1]) == (computed, steps - 2)
                    assert np.diff(ended)[warmup - 1 :].tolist() == sorted(np.diff(ended)[warmup - 1 :].tolist())
    gaps = np.diff(np.flatnonzero(growing_mask(28, 11, 3, 1.3)))
    assert gaps[2:].tolist() == sorted(gaps[2:].tolist())
    assert gaps[-1] > gaps[2]
    even = np.diff(np.flatnonzero(growing_mask(28, 10, 1, 1.0)))
    assert set(even.tolist()) == {2, 3}


@pytest.mark.parametrize(
    ("steps", "computed"),
    [
        (20, [0, 1, 2, 4, 6, 9, 12, 16, 18]),
        (28, [0, 1, 2, 4, 6, 9, 12, 16, 20, 25]),
        (50, [0, 1, 2, 4, 6, 9, 12, 16, 20, 25, 30, 36, 42, 48]),
    ],
)
def test_fast_follows_from_the_number_of_steps(steps: int, computed: list[int]) -> None:
    decision = named_cache("fast").decision
    assert isinstance(decision, Mask)
    assert np.flatnonzero(decision.resolved(steps)).tolist() == computed
    assert computed[:-1] == [(i + 1) ** 2 // 4 for i in range(len(computed) - 1)]


def test_gaps_that_grow_evenly() -> None:
    for steps in range(1, 80):
        for repeats in range(1, 9):
            mask = Mask(repeats=repeats).resolved(steps)
            at = np.flatnonzero(mask)
            assert (len(mask), at[0]) == (steps, 0)
            gaps = np.diff(at)[:-1]  # the last may be cut short
            assert gaps.tolist() == [1 + i // repeats for i in range(len(gaps))]
            assert steps - 1 - at[-1] <= 2


@pytest.mark.parametrize(
    ("steps", "share", "computed"),
    [
        (28, 0.39, [0, 1, 2, 4, 6, 9, 12, 15, 18, 22, 26]),
        (28, 0.53, [0, 1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 17, 20, 23, 26]),
        (20, 0.39, [0, 1, 2, 4, 7, 10, 14, 18]),
        (9, 0.2, [0, 7]),
        (3, 0.5, [0, 1, 2]),
        (1, 0.5, [0]),
    ],
)
def test_a_share_of_the_steps(steps: int, share: float, computed: list[int]) -> None:
    assert np.flatnonzero(Mask(share=share).resolved(steps)).tolist() == computed


def test_every_share_of_every_number_of_steps() -> None:
    for steps in range(1, 51):
        for share in np.linspace(0.01, 0.99, 33):
            mask = Mask(share=float(share)).resolved(steps)
            assert len(mask) == steps
            assert mask[0]
            assert all(mask) or (mask[-2] and not mask[-1] and sum(mask) == max(round(float(share) * steps), 2))
