"""One tuning: searched on some requests, checked on others, timed, and judged on yet others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import Cache
from vitrify.engine.errors import RequestError
from vitrify.runtime.tuning.cost import segment_seconds
from vitrify.runtime.tuning.requests import Requests
from vitrify.runtime.tuning.search import Bound, Search, Trial

__all__ = ["Outcome", "tune", "wall_ratio"]

_TIMED_REQUESTS = 6


@dataclass(frozen=True)
class Outcome:
    """The setting that was found.

    searched, checked, held_out: over the requests of each kind. cost_ratio, wall_ratio: of an uncached loop's time, by the
    engine's calls and by the clock. tried: settings. holds_elsewhere: whether the bound holds on the requests held out.
    """

    cache: Cache
    bound: Bound
    searched: Trial
    checked: Trial
    held_out: Trial
    cost_ratio: float
    wall_ratio: float
    tried: int

    @property
    def holds_elsewhere(self) -> bool:
        """Whether the bound holds on the requests that were held out."""
        return self.bound.holds(self.held_out.quality)

    def record(self) -> dict[str, Any]:
        """For people, plain JSON data, rounded."""
        return {
            "bound": {"metric": self.bound.metric, "least_p5": self.bound.least},
            "searched": self.searched.record(),
            "checked": self.checked.record(),
            "held_out": self.held_out.record(),
            "holds_on_held_out": self.holds_elsewhere,
            "cost_ratio": round(self.cost_ratio, 4),
            "wall_ratio": round(self.wall_ratio, 4),
            "tried": self.tried,
        }


def tune(
    requests: Requests,
    check: Requests,
    held_out: Requests,
    bound: Bound,
    calibration: Calibration | None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """The setting with the cheapest engine calls whose pictures of `requests` keep `bound`, and each of those of `check` too.

    held_out: what it is judged on once it is chosen. calibration: brings in MagCache. say: takes lines on how the search goes.
    Raises RequestError when no setting keeps the bound in less than an uncached loop's time.
    """
    seconds = segment_seconds(requests)
    search = Search(requests, check, bound, seconds, say)
    found = search.best(calibration)
    asked = f"{bound.metric} {bound.least:g} (5th percentile of {len(requests)} prompts, every one of {len(check)} that check)"
    if found is None:
        raise RequestError(f"no setting of {search.tried} keeps {asked} and skips steps; ask for less, or search at more steps")
    assert found.checked is not None
    wall = wall_ratio(requests, found.cache)
    if wall >= 1:
        raise RequestError(
            f"{found.cache} keeps {asked}, but its loop takes {wall:.3f} of an uncached one's time by the clock; "
            "ask for less, or use no cache"
        )
    judge = Search(held_out, None, bound, seconds)
    others = judge.over_all(found.cache)
    whole = requests.steps * sum(seconds.values())
    return Outcome(found.cache, bound, found, found.checked, others, found.cost / whole, wall, search.tried)


def wall_ratio(requests: Requests, cache: Cache) -> float:
    """The time of a loop under `cache` over that of an uncached one: the median of ratios, measured in turns."""
    ratios = []
    for index in range(min(_TIMED_REQUESTS, len(requests))):
        plain, cached = (requests.draw(index, which).seconds for which in (None, cache))
        again = requests.draw(index).seconds
        ratios.append(cached / ((plain + again) / 2))
    return float(np.median(ratios))
