"""The gate: a new run against a base run. Times as ratios within rounds, counts exactly, pictures by level.

Nothing is compared by its absolute time: the machine is another one every minute. Where BASE and NEW were measured in the same
rounds, the time is judged by NEW ÷ BASE, formed within them. Else by how ours ÷ anchor, each formed within the rounds of its
own run, changed from BASE to NEW. A number that BASE has and NEW lacks is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vitrify.bench.document import Document
from vitrify.bench.measure import Summary, ratio_change
from vitrify.bench.peers.registry import ANCHORS, is_ours
from vitrify.bench.pictures import picture_difference
from vitrify.bench.results import CaseResult
from vitrify.engine.errors import SpecError

__all__ = ["Margins", "Verdict", "compare"]

Gate = Literal["run", "check", "error", "count", "time", "picture"]


@dataclass(frozen=True)
class Margins:
    """What may change.

    time: of a step, upwards: ours ÷ base in one run, or how ours ÷ anchor changed between two; also the most that half the 95 %
        interval of it may be, above which it is no number. picture_time: the same of whole pictures, of which a run has fewer.
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
    """Every gate, in the order of BASE. across_machines: let another processor pass (its ratios are not the same).

    Raises SpecError for documents of one run that are not its base and what was measured beside it.
    """
    found = list(_runs(base, new, across_machines))
    together = base.run_id == new.run_id
    if together and (base.is_base, new.is_base) != (True, False):
        names = {True: "its base", False: "ours"}
        raise SpecError(
            f"both documents are of one run, BASE has {names[base.is_base]} and NEW has {names[new.is_base]}; expected "
            "what --base-json wrote as BASE and what --json wrote as NEW"
        )
    cases = {case.name: case for case in new.run.cases}
    for case in base.run.cases:
        other = cases.get(case.name)
        if other is None:
            found.append(_missing(case.name, "run", "the case", "measured"))
        else:
            found += _cases(case, other, margins, together)
    return found


def _runs(base: Document, new: Document, across_machines: bool) -> Iterator[Verdict]:
    def same(what: str, old: str, now: str, allowed: bool = False) -> Verdict:
        return Verdict("", "run", what, old, now, "same" if old == now else "differs", old == now or allowed)

    yield same("threads", str(base.run.threads), str(new.run.threads))
    yield same("processor", base.machine.cpu, new.machine.cpu, across_machines)
    yield same("vector units", " ".join(base.machine.cpu_flags), " ".join(new.machine.cpu_flags), across_machines)


def _cases(base: CaseResult, new: CaseResult, margins: Margins, together: bool) -> Iterator[Verdict]:
    for name, old in ({"kind": base.kind, **base.dims}).items():
        now = {"kind": new.kind, **new.dims}.get(name)
        if old != now:
            yield Verdict(base.name, "run", name, str(old), str(now), "another case", False)
            return
    yield from _checks(base, new, margins)
    yield from _counts(base, new)
    yield from _times(base, new, margins, together)
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
        if is_ours(name) and now.passed:
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


def _times(base: CaseResult, new: CaseResult, margins: Margins, together: bool) -> Iterator[Verdict]:
    for name, old in base.peers.items():
        now = new.peers.get(name)
        if now is None:
            yield _missing(base.name, "time", name, _seconds(old.time), new.absent.get(name, "missing"))
        elif is_ours(name):
            yield _beside(base, new, name, margins) if together else _by_anchor(base, new, name, margins)


def _beside(base: CaseResult, new: CaseResult, name: str, margins: Margins) -> Verdict:
    """Measured in the same rounds."""
    old, now = base.peers[name], new.peers[name]
    if len(old.rounds) != len(now.rounds):
        raise SpecError(
            f"case {base.name}: {name} has {len(old.rounds)} rounds in BASE and {len(now.rounds)} in NEW, though both documents "
            "are of one run; measure again"
        )
    return _time_verdict(base, name, _seconds(old.time), _seconds(now.time), now.over(old), margins)


def _by_anchor(base: CaseResult, new: CaseResult, name: str, margins: Margins) -> Verdict:
    """Measured in two runs."""
    anchor = ANCHORS[base.kind]
    old, now = base.peers[name], new.peers[name]
    if anchor not in base.peers or anchor not in new.peers:
        where = "BASE" if anchor not in base.peers else "NEW"
        return _missing(base.name, "time", name, _seconds(old.time), f"{where} has no time of {anchor} to compare by")
    before, after = base.peers[anchor], new.peers[anchor]
    change = ratio_change((old.rounds, before.rounds), (now.rounds, after.rounds))
    return _time_verdict(base, f"{name} ÷ {anchor}", _ratio(old.over(before)), _ratio(now.over(after)), change, margins)


def _time_verdict(base: CaseResult, what: str, old: str, now: str, change: Summary, margins: Margins) -> Verdict:
    most = margins.time if base.kind == "step" else margins.picture_time
    known = (change.high - change.low) / 2 <= most
    text = f"× {change.median:.3f} ({change.low:.3f} – {change.high:.3f}), at most × {1 + most:.2f}"
    if not known:
        text += "; too uncertain to be a number: measure more rounds on a quieter machine"
    return Verdict(base.name, "time", what, old, now, text, known and change.median <= 1 + most)


def _pictures(base: CaseResult, new: CaseResult, margins: Margins) -> Iterator[Verdict]:
    for name, pictures in base.pictures.items():
        if not is_ours(name):
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


def _missing(case: str, gate: Gate, what: str, base: str, why: str = "missing") -> Verdict:
    return Verdict(case, gate, what, base, "none", why, False)


def _seconds(time: Summary) -> str:
    return f"{time.median * 1e3:.3f} ms"


def _ratio(ratio: Summary) -> str:
    return f"{ratio.median:.3f} ± {ratio.spread:.1%}"
