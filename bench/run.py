"""`bench run`: prepare each case, open its peers, check, count and measure them, then the runtime's loop."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vitrify.bench.cases import Case
from vitrify.bench.limits import measure_limits
from vitrify.bench.loop import measure_loop
from vitrify.bench.measure import Pace
from vitrify.bench.peers.client import PeerProcess
from vitrify.bench.peers.registry import ANCHORS, OURS, PeerSpec, absence, peer_specs
from vitrify.bench.prepare import GivenModel, Prepared, prepare
from vitrify.bench.results import CaseResult, RunResult
from vitrify.bench.run_case import measure_case

__all__ = ["Plan", "prepare_cases", "run_cases"]


@dataclass(frozen=True)
class Plan:
    """How a run measures. peers: names; ours, the reference and the anchor always take part. caches: step caches of pictures.

    loop_runs: whole requests through the runtime's loop, 0 for none. cache: folder that keeps what is built.
    sample: the sample pipeline's folder. limits: whether the machine's limits are measured too.
    """

    peers: tuple[str, ...]
    caches: tuple[str, ...]
    pace: Pace
    loop_runs: int
    threads: int
    cache: Path
    sample: Path
    limits: bool = True


def run_cases(
    cases: Sequence[Case],
    plan: Plan,
    *,
    given: GivenModel | None = None,
    specs: Callable[[Case], Mapping[str, PeerSpec]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """Measure `cases`. given: a model of the user's own, instead of the cases' own. specs: other peers than the registry's.

    Raises BackendError when a process fails, ParityError when a case's check could not fail.
    """
    limits = {}
    if plan.limits:
        progress("limits")
        limits = measure_limits(plan.threads)
    results = []
    for one in cases:
        found = peer_specs(one.kind, plan.peers, plan.caches) if specs is None else specs(one)
        results.append(_run_case(one, found, plan, given, partial(_say, progress, one.name)))
    return RunResult(plan.threads, limits, tuple(results))


def prepare_cases(
    cases: Sequence[Case], plan: Plan, *, given: GivenModel | None = None, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Build all that `run_cases` would build, and measure nothing: what takes long need not run on a quiet machine."""
    for one in cases:
        progress(f"{one.name}: prepare")
        _prepared(one, peer_specs(one.kind, plan.peers, plan.caches), plan, given)


def _prepared(one: Case, specs: Mapping[str, PeerSpec], plan: Plan, given: GivenModel | None) -> Prepared:
    builds = [kind for spec in specs.values() if absence(spec) is None for kind in spec.builds]
    return prepare(one, plan.cache, plan.sample, builds=builds, threads=plan.threads, given=given)


def _say(progress: Callable[[str], None], name: str, text: str) -> None:
    progress(f"{name}: {text}")


def _run_case(
    one: Case, specs: Mapping[str, PeerSpec], plan: Plan, given: GivenModel | None, progress: Callable[[str], None]
) -> CaseResult:
    absent = {name: why for name, spec in specs.items() if (why := absence(spec)) is not None}
    for name, why in absent.items():
        progress(f"without {name}: {why}")
    present = {name: spec for name, spec in specs.items() if name not in absent}
    progress("prepare")
    prepared = _prepared(one, present, plan, given)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=plan.cache)))
        clients = {}
        for name, spec in present.items():
            progress(f"open {name}")
            clients[name] = stack.enter_context(PeerProcess(spec, prepared, scratch, threads=plan.threads))
            clients[name].open()
        result = measure_case(
            one,
            clients,
            {name: spec.tolerance for name, spec in present.items()},
            scratch,
            pace=plan.pace,
            timed_peers=[name for name in present if name.startswith(OURS) or name in (*plan.peers, ANCHORS[one.kind])],
            progress=progress,
        )
    result = replace(result, absent=absent)
    if not result.peers:
        return result
    result = replace(result, counts={**result.counts, OURS: {**result.counts.get(OURS, {}), **_artifact_bytes(prepared)}})
    if one.kind == "picture" or not plan.loop_runs:
        return result
    progress("loop")
    return replace(result, loop=measure_loop(prepared.artifact, steps=one.steps, runs=plan.loop_runs, threads=plan.threads))


def _artifact_bytes(prepared: Prepared) -> dict[str, int]:
    files = [path for path in prepared.artifact.rglob("*") if path.is_file()]
    sizes = {kind: sum(path.stat().st_size for path in files if path.suffix == f".{kind}") for kind in ("safetensors", "onnx")}
    total = sum(path.stat().st_size for path in files)
    return {
        "artifact bytes, weights": sizes["safetensors"],
        "artifact bytes, graphs": sizes["onnx"],
        "artifact bytes, the rest": total - sum(sizes.values()),
    }
