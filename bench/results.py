"""What a run found, as frozen data that turns into JSON and back."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrify.bench.cases import Kind
from vitrify.bench.measure import Summary, ratios, summarise
from vitrify.engine.errors import SpecError
from vitrify.engine.specs import expect, expect_list, expect_map

__all__ = ["CaseResult", "Check", "LoopResult", "PeerResult", "RunResult"]

Json = Any

WORST_FACTOR = 20.0
"""The worst element may be this many times the tolerance, in units of the reference's rms."""


@dataclass(frozen=True)
class Check:
    """A peer's answer, a noise_pred or a picture, against the reference's.

    relative: ‖a − b‖₂ / ‖b‖₂. worst: max |a − b| / rms(b).
    """

    relative: float
    worst: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the peer may have numbers; NaN never passes."""
        return self.relative <= self.tolerance and self.worst <= WORST_FACTOR * self.tolerance

    def to_json(self) -> Json:
        # JSON has no infinity: a shape that differs, or a NaN, is written as null.
        numbers = {"relative": self.relative, "worst": self.worst}
        return {**{k: v if math.isfinite(v) else None for k, v in numbers.items()}, "tolerance": self.tolerance}

    @classmethod
    def from_json(cls, data: Json, where: str) -> Check:
        fields = expect_map(data, where, ("relative", "worst", "tolerance"))

        def number(key: str) -> float:
            return math.inf if fields[key] is None else float(expect(fields[key], float, f"{where}.{key}"))

        return cls(number("relative"), number("worst"), number("tolerance"))


@dataclass(frozen=True)
class PeerResult:
    """A peer's times. rounds: seconds per step or picture, one a round; peers of a case share their rounds.

    parts: what a step consists of.
    """

    rounds: tuple[float, ...]
    parts: Mapping[str, Summary] = field(default_factory=dict)

    @property
    def time(self) -> Summary:
        """Seconds per step or picture."""
        return summarise(self.rounds)

    def over(self, other: PeerResult) -> Summary:
        """This peer's time ÷ the other's, formed within rounds."""
        return summarise(ratios(self.rounds, other.rounds))

    def to_json(self) -> Json:
        return {
            "rounds_s": list(self.rounds),
            "median_s": self.time.median,
            "parts_s": {name: _summary(part) for name, part in self.parts.items()},
        }

    @classmethod
    def from_json(cls, data: Json, where: str) -> PeerResult:
        fields = expect_map(data, where, ("rounds_s", "median_s", "parts_s"))
        parts = expect_map(fields["parts_s"], f"{where}.parts_s")
        rounds = [
            float(expect(value, float, f"{where}.rounds_s[{i}]"))
            for i, value in enumerate(expect_list(fields["rounds_s"], f"{where}.rounds_s"))
        ]
        if not rounds or not all(0 < value < math.inf for value in rounds):
            raise SpecError(f"{where}.rounds_s: got {rounds}, expected at least one and all above 0")
        return cls(tuple(rounds), {name: _read_summary(part, f"{where}.parts_s.{name}") for name, part in parts.items()})


@dataclass(frozen=True)
class LoopResult:
    """Whole requests through the runtime's own loop.

    run: seconds of a request, from its context to uint8 images. loop: of the denoising loop in it.
    run_outside, loop_outside: the share of it that is not spent in `Plan.run`, 0 … 1.
    graphs: graph → seconds in it per request.
    """

    steps: int
    run: Summary
    loop: Summary
    run_outside: Summary
    loop_outside: Summary
    graphs: Mapping[str, Summary]

    def to_json(self) -> Json:
        return {
            "steps": self.steps,
            "run_s": _summary(self.run),
            "loop_s": _summary(self.loop),
            "run_outside_share": _summary(self.run_outside),
            "loop_outside_share": _summary(self.loop_outside),
            "graphs_s": {name: _summary(one) for name, one in self.graphs.items()},
        }

    @classmethod
    def from_json(cls, data: Json, where: str) -> LoopResult:
        keys = ("steps", "run_s", "loop_s", "run_outside_share", "loop_outside_share", "graphs_s")
        fields = expect_map(data, where, keys)
        graphs = expect_map(fields["graphs_s"], f"{where}.graphs_s")
        run, loop, run_outside, loop_outside = (_read_summary(fields[key], f"{where}.{key}") for key in keys[1:5])
        return cls(
            steps=expect(fields["steps"], int, f"{where}.steps"),
            run=run,
            loop=loop,
            run_outside=run_outside,
            loop_outside=loop_outside,
            graphs={name: _read_summary(one, f"{where}.graphs_s.{name}") for name, one in graphs.items()},
        )


@dataclass(frozen=True)
class CaseResult:
    """One case. flops: of one unsplit step. sensitivity: input → how far the reference moves when that input changes.

    checks: every peer's that ran. absent: peer → why it could not run here. counts: peer → what can be counted exactly.
    peers: only those whose check passed, and none at all if ours did not. pictures: peer → PNG files, one a prompt.
    """

    name: str
    kind: Kind
    summary: str
    parameters: int
    flops: int
    dims: Mapping[str, int]
    sensitivity: Mapping[str, float]
    checks: Mapping[str, Check]
    peers: Mapping[str, PeerResult]
    absent: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pictures: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    loop: LoopResult | None = None

    @property
    def wrong(self) -> tuple[str, ...]:
        """Peers that failed their check."""
        return tuple(name for name, check in self.checks.items() if not check.passed)

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "parameters": self.parameters,
            "flops": self.flops,
            "dims": dict(self.dims),
            "sensitivity": dict(self.sensitivity),
            "checks": {name: check.to_json() for name, check in self.checks.items()},
            "peers": {name: peer.to_json() for name, peer in self.peers.items()},
            "absent": dict(self.absent),
            "counts": {name: dict(counts) for name, counts in self.counts.items()},
            "pictures_png": {name: [base64.b64encode(one).decode() for one in found] for name, found in self.pictures.items()},
            "loop": None if self.loop is None else self.loop.to_json(),
        }

    @classmethod
    def from_json(cls, data: Json, where: str = "case") -> CaseResult:
        texts, numbers = ("name", "kind", "summary"), ("parameters", "flops")
        mapped = ("dims", "sensitivity", "checks", "peers", "absent", "counts", "pictures_png")
        fields = expect_map(data, where, (*texts, *numbers, *mapped, "loop"))
        maps = {key: expect_map(fields[key], f"{where}.{key}") for key in mapped}
        if fields["kind"] not in ("step", "picture"):
            raise SpecError(f"{where}.kind: got {fields['kind']!r}, expected step or picture")

        def counted(name: str, given: Json) -> dict[str, int]:
            at = f"{where}.counts.{name}"
            return {what: expect(count, int, f"{at}.{what}") for what, count in expect_map(given, at).items()}

        def drawn(name: str, given: Json) -> tuple[bytes, ...]:
            at = f"{where}.pictures_png.{name}"
            return tuple(_decoded(one, f"{at}[{i}]") for i, one in enumerate(expect_list(given, at)))

        return cls(
            name=expect(fields["name"], str, f"{where}.name"),
            kind=fields["kind"],
            summary=expect(fields["summary"], str, f"{where}.summary"),
            parameters=expect(fields["parameters"], int, f"{where}.parameters"),
            flops=expect(fields["flops"], int, f"{where}.flops"),
            dims={name: expect(size, int, f"{where}.dims.{name}") for name, size in maps["dims"].items()},
            sensitivity={k: float(expect(v, float, f"{where}.sensitivity.{k}")) for k, v in maps["sensitivity"].items()},
            checks={name: Check.from_json(one, f"{where}.checks.{name}") for name, one in maps["checks"].items()},
            peers={name: PeerResult.from_json(one, f"{where}.peers.{name}") for name, one in maps["peers"].items()},
            absent={name: expect(why, str, f"{where}.absent.{name}") for name, why in maps["absent"].items()},
            counts={name: counted(name, given) for name, given in maps["counts"].items()},
            pictures={name: drawn(name, given) for name, given in maps["pictures_png"].items()},
            loop=None if fields["loop"] is None else LoopResult.from_json(fields["loop"], f"{where}.loop"),
        )


@dataclass(frozen=True)
class RunResult:
    """A whole `bench run`. limits: what this machine reaches at most, by what it is of: operations or bytes per second."""

    threads: int
    limits: Mapping[str, float]
    cases: tuple[CaseResult, ...]

    def to_json(self) -> Json:
        return {"threads": self.threads, "limits": dict(self.limits), "cases": [case.to_json() for case in self.cases]}

    @classmethod
    def from_json(cls, data: Json, where: str = "results") -> RunResult:
        fields = expect_map(data, where, ("threads", "limits", "cases"))
        limits = expect_map(fields["limits"], f"{where}.limits")
        cases = expect_list(fields["cases"], f"{where}.cases")
        return cls(
            threads=expect(fields["threads"], int, f"{where}.threads"),
            limits={name: float(expect(value, float, f"{where}.limits.{name}")) for name, value in limits.items()},
            cases=tuple(CaseResult.from_json(case, f"{where}.cases[{i}]") for i, case in enumerate(cases)),
        )


def _decoded(text: Json, where: str) -> bytes:
    try:
        return base64.b64decode(expect(text, str, where), validate=True)
    except ValueError:
        raise SpecError(f"{where}: not base64") from None


def _summary(summary: Summary) -> Json:
    return {"median": summary.median, "low": summary.low, "high": summary.high, "count": summary.count}


def _read_summary(data: Json, where: str) -> Summary:
    fields = expect_map(data, where, ("median", "low", "high", "count"))
    median, low, high = (float(expect(fields[key], float, f"{where}.{key}")) for key in ("median", "low", "high"))
    return Summary(median, low, high, expect(fields["count"], int, f"{where}.count"))
