"""What a skipped step and a first block's probe cost, beside computed steps of the same request; in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitrify.bench.jobs import run_job
from vitrify.bench.loop import timed_pipeline
from vitrify.bench.measure import Clock, Summary, now, ratios, rest, summarise
from vitrify.engine.cache_policy import Cache, FirstBlock, Guards, Hold, Mask, Taylor
from vitrify.engine.denoiser import LOOP_SEGMENTS, RESIDUAL_DIFF
from vitrify.engine.errors import ParityError

__all__ = ["KINDS", "Skip", "SkipKind", "measure_skips"]

STEPS = 9
COMPUTED = (0, 1, 2, 4, 6, 8)
_PROMPT = "red apple"
_SEGMENTS = tuple(f"transformer/{segment}" for segment in LOOP_SEGMENTS)
_PROBE = f"step/{RESIDUAL_DIFF}"
_STATIC = Mask(tuple(step in COMPUTED for step in range(STEPS)))
# Everything is near enough, so that the guards alone decide: every other step after three.
_PROBED = FirstBlock(1e9)
_GUARDS = Guards(warmup_steps=3, max_consecutive_skips=1)


@dataclass(frozen=True)
class SkipKind:
    """One way to skip a step. allowed: what it may take beside its segments, in units of a computed step."""

    name: str
    cache: Cache
    allowed: float


KINDS: tuple[SkipKind, ...] = (
    SkipKind("output, hold", Cache(_STATIC, Hold("output")), 0.002),
    SkipKind("output, taylor 1", Cache(_STATIC, Taylor(1, "output")), 0.002),
    SkipKind("output, taylor 2", Cache(_STATIC, Taylor(2, "output")), 0.002),
    SkipKind("total residual, hold", Cache(_STATIC), 0.01),
    SkipKind("total residual, taylor 1", Cache(_STATIC, Taylor(1)), 0.01),
    SkipKind("total residual, taylor 2", Cache(_STATIC, Taylor(2)), 0.01),
    SkipKind("first block, hold", Cache(_PROBED, None, _GUARDS), 0.01),
    SkipKind("first block, taylor 1", Cache(_PROBED, Taylor(1), _GUARDS), 0.01),
    SkipKind("first block, taylor 2", Cache(_PROBED, Taylor(2), _GUARDS), 0.01),
)
_PROBE_ALLOWED = 0.01


@dataclass(frozen=True)
class Skip:
    """Medians over rounds. computed: seconds of a computed step's four segments. skipped: of a whole skipped step.

    segments: which ran in it. beside: what it takes beside them; probe: of it, the graph that measures; more: what a computed
    step takes beside its segments. All three in units of `computed`, request by request.
    """

    kind: str
    segments: tuple[str, ...]
    computed: Summary
    skipped: Summary
    beside: Summary
    probe: Summary | None
    more: Summary
    allowed: float

    @property
    def kept(self) -> bool:
        """Whether it stays within what it may take."""
        return self.beside.median <= self.allowed and (self.probe is None or self.probe.median <= _PROBE_ALLOWED)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kept": self.kept}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Skip:
        summaries = {name: Summary(**data[name]) for name in ("computed", "skipped", "beside", "more")}
        probe = None if data["probe"] is None else Summary(**data["probe"])
        return cls(data["kind"], tuple(data["segments"]), probe=probe, allowed=data["allowed"], **summaries)


def measure_skips(artifact: Path, *, rounds: int, threads: int) -> list[Skip]:
    """One request of every kind in each of `rounds` rounds. Raises BackendError with what the process said."""
    answer = run_job("vitrify.bench.skips", {"artifact": str(artifact), "rounds": rounds, "threads": threads}, threads=threads)
    return [Skip.from_json(one) for one in answer["skips"]]


@dataclass(frozen=True)
class _Step:
    """One step as it ran. seconds: all of it. graphs: graph → seconds in it."""

    computed: bool
    seconds: float
    graphs: Mapping[str, float]

    @property
    def segments(self) -> float:
        """Seconds in the denoiser's own graphs."""
        return sum(seconds for graph, seconds in self.graphs.items() if graph in _SEGMENTS)

    @property
    def beside(self) -> float:
        """Seconds in all else."""
        return self.seconds - self.segments


class _Requests:
    """Requests over one pipeline, watched step by step."""

    def __init__(self, artifact: Path, threads: int) -> None:
        self._clock = Clock()
        self._pipeline = timed_pipeline(artifact, threads, self._clock)
        self._run, self._steps = self._pipeline.run_denoising_step, list[_Step]()
        self._pipeline.run_denoising_step = self._timed  # type: ignore[method-assign]  # of this instance

    def _timed(self, step: int, cache_state: Any, device: Any, **kwargs: Any) -> Any:
        self._clock.take()
        start = now()
        noise_pred = self._run(step, cache_state, device, **kwargs)
        seconds = now() - start
        self._steps.append(_Step(bool(cache_state.computed), seconds, self._clock.take()))
        return noise_pred

    def steps(self, cache: Cache) -> list[_Step]:
        """The steps of one request from the fourth on, computed and skipped in turns."""
        from vitrify.runtime import PixelGenerationContext

        self._steps.clear()
        context = PixelGenerationContext(prompt=_PROMPT, seed=1, num_inference_steps=STEPS, true_cfg_scale=1.0, cache=cache)
        self._pipeline.denoise(self._pipeline.prepare_inputs(context))
        computed = tuple(number for number, step in enumerate(self._steps) if step.computed)
        if computed != COMPUTED:
            raise ParityError(f"{cache}: computed the steps {computed}, expected {COMPUTED}")
        return self._steps[3:]


def _measure_here(artifact: Path, rounds: int, threads: int) -> list[Skip]:
    requests = _Requests(artifact, threads)
    requests.steps(KINDS[0].cache)
    found: dict[str, list[list[_Step]]] = {kind.name: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            rest()
            found[kind.name].append(requests.steps(kind.cache))
    return [_skip(kind, found[kind.name]) for kind in KINDS]


def _skip(kind: SkipKind, requests: list[list[_Step]]) -> Skip:
    def seconds(computed: bool, of: Callable[[_Step], float]) -> list[float]:
        return [summarise([of(step) for step in steps if step.computed is computed]).median for steps in requests]

    whole = seconds(True, lambda step: step.segments)
    ran = {graph for steps in requests for step in steps if not step.computed for graph in step.graphs}
    return Skip(
        kind=kind.name,
        segments=tuple(graph.split("/")[1] for graph in _SEGMENTS if graph in ran),
        computed=summarise(whole),
        skipped=summarise(seconds(False, lambda step: step.seconds)),
        beside=summarise(ratios(seconds(False, lambda step: step.beside), whole)),
        probe=summarise(ratios(seconds(False, lambda step: step.graphs[_PROBE]), whole)) if _PROBE in ran else None,
        more=summarise(ratios(seconds(True, lambda step: step.beside), whole)),
        allowed=kind.allowed,
    )


def main() -> None:
    """The job that `measure_skips` runs."""
    given = json.loads(sys.argv[1])
    found = _measure_here(Path(given["artifact"]), given["rounds"], given["threads"])
    print(json.dumps({"skips": [one.to_json() for one in found]}))


if __name__ == "__main__":
    main()
