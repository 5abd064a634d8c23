"""The settings that `vitrify tune` tries."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import Cache, Decision, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Predictor, Taylor
from vitrify.engine.growing_mask import growing_mask
from vitrify.runtime.tuning.cost import computed_steps

__all__ = ["known_beforehand", "measured", "without_a_step"]

_CORRECTED = Taylor(1, "output", corrected=True)
_PREDICTORS: tuple[Predictor, ...] = (
    _CORRECTED,
    Taylor(1, "output"),
    Taylor(2, "output"),
    Taylor(1, "residual"),
    Hold("residual"),
)
_PROBED_PREDICTORS: tuple[Predictor, ...] = (_CORRECTED, Taylor(1, "output"), Taylor(1, "residual"), Hold("residual"))
_INTERVALS = (2, 3, 4, 5)
_WARMUPS = (1, 3, 5)
_MASK_PREDICTORS: tuple[Predictor, ...] = (Taylor(1, "output"), Taylor(1, "residual"))
_GROWTHS = (1.2, 1.4)
_SHARES = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)
_MASK_WARMUPS = (3, 5)
_THRESHOLDS = (0.4, 0.3, 0.24, 0.18, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04)
_GUARDS = (Guards(warmup_steps=4, max_consecutive_skips=3), Guards(warmup_steps=4, last_steps=2, max_consecutive_skips=2))
_DRIFTS = (0.24, 0.12, 0.06, 0.03)


def known_beforehand(steps: int, calibration: Calibration | None) -> list[tuple[Cache, tuple[int, ...]]]:
    """Settings whose computed steps are the same in every request, with those steps; each different run once.

    calibration: brings in MagCache.
    """
    found: dict[tuple[tuple[int, ...], Predictor], Cache] = {}
    for cache in _static(steps, calibration):
        computed = computed_steps(cache, steps)
        if computed is not None and cache.predictor is not None and len(computed) < steps:
            found.setdefault((computed, cache.predictor), cache)
    return [(cache, computed) for (computed, _), cache in found.items()]


def _static(steps: int, calibration: Calibration | None) -> Iterator[Cache]:
    decisions: list[Decision] = [Interval(interval, warmup) for warmup in _WARMUPS for interval in _INTERVALS if warmup < steps]
    if calibration is not None:
        decisions += [Magnitude(calibration.ratios, drift, skips) for drift in _DRIFTS for skips in (2, 3, 5)]
    yield from (Cache(decision, predictor) for decision in decisions for predictor in _PREDICTORS)
    for computed in sorted({max(2, round(share * steps)) for share in _SHARES}):
        for warmup, growth in product(_MASK_WARMUPS, _GROWTHS):
            if warmup < computed <= steps:
                mask = Mask(growing_mask(steps, computed, warmup, growth))
                yield from (Cache(mask, predictor) for predictor in _MASK_PREDICTORS)
            if warmup < computed < steps - 1:  # what follows the last computed step is never corrected: a single step then
                yield Cache(Mask(growing_mask(steps, computed, warmup, growth, steps - 2)), _CORRECTED)


def measured() -> list[Cache]:
    """Settings that decide by the first block in each request, the boldest first."""
    return [Cache(FirstBlock(t), p, g) for t in _THRESHOLDS for g in _GUARDS for p in _PROBED_PREDICTORS]


def without_a_step(cache: Cache, computed: tuple[int, ...], steps: int) -> list[Cache]:
    """`cache` with one of its computed steps less, as masks; the first always stays."""
    less = [[s for s in computed if s != gone] for gone in computed[1:]]
    return [Cache(Mask(tuple(step in kept for step in range(steps))), cache.predictor) for kept in less]
