"""What a cache did in one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrify.engine.cache_policy import Cache
from vitrify.runtime.caching.state import DenoisingCacheState, StepRecord

__all__ = ["CacheReport", "report"]

_PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class CacheReport:
    """The steps of a request under a cache. lanes: the records of each lane, one a step. allocated_bytes: of its buffers."""

    cache: Cache
    lanes: tuple[tuple[StepRecord, ...], ...]
    allocated_bytes: int

    @property
    def computed(self) -> tuple[tuple[int, ...], ...]:
        """The computed steps of each lane."""
        return tuple(tuple(record.step for record in lane if record.computed) for lane in self.lanes)

    @property
    def differences(self) -> tuple[float, ...]:
        """All that the first block's probe measured, one a row."""
        return tuple(d for lane in self.lanes for record in lane for d in record.differences or ())

    @property
    def seconds_saved(self) -> float:
        """Skipped steps at what a computed one took on average, less what they took."""
        saved = 0.0
        for lane in self.lanes:
            full, rest = ([r.seconds for r in lane if r.computed is kind] for kind in (True, False))
            saved += len(rest) * float(np.mean(full)) - sum(rest) if full and rest else 0.0
        return saved

    @property
    def warning(self) -> str | None:
        """Said when every step was computed: the cache cost time and saved none."""
        if any(not record.computed for lane in self.lanes for record in lane):
            return None
        return f"the cache never fired: all {len(self.lanes[0])} steps were computed under {self.cache}{self._reason}"

    @property
    def _reason(self) -> str:
        """Why every step was computed, as far as it is known."""
        short = self.cache.guards.only_above_steps
        if short is not None and len(self.lanes[0]) <= short:
            return f"; its guard computes all of a request of {short} steps or fewer"
        steps = [max(r.differences) for lane in self.lanes for r in lane if r.differences and np.isfinite(r.differences).all()]
        return f"; a threshold above {min(steps):.4f} would have skipped a step" if steps else ""

    def summary(self) -> str:
        """A few lines: the cache with its guards, steps computed and skipped, differences, time saved."""
        lines = [f"cache: {self.cache}"]
        for number, (lane, steps) in enumerate(zip(self.lanes, self.computed, strict=True)):
            which = f"lane {number}: " if len(self.lanes) > 1 else ""
            lines.append(f"{which}computed {len(steps)} of {len(lane)} steps, skipped {len(lane) - len(steps)}: {_shown(lane)}")
        finite = [d for d in self.differences if np.isfinite(d)]
        if finite:
            at = ", ".join(f"{p} %: {v:.4f}" for p, v in zip(_PERCENTILES, np.percentile(finite, _PERCENTILES), strict=True))
            lines.append(f"differences of {len(finite)} probes ({at})")
        lines.append(f"time saved: {self.seconds_saved:.2f} s; cache memory: {self.allocated_bytes} bytes")
        return "\n".join([*lines, f"warning: {self.warning}"] if self.warning else lines)


def report(states: Sequence[DenoisingCacheState]) -> CacheReport | None:
    """What these lanes' cache did; None when no cache is on."""
    policy = states[0].policy
    if policy is None:
        return None
    return CacheReport(policy, tuple(tuple(s.progress.log) for s in states), sum(s.allocated_bytes for s in states))


def _shown(lane: Sequence[StepRecord]) -> str:
    return "".join("C" if record.computed else "-" for record in lane)
