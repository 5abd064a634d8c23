"""The settings that `vitrify tune` tries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import Cache, Decision, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Predictor, Taylor
from vitrify.runtime.tuning.cost import computed_steps

__all__ = ["growing_mask", "known_beforehand", "measured", "without_a_step"]

_PREDICTORS: tuple[Predictor, ...] = (
    Taylor(1, "output"),
    Taylor(1, "output", "sigma"),
    Taylor(2, "output"),
    Taylor(1, "residual"),
    Hold("residual"),
)
_PROBED_PREDICTORS: tuple[Predictor, ...] = (Hold("residual"), Taylor(1, "residual"), Taylor(1, "output"))
_INTERVALS = (2, 3, 4, 5)
_WARMUPS = (1, 3, 5)
_MASK_PREDICTORS = _PREDICTORS[:2] + _PREDICTORS[3:4]
_GROWTHS = (1.2, 1.4)
_SHARES = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)
_MASK_WARMUPS = (3, 5)
_THRESHOLDS = (0.4, 0.3, 0.24, 0.18, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04)
_GUARDS = (Guards(warmup_steps=4, max_consecutive_skips=3), Guards(warmup_steps=4, last_steps=2, max_consecutive_skips=2))
_DRIFTS = (0.24, 0.12, 0.06, 0.03)


def growing_mask(steps: int, computed: int, warmup: int, growth: float) -> Mask:
    """The first `warmup` steps, then gaps that grow: the i-th further step lies at a share (i / n) ** growth of what is left.

    computed: steps in all, at most `steps`. growth: 1 gives even gaps.
    """
    first = min(warmup, computed, steps)
    left = computed - first
    places = [first - 1]
    for i in range(1, left + 1):
        place = first - 1 + round((steps - first + 1) * (i / (left + 1)) ** growth)
        places.append(min(max(place, places[-1] + 1), steps - 1 - (left - i)))  # room for those that follow
    gaps = sorted(after - before for before, after in pairwise([*places, steps]))  # rounding may have swapped neighbours
    chosen = {*range(first), *accumulate(gaps[:-1], initial=first - 1)}
    return Mask(tuple(step in chosen for step in range(steps)))


def known_beforehand(steps: int, calibration: Calibration | None) -> list[tuple[Cache, tuple[int, ...]]]:
    """Settings whose computed steps are the same in every request, with those steps; each different run once.

    calibration: brings in MagCache.
    """
    found: dict[tuple[tuple[int, ...], Predictor], Cache] = {}
    for decision in _static_decisions(steps, calibration):
        for predictor in _MASK_PREDICTORS if isinstance(decision, Mask) else _PREDICTORS:
            cache = Cache(decision, predictor)
            computed = computed_steps(cache, steps)
            if computed is not None and len(computed) < steps:
                found.setdefault((computed, predictor), cache)
    return [(cache, computed) for (computed, _), cache in found.items()]


def _static_decisions(steps: int, calibration: Calibration | None) -> Iterator[Decision]:
    for warmup in _WARMUPS:
        yield from (Interval(interval, warmup) for interval in _INTERVALS if warmup < steps)
    for computed in sorted({max(2, round(share * steps)) for share in _SHARES}):
        yield from (growing_mask(steps, computed, w, g) for w in _MASK_WARMUPS for g in _GROWTHS if w < computed <= steps)
    if calibration is not None:
        yield from (Magnitude(calibration.ratios, drift, skips) for drift in _DRIFTS for skips in (2, 3, 5))


def measured() -> list[Cache]:
    """Settings that decide by the first block in each request, the boldest first."""
    return [Cache(FirstBlock(t), p, g) for t in _THRESHOLDS for g in _GUARDS for p in _PROBED_PREDICTORS]


def without_a_step(cache: Cache, computed: tuple[int, ...], steps: int) -> list[Cache]:
    """`cache` with one of its computed steps less, as masks; the first always stays."""
    less = [[s for s in computed if s != gone] for gone in computed[1:]]
    return [Cache(Mask(tuple(step in kept for step in range(steps))), cache.predictor) for kept in less]
