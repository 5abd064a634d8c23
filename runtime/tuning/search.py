"""The fastest setting that keeps a bound: cheap ones first, each given up as soon as the bound is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import Cache
from vitrify.engine.errors import SpecError
from vitrify.runtime.output import NotFiniteError
from vitrify.runtime.tuning.candidates import known_beforehand, measured, without_a_step
from vitrify.runtime.tuning.cost import computed_steps, request_seconds
from vitrify.runtime.tuning.quality import METRICS, PSNR_CAP, Quality, compare
from vitrify.runtime.tuning.requests import Requests

__all__ = ["Bound", "Search", "Trial"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bound:
    """The least that the 5th percentile of a metric may be. metric: "psnr" (dB) or "ssim".

    every: it is the least of every picture.
    """

    metric: str
    least: float
    every: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise SpecError(f"metric {self.metric!r} is unknown; known: {', '.join(METRICS)}")
        most = PSNR_CAP if self.metric == "psnr" else 1.0
        if not (math.isfinite(self.least) and 0 < self.least <= most):
            raise SpecError(f"the least {self.metric} is {self.least}, expected a number above 0 and at most {most:g}")

    def holds(self, quality: Quality) -> bool:
        """Whether these pictures keep it."""
        return (quality.worst(self.metric) if self.every else quality.low(self.metric)) >= self.least

    def lost(self, values: Sequence[float], total: int) -> bool:
        """Whether `values`, of the first of `total` pictures, leave no way to keep it.

        The percentile lies between the order statistics around 0.05 · (total − 1): once both are below, it is.
        """
        below = sum(value < self.least for value in values)
        return below > (0 if self.every else math.ceil(0.05 * (total - 1)))


@dataclass(frozen=True)
class _Run:
    """One request: quality in both metrics, computed steps, seconds of the engine's runs."""

    psnr: float
    ssim: float
    computed: float
    cost: float

    def value(self, metric: str) -> float:
        return self.psnr if metric == "psnr" else self.ssim


@dataclass(frozen=True)
class Trial:
    """A setting over all requests. computed: mean steps. cost: mean seconds of the engine's runs.

    checked: the same setting over the requests that check; None where it was not tried on them.
    """

    cache: Cache
    quality: Quality
    computed: float
    cost: float
    checked: Trial | None = None

    def record(self) -> dict[str, Any]:
        """For people, plain JSON data, rounded."""
        figures = {"mean": self.quality.mean, "p5": self.quality.low, "worst": self.quality.worst}
        metrics = {f"{m}_{kind}": round(of(m), 4) for m in METRICS for kind, of in figures.items()}
        return {**metrics, "requests": len(self.quality.psnr), "computed_steps": round(self.computed, 2)}


class Search:
    """Tries settings on `requests` against their uncached pictures.

    check: requests every one of which must keep the bound, once the 5th percentile of the others does. Of many settings that
        just keep a bound on a few prompts, some do so by luck; None: there are none to check on.
    seconds: of `segment_seconds`. say: takes a line on each setting that held. tried: how many settings were.
    """

    def __init__(
        self,
        requests: Requests,
        check: Requests | None,
        bound: Bound,
        seconds: Mapping[str, float],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.requests = requests
        self.bound = bound
        self.seconds = seconds
        self.say = say
        self.tried = 0
        self._check = None if check is None else Search(check, None, replace(bound, every=True), seconds)
        self._references: dict[int, Array] = {}
        self._order = list(range(len(requests)))

    def best(self, calibration: Calibration | None) -> Trial | None:
        """The cheapest setting that keeps the bound and passes the check, None if none does that skips steps.

        Those known beforehand come in the order of their cost, so that the first that holds is the cheapest of them; then
        those that decide by the first block, each given up once it costs more; then the best with ever fewer computed steps.
        """
        steps = self.requests.steps
        static = sorted(known_beforehand(steps, calibration), key=lambda known: self._cost(known[0], [len(known[1])]))
        best = self._first(cache for cache, _ in static)
        best = self._cheaper(measured(), best)
        while best is not None:
            computed = computed_steps(best.cache, steps)
            shorter = [] if computed is None else without_a_step(best.cache, computed, steps)
            found = self._first(shorter)
            if found is None:
                break
            best = found
        return best

    def over_all(self, cache: Cache) -> Trial:
        """Run `cache` over every request, whether it keeps the bound or not. Raises NotFiniteError where one overflows."""
        runs = [self._run(index, cache, self.reference(index)) for index in range(len(self.requests))]
        return _joined(cache, runs)

    def _trial(self, cache: Cache, most: float) -> Trial | None:
        """`cache` over every request; None if the bound is lost or the mean cost exceeds `most`, as soon as that is certain.

        A single request that overflows loses any bound.
        """
        total, runs = len(self.requests), list[_Run]()
        for index in tuple(self._order):
            reference = self.reference(index)  # one that overflows uncached is no candidate's fault: it ends the search
            try:
                runs.append(self._run(index, cache, reference))
            except NotFiniteError:
                return None
            if runs[-1].value(self.bound.metric) < self.bound.least:
                self._order.remove(index)  # what failed once is tried first next time
                self._order.insert(0, index)
            if self.bound.lost([run.value(self.bound.metric) for run in runs], total):
                return None
            if sum(run.cost for run in runs) > most * total:
                return None
        trial = _joined(cache, runs)
        return trial if self.bound.holds(trial.quality) else None

    def _run(self, index: int, cache: Cache, reference: Array) -> _Run:
        drawn = self.requests.draw(index, cache)
        lanes = [] if drawn.report is None else [len(lane) for lane in drawn.report.computed]
        return _Run(*compare(drawn.picture, reference), float(np.mean(lanes)), self._cost(cache, lanes))

    def reference(self, index: int) -> Array:
        """The uncached picture of a request, [height, width, 3]; drawn once."""
        if index not in self._references:
            self._references[index] = self.requests.draw(index).picture
        return self._references[index]

    def _cost(self, cache: Cache, lanes: Sequence[int]) -> float:
        """lanes: the computed steps of each."""
        return request_seconds(cache, lanes, self.requests.steps, self.seconds)

    def _first(self, caches: Iterable[Cache]) -> Trial | None:
        """The first that keeps the bound."""
        for cache in caches:
            found = self._tried(cache, math.inf)
            if found is not None:
                return found
        return None

    def _cheaper(self, caches: Iterable[Cache], best: Trial | None) -> Trial | None:
        """The cheapest of `caches` and `best`."""
        for cache in caches:
            most = self.requests.steps * sum(self.seconds.values()) if best is None else best.cost
            found = self._tried(cache, most)
            if found is not None and found.cost < most:
                best = found
        return best

    def _tried(self, cache: Cache, most: float) -> Trial | None:
        self.tried += 1
        found = self._trial(cache, most)
        if found is None:
            return None
        said = f"{found.computed:.1f} steps, {self.bound.metric} {found.quality.low(self.bound.metric):.4f} (5th percentile)"
        if self._check is not None:
            found = replace(found, checked=self._check._trial(cache, math.inf))
            if found.checked is None:
                self.say(f"holds, {said}, but not on the prompts that check: {cache}")
                return None
            said += f", {found.checked.quality.worst(self.bound.metric):.4f} the worst that checks"
        self.say(f"holds, {said}: {cache}")
        return found


def _joined(cache: Cache, runs: Sequence[_Run]) -> Trial:
    quality = Quality(np.array([run.psnr for run in runs]), np.array([run.ssim for run in runs]))
    return Trial(cache, quality, float(np.mean([run.computed for run in runs])), float(np.mean([run.cost for run in runs])))
