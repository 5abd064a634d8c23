"""What a run found, as frozen data that turns into JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrify.bench.measure import Summary
from vitrify.engine.specs import expect, expect_list, expect_map

__all__ = ["CaseResult", "Check", "LoopResult", "PeerResult", "RunResult"]

Json = Any

WORST_FACTOR = 20.0
"""The worst element may be this many times the tolerance, in units of the reference's rms."""


@dataclass(frozen=True)
class Check:
    """A peer's noise_pred against the reference's. relative: ‖a − b‖₂ / ‖b‖₂. worst: max |a − b| / rms(b)."""

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
    """A peer's times in seconds per step. parts: what the step consists of. ratio: ours / this peer, None for ourselves."""

    step: Summary
    parts: Mapping[str, Summary] = field(default_factory=dict)
    ratio: Summary | None = None

    def to_json(self) -> Json:
        return {
            "step_s": _summary(self.step),
            "parts_s": {name: _summary(part) for name, part in self.parts.items()},
            "ours_over_this": None if self.ratio is None else _summary(self.ratio),
        }

    @classmethod
    def from_json(cls, data: Json, where: str) -> PeerResult:
        fields = expect_map(data, where, ("step_s", "parts_s", "ours_over_this"))
        parts = expect_map(fields["parts_s"], f"{where}.parts_s")
        ratio = fields["ours_over_this"]
        return cls(
            step=_read_summary(fields["step_s"], f"{where}.step_s"),
            parts={name: _read_summary(part, f"{where}.parts_s.{name}") for name, part in parts.items()},
            ratio=None if ratio is None else _read_summary(ratio, f"{where}.ours_over_this"),
        )


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

    checks: every peer's. peers: only those whose check passed, and none at all if ours did not.
    """

    name: str
    parameters: int
    flops: int
    dims: Mapping[str, int]
    sensitivity: Mapping[str, float]
    checks: Mapping[str, Check]
    peers: Mapping[str, PeerResult]
    loop: LoopResult | None = None

    @property
    def passed(self) -> bool:
        """Whether every peer is right."""
        return all(check.passed for check in self.checks.values())

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "parameters": self.parameters,
            "flops": self.flops,
            "dims": dict(self.dims),
            "sensitivity": dict(self.sensitivity),
            "checks": {name: check.to_json() for name, check in self.checks.items()},
            "peers": {name: peer.to_json() for name, peer in self.peers.items()},
            "loop": None if self.loop is None else self.loop.to_json(),
        }

    @classmethod
    def from_json(cls, data: Json, where: str = "case") -> CaseResult:
        keys = ("name", "parameters", "flops", "dims", "sensitivity", "checks", "peers", "loop")
        fields = expect_map(data, where, keys)
        maps = {key: expect_map(fields[key], f"{where}.{key}") for key in ("dims", "sensitivity", "checks", "peers")}
        return cls(
            name=expect(fields["name"], str, f"{where}.name"),
            parameters=expect(fields["parameters"], int, f"{where}.parameters"),
            flops=expect(fields["flops"], int, f"{where}.flops"),
            dims={name: expect(size, int, f"{where}.dims.{name}") for name, size in maps["dims"].items()},
            sensitivity={k: float(expect(v, float, f"{where}.sensitivity.{k}")) for k, v in maps["sensitivity"].items()},
            checks={name: Check.from_json(one, f"{where}.checks.{name}") for name, one in maps["checks"].items()},
            peers={name: PeerResult.from_json(one, f"{where}.peers.{name}") for name, one in maps["peers"].items()},
            loop=None if fields["loop"] is None else LoopResult.from_json(fields["loop"], f"{where}.loop"),
        )


@dataclass(frozen=True)
class RunResult:
    """A whole `bench run`. limits: dtype → what a matrix product alone reaches on this machine, FLOP/s."""

    threads: int
    rounds: int
    limits: Mapping[str, float]
    cases: tuple[CaseResult, ...]

    def to_json(self) -> Json:
        return {
            "threads": self.threads,
            "rounds": self.rounds,
            "limits_flops": dict(self.limits),
            "cases": [case.to_json() for case in self.cases],
        }

    @classmethod
    def from_json(cls, data: Json, where: str = "results") -> RunResult:
        fields = expect_map(data, where, ("threads", "rounds", "limits_flops", "cases"))
        limits = expect_map(fields["limits_flops"], f"{where}.limits_flops")
        cases = expect_list(fields["cases"], f"{where}.cases")
        return cls(
            threads=expect(fields["threads"], int, f"{where}.threads"),
            rounds=expect(fields["rounds"], int, f"{where}.rounds"),
            limits={name: float(expect(value, float, f"{where}.limits_flops.{name}")) for name, value in limits.items()},
            cases=tuple(CaseResult.from_json(case, f"{where}.cases[{i}]") for i, case in enumerate(cases)),
        )


def _summary(summary: Summary) -> Json:
    return {"median": summary.median, "low": summary.low, "high": summary.high, "count": summary.count}


def _read_summary(data: Json, where: str) -> Summary:
    fields = expect_map(data, where, ("median", "low", "high", "count"))
    median, low, high = (float(expect(fields[key], float, f"{where}.{key}")) for key in ("median", "low", "high"))
    return Summary(median, low, high, expect(fields["count"], int, f"{where}.count"))
