"""The only timer: intervals, the order in which peers take turns, and what the intervals say together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

__all__ = ["Clock", "Summary", "Timing", "interleave", "now", "ratios", "rest", "summarise", "timed", "turns"]

Result = TypeVar("Result")

_SETTLE_S = 0.05
_RESAMPLES = 2000
_BOOTSTRAP_SEED = 20240801

now = time.perf_counter
"""Seconds on a steady clock."""


class Clock:
    """Seconds by name, added up until they are taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add an interval to `name`."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """All sums since the last `take`."""
        taken, self._seconds = self._seconds, {}
        return taken


@dataclass(frozen=True)
class Timing:
    """Calls in a row. seconds: of each whole call. parts: name → seconds within each call, as the clock heard of them."""

    seconds: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __add__(self, other: Timing) -> Timing:
        """Both in a row; they must have the same parts."""
        parts = {name: self.parts[name] + other.parts[name] for name in self.parts}
        return Timing(self.seconds + other.seconds, parts)


def timed(call: Callable[[int], object], count: int, clock: Clock | None = None) -> Timing:
    """Call `call(0) … call(count − 1)` and time each. clock: what `call` reports its parts to."""
    seconds: list[float] = []
    taken: list[dict[str, float]] = []
    if clock is not None:
        clock.take()
    for index in range(count):
        start = now()
        call(index)
        seconds.append(now() - start)
        taken.append(clock.take() if clock is not None else {})
    names = dict.fromkeys(name for parts in taken for name in parts)
    return Timing(tuple(seconds), {name: tuple(parts.get(name, 0.0) for parts in taken) for name in names})


def turns(peers: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, peer) in the order of measurement: A B C, then C B A in one round, so that a steady drift falls on all alike.

    Each round starts one peer further on, so that none always follows the same neighbour.
    """
    for number in range(rounds):
        start = number % len(peers) if peers else 0
        order = [*peers[start:], *peers[:start]]
        for peer in (*order, *reversed(order)):
            yield number, peer


def rest() -> None:
    """Wait until a pool that just ran has gone to sleep: it spins for some milliseconds first."""
    time.sleep(_SETTLE_S)


def interleave(
    peers: Sequence[str],
    rounds: int,
    visit: Callable[[str], Result],
    *,
    settle: Callable[[], None] = rest,
) -> dict[str, list[list[Result]]]:
    """Let the peers take turns; peer → round → what its two visits gave. settle: called before every visit."""
    found: dict[str, list[list[Result]]] = {peer: [[] for _ in range(rounds)] for peer in peers}
    for number, peer in turns(peers, rounds):
        settle()
        found[peer][number].append(visit(peer))
    return found


@dataclass(frozen=True)
class Summary:
    """A median with its 95 % bootstrap interval. count: values it rests on."""

    median: float
    low: float
    high: float
    count: int

    def scaled(self, factor: float) -> Summary:
        """In another unit; factor > 0."""
        return Summary(self.median * factor, self.low * factor, self.high * factor, self.count)


def summarise(values: Sequence[float]) -> Summary:
    """The median of `values` (at least one) and the percentile interval of its bootstrap (Efron 1979), seeded."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"summarise: got {data.size} values, expected at least one and all finite")
    picks = np.random.default_rng(_BOOTSTRAP_SEED).integers(0, data.size, (_RESAMPLES, data.size))
    low, high = np.percentile(np.median(data[picks], axis=1), [2.5, 97.5])
    return Summary(float(np.median(data)), float(low), float(high), data.size)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """ours / theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]
