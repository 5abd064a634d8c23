"""What a cached request costs: how often each of the engine's graphs runs, times what a run takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from vitrify.engine.cache_policy import Cache
from vitrify.engine.denoiser import LOOP_SEGMENTS
from vitrify.runtime.caching.decisions import decide
from vitrify.runtime.caching.state import DenoisingCacheState
from vitrify.runtime.guidance import Lane
from vitrify.runtime.tuning.requests import Requests

__all__ = ["computed_steps", "request_seconds", "segment_seconds"]

_RUNS = 5


def segment_seconds(requests: Requests) -> dict[str, float]:
    """Segment → seconds of one run over all lanes of a request, the shortest of a few."""
    seconds = dict.fromkeys(LOOP_SEGMENTS, 0.0)

    def observe(step: int, lane: Lane) -> None:
        if step < requests.steps - 1:
            return
        for segment in LOOP_SEGMENTS:
            seconds[segment] += min(_timed(lane, segment) for _ in range(_RUNS))

    requests.pipe.denoise(requests.prepared(0), observe=observe)
    return seconds


def _timed(lane: Lane, segment: str) -> float:
    start = time.perf_counter()
    lane.plan.run(segment)
    return time.perf_counter() - start


def computed_steps(cache: Cache, steps: int) -> tuple[int, ...] | None:
    """Which of `steps` steps a cache computes; None where the first block decides that in each request."""
    if cache.probes:
        return None
    state = DenoisingCacheState(policy=cache, num_inference_steps=steps)
    progress, computed = state.progress, []
    for step in range(steps):
        if decide(state, step):
            computed.append(step)
            progress.positions, progress.skips_in_a_row = [step], 0
        else:
            progress.skips_in_a_row += 1
            progress.skips += 1
    return tuple(computed)


def request_seconds(cache: Cache, lanes: Sequence[int], steps: int, seconds: Mapping[str, float]) -> float:
    """Seconds of the graphs' runs in one request. lanes: computed steps of each lane. seconds: of `segment_seconds`."""
    full = sum(seconds[segment] for segment in LOOP_SEGMENTS)
    held = "residual" if cache.predictor is None or cache.predictor.of is None else cache.predictor.of
    runs = ["embed", "first"] if cache.probes else ["embed"] if held == "residual" else []
    runs += ["finish"] if held == "residual" else []
    skipped = sum(seconds[segment] for segment in runs)
    return sum(computed * full + (steps - computed) * skipped for computed in lanes) / len(lanes)
