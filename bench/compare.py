"""The gate: a new run against a base run. Times as ratios to a peer of the same run, counts exactly, pictures by level.

Nothing is compared by its absolute time: the machine is another one every minute. Ours ÷ anchor is formed within rounds;
what is judged is how that ratio changed from BASE to NEW. A number that BASE has and NEW lacks is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vitrify.bench.document import Document
from vitrify.bench.measure import Summary, ratio_change
from vitrify.bench.peers.registry import ANCHORS, OURS
from vitrify.bench.pictures import picture_difference
from vitrify.bench.results import CaseResult

__all__ = ["Margins", "Verdict", "compare"]

Gate = Literal["run", "check", "error", "count", "time", "picture"]


@dataclass(frozen=True)
class Margins:
    """What may change. Each margin stands in docs/bench.md with the noise it was set by.

    time: of a step's ours ÷ anchor, upwards; also the most that half the interval of that change may be, above which it is no
        number. picture_time: the same of whole pictures, whose anchor takes turns of half a second and more.
    error: factor by which the error against the reference may grow; errors below error_floor are all the same.
    level: of one value of a picture, in levels of 255. mean_level: over all values.
    """

    time: float = 0.05
    picture_time: float = 0.1
    error: float = 2.0
    error_floor: float = 1e-6
    level: int = 2
    mean_level: float = 0.1


@dataclass(frozen=True)
class Verdict:
    """One gate of one case. what: the peer, or the peer and the count. change: for people."""

    case: str
    gate: Gate
    what: str
    base: str
    new: str
    change: str
    passed: bool


def compare(base: Document, new: Document, margins: Margins = Margins(), *, across_machines: bool = False) -> list[Verdict]:
    """Every gate, in the order of BASE. across_machines: let another processor pass (its ratios are not the same)."""
    found = list(_runs(base, new, across_machines))
    cases = {case.name: case for case in new.run.cases}
    for case in base.run.cases:
        other = cases.get(case.name)
        if other is None:
            found.append(_missing(case.name, "run", "the case", "measured"))
        else:
            found += _cases(case, other, margins)
    return found


def _runs(base: Document, new: Document, across_machines: bool) -> Iterator[Verdict]:
    def same(what: str, old: str, now: str, allowed: bool = False) -> Verdict:
        return Verdict("", "run", what, old, now, "same" if old == now else "differs", old == now or allowed)

    yield same("threads", str(base.run.threads), str(new.run.threads))
    yield same("processor", base.machine.cpu, new.machine.cpu, across_machines)
    yield same("vector units", " ".join(base.machine.cpu_flags), " ".join(new.machine.cpu_flags), across_machines)


def _cases(base: CaseResult, new: CaseResult, margins: Margins) -> Iterator[Verdict]:
    for name, old in ({"kind": base.kind, **base.dims}).items():
        now = {"kind": new.kind, **new.dims}.get(name)
        if old != now:
            yield Verdict(base.name, "run", name, str(old), str(now), "another case", False)
            return
    yield from _checks(base, new, margins)
    yield from _counts(base, new)
    yield from _times(base, new, margins)
    yield from _pictures(base, new, margins)


def _checks(base: CaseResult, new: CaseResult, margins: Margins) -> Iterator[Verdict]:
    """Who is right in BASE must be right in NEW; our own error may not grow."""
    for name, old in base.checks.items():
        if not old.passed:
            continue
        now = new.checks.get(name)
        if now is None:
            yield _missing(base.name, "check", name, f"{old.relative:.1e}", new.absent.get(name, "missing"))
            continue
        yield Verdict(
            base.name, "check", name, f"{old.relative:.1e}", f"{now.relative:.1e}", f"allowed {now.tolerance:.0e}", now.passed
        )
        if _ours(name) and now.passed:
            most = margins.error * max(old.relative, margins.error_floor)
            passed = now.relative <= most
            yield Verdict(base.name, "error", name, f"{old.relative:.1e}", f"{now.relative:.1e}", f"at most {most:.1e}", passed)


def _counts(base: CaseResult, new: CaseResult) -> Iterator[Verdict]:
    for name, counts in base.counts.items():
        for what, old in counts.items():
            now = new.counts.get(name, {}).get(what)
            if now is None:
                yield _missing(base.name, "count", f"{name}: {what}", str(old))
            else:
                yield Verdict(base.name, "count", f"{name}: {what}", str(old), str(now), f"{now - old:+d}", now <= old)
        for what in new.counts.get(name, {}).keys() - counts.keys():
            now = new.counts[name][what]
            yield Verdict(base.name, "count", f"{name}: {what}", "none", str(now), "new", False)


def _times(base: CaseResult, new: CaseResult, margins: Margins) -> Iterator[Verdict]:
    anchor = ANCHORS[base.kind]
    most = margins.time if base.kind == "step" else margins.picture_time
    for name, old in base.peers.items():
        now = new.peers.get(name)
        if now is None:
            yield _missing(base.name, "time", name, _seconds(old.time), new.absent.get(name, "missing"))
            continue
        if not _ours(name):
            continue
        if anchor not in base.peers or anchor not in new.peers:
            where = "BASE" if anchor not in base.peers else "NEW"
            yield _missing(base.name, "time", name, _seconds(old.time), f"{where} has no time of {anchor} to compare by")
            continue
        change = ratio_change((old.rounds, base.peers[anchor].rounds), (now.rounds, new.peers[anchor].rounds))
        known = (change.high - change.low) / 2 <= most
        text = f"× {change.median:.3f} ({change.low:.3f} – {change.high:.3f}), at most × {1 + most:.2f}"
        if not known:
            text += "; too uncertain to be a number: measure more rounds on a quieter machine"
        yield Verdict(
            base.name,
            "time",
            f"{name} ÷ {anchor}",
            _ratio(old.over(base.peers[anchor])),
            _ratio(now.over(new.peers[anchor])),
            text,
            known and change.median <= 1 + most,
        )


def _pictures(base: CaseResult, new: CaseResult, margins: Margins) -> Iterator[Verdict]:
    for name, pictures in base.pictures.items():
        if not _ours(name):
            continue
        others = new.pictures.get(name, ())
        for index, old in enumerate(pictures):
            what = f"{name}, picture {index + 1}"
            if index >= len(others):
                yield _missing(base.name, "picture", what, "drawn")
                continue
            apart = picture_difference(old, others[index])
            if apart is None:
                yield Verdict(base.name, "picture", what, "drawn", "drawn", "another size", False)
                continue
            passed = apart.worst <= margins.level and apart.mean <= margins.mean_level
            text = f"{apart.worst} levels apart at most, {apart.mean:.3f} on average"
            yield Verdict(base.name, "picture", what, "drawn", "drawn", text, passed)


def _ours(name: str) -> bool:
    return name.startswith(OURS)


def _missing(case: str, gate: Gate, what: str, base: str, why: str = "missing") -> Verdict:
    return Verdict(case, gate, what, base, "none", why, False)


def _seconds(time: Summary) -> str:
    return f"{time.median * 1e3:.3f} ms"


def _ratio(ratio: Summary) -> str:
    return f"{ratio.median:.3f} ± {ratio.spread:.1%}"
