"""The only timer: intervals, the order in which peers take turns, and what the intervals say together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

__all__ = [
    "Clock",
    "Pace",
    "Summary",
    "Timing",
    "interleave",
    "now",
    "ratio_change",
    "ratios",
    "rest",
    "summarise",
    "timed",
    "turns",
]

Result = TypeVar("Result")

_SETTLE_S = 0.05
_RESAMPLES = 2000
_BOOTSTRAP_SEED = 20240801

now = time.perf_counter
"""Seconds on a steady clock."""


class Clock:
    """Seconds by name, added up until they are taken, and how many intervals they were."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add an interval to `name`."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """All sums since the last time they were taken."""
        return self._taken()[0]

    def take_counts(self) -> dict[str, int]:
        """How many intervals of each name there were since the last time they were taken."""
        return self._taken()[1]

    def _taken(self) -> tuple[dict[str, float], dict[str, int]]:
        taken = self._seconds, self._counts
        self._seconds, self._counts = {}, {}
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


def turns(peers: Sequence[str], rounds: int, first: int = 0) -> Iterator[tuple[int, str]]:
    """(round, peer) in the order of measurement: A B C, then C B A in one round, so that a steady drift falls on all alike.

    Each round starts one peer further on, so that none always follows the same neighbour. first: the first round's number.
    """
    for number in range(first, first + rounds):
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
    visit: Callable[[str, int], Result],
    *,
    first: int = 0,
    settle: Callable[[], None] = rest,
) -> dict[str, list[list[Result]]]:
    """Let the peers take turns; peer → round → what its two visits gave.

    visit: called with a peer and the round's number. settle: called before every visit.
    """
    found: dict[str, list[list[Result]]] = {peer: [[] for _ in range(rounds)] for peer in peers}
    for number, peer in turns(peers, rounds, first):
        settle()
        found[peer][number - first].append(visit(peer, number))
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

    @property
    def spread(self) -> float:
        """Half the interval's width, in units of the median."""
        return (self.high - self.low) / (2 * self.median)


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


def ratio_change(base: tuple[Sequence[float], Sequence[float]], new: tuple[Sequence[float], Sequence[float]]) -> Summary:
    """By what factor ours ÷ anchor grew from one run to another, with its 95 % bootstrap interval.

    base, new: (ours, anchor), seconds by round. Each run's rounds are drawn anew by themselves: the runs are independent.
    """
    drawn, medians = [], []
    for number, (ours, anchor) in enumerate((base, new)):
        data = np.asarray(ratios(ours, anchor))
        picks = np.random.default_rng([_BOOTSTRAP_SEED, number]).integers(0, data.size, (_RESAMPLES, data.size))
        drawn.append(np.median(data[picks], axis=1))
        medians.append(float(np.median(data)))
    low, high = np.percentile(drawn[1] / drawn[0], [2.5, 97.5])
    return Summary(medians[1] / medians[0], float(low), float(high), min(len(base[0]), len(new[0])))


@dataclass(frozen=True)
class Pace:
    """How long to measure: at least `rounds`, then until ours ÷ another is known to ± `spread`, at most `most` rounds.

    spread: half the 95 % interval of that ratio, in units of it; None: exactly `rounds`.
    """

    rounds: int
    spread: float | None = None
    most: int = 60

    def more(self, ours: Sequence[float], other: Sequence[float]) -> int:
        """Rounds to do next, given the seconds of those done; 0 when it is enough."""
        done = max(len(ours), len(other))
        if done == 0:
            return self.rounds
        if self.spread is None or not ours or not other or done >= self.most:
            return 0
        known = summarise(ratios(ours, other)).spread <= self.spread
        return 0 if known else min(max(2, self.rounds // 2), self.most - done)
