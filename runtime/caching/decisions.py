"""When a step is computed: functions of a lane's explicit state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_policy import Cache, FirstBlock, Guards, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import SpecError
from vitrify.runtime.caching.state import DenoisingCacheState, Progress

__all__ = ["check_policy", "decide", "difference_of_batch", "differences", "interval_skips", "resample", "row_sums"]

Array = npt.NDArray[Any]

_CHUNK = 1 << 16
"""Elements compared at once: their difference stays in the processor's cache instead of a buffer as large as the residual."""


def decide(state: DenoisingCacheState, step: int) -> bool | None:
    """Whether `step` is computed; None: the first block's residual will say. Moves MagCache's sums on."""
    policy, progress = state.policy, state.progress
    if policy is None:
        return True
    if policy.compat == "max":  # that release knows no first step
        return None if policy.probes else not interval_skips(policy.decision, step)
    forced = not progress.positions or _guarded(policy.guards, progress, step, state.num_inference_steps)
    decision = policy.decision
    if isinstance(decision, Magnitude):
        return _drifted(decision, progress, step, _count(state), forced)
    if forced:
        return True
    if isinstance(decision, FirstBlock):
        return None
    if isinstance(decision, Mask):
        return decision.resolved(_count(state))[step]
    return not interval_skips(decision, step)


def interval_skips(decision: Any, step: int) -> bool:
    """TaylorSeer's documented schedule: step ≥ W and (step − W − 1) mod K ≠ 0."""
    if not isinstance(decision, Interval):
        return False
    warmup = decision.warmup_steps
    return step >= warmup and (step - warmup - 1) % decision.interval != 0


def row_sums(residual: Array, reference: Array) -> Array:
    """Σ|r − r_ref| and Σ|r_ref| of each row, [B, 2], from float32 sums within a chunk. residual, reference: [B, S, D]."""
    rows = zip(residual.reshape(len(residual), -1), reference.reshape(len(reference), -1), strict=True)
    return np.array([_sums(row, ref) for row, ref in rows])


def differences(sums: Array) -> tuple[float, ...]:
    """mean|r − r_ref| / mean|r_ref| of each row. sums: as `row_sums` gives them. NaN where both are zero."""
    return tuple(moved / size if size else float("inf") if moved else float("nan") for moved, size in sums.tolist())


def difference_of_batch(sums: Array, values: int) -> float:
    """mean|r − r_prev| / (mean|r_prev| + 1e-9) over the whole batch of `values` elements, as release 26.7 of MAX measures it."""
    moved, size = (float(total) for total in sums.sum(axis=0, dtype=np.float64))
    return (moved / values) / (size / values + 1e-9)


def resample(ratios: tuple[float, ...], count: int) -> tuple[float, ...]:
    """A table of ratios for `count` steps: the nearest entry of each, both ends kept."""
    if count == 1:
        return ratios[-1:]
    scale = (len(ratios) - 1) / (count - 1)
    nearest = np.round(np.arange(count, dtype=np.float32) * np.float32(scale)).astype(int)
    return tuple(ratios[i] for i in nearest)


def check_policy(policy: Cache, count: int | None, sigmas: Any) -> None:
    """Raise SpecError for a request that this policy cannot run on. count: steps; sigmas: of the request; None: unknown."""
    if policy.needs_count and count is None:
        raise SpecError(
            f"{policy}: needs the request's number of steps; set cache_state.num_inference_steps before the first step"
        )
    if isinstance(policy.decision, Mask) and count is not None:
        policy.decision.resolved(count)
    if policy.needs_sigmas:
        if sigmas is None:
            raise SpecError(f"{policy}: needs the request's sigmas; set cache_state.sigmas before the first step")
        corrected = isinstance(policy.predictor, Taylor) and policy.predictor.corrected
        if corrected and count is not None and len(sigmas) != count + 1:
            raise SpecError(
                f"{policy}: needs the sigmas of {count} steps and of the last one's end, {count + 1}, got {len(sigmas)}"
            )
        used = np.asarray(sigmas, np.float64)[: None if corrected else count]
        if not (np.diff(used) < 0).all():
            instead = "corrected=False" if corrected else "along='step'"
            raise SpecError(f"{policy}: needs sigmas that fall from step to step, got {used.tolist()}; use {instead}")


def _guarded(guards: Guards, progress: Progress, step: int, count: int | None) -> bool:
    return (
        (guards.warmup_steps is not None and step < guards.warmup_steps)
        or (guards.last_steps is not None and count is not None and step >= count - guards.last_steps)
        or (guards.max_consecutive_skips is not None and progress.skips_in_a_row >= guards.max_consecutive_skips)
        or (guards.max_skips is not None and progress.skips >= guards.max_skips)
        or (guards.only_above_steps is not None and count is not None and count <= guards.only_above_steps)
    )


def _drifted(decision: Magnitude, progress: Progress, step: int, count: int, forced: bool) -> bool:
    """MagCache's rule. A computed step starts the sums anew."""
    if step >= int(decision.retention_ratio * count + 0.5):
        progress.ratio *= resample(decision.ratios, count)[step]
        progress.error += abs(1.0 - progress.ratio)
        consecutive = progress.skips_in_a_row + 1
        if not forced and progress.error <= decision.threshold and consecutive <= decision.max_consecutive_skips:
            return False
    progress.ratio, progress.error = 1.0, 0.0
    return True


def _count(state: DenoisingCacheState) -> int:
    if state.num_inference_steps is None:
        raise SpecError("cache_state.num_inference_steps is not set, and this decision needs it")
    return state.num_inference_steps


def _sums(row: Array, reference: Array) -> tuple[float, float]:
    """Σ|r − r_ref| and Σ|r_ref|, in float32 within a chunk."""
    moved = size = 0.0
    for start in range(0, len(row), _CHUNK):
        ref = reference[start : start + _CHUNK].astype(np.float32, copy=False)
        apart = np.subtract(row[start : start + _CHUNK], ref, dtype=np.float32)
        moved += float(np.abs(apart, out=apart).sum())
        size += float(np.abs(ref, out=apart).sum())
    return moved, size
