"""`bench run`: prepare each case, open its peers, check, count and measure them, then the runtime's loop."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vitrify.bench.beside import Base, apart
from vitrify.bench.cases import Case
from vitrify.bench.limits import measure_limits
from vitrify.bench.loop import measure_loop
from vitrify.bench.measure import Pace
from vitrify.bench.peers.client import PeerProcess
from vitrify.bench.peers.registry import ANCHORS, OURS, PeerSpec, absence, base_of, is_base, is_ours, peer_specs
from vitrify.bench.prepare import GivenModel, Prepared, prepare
from vitrify.bench.results import CaseResult, RunResult
from vitrify.bench.run_case import measure_case
from vitrify.engine.errors import BackendError

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
    base: Base | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[RunResult, RunResult | None]:
    """Measure `cases`: ours beside its peers, and the base beside the same in the same rounds, where there is one.

    given: a model of the user's own, instead of the cases' own. specs: other peers than the registry's.
    Raises BackendError when a process fails, ParityError when a case's check could not fail.
    """
    limits = {}
    if plan.limits:
        progress("limits")
        limits = measure_limits(plan.threads)
    results, bases = [], []
    for one in cases:
        found = peer_specs(one.kind, plan.peers, plan.caches) if specs is None else specs(one)
        result = _run_case(one, found, plan, given, base, partial(_say, progress, one.name))
        if base is not None:
            result, of_base = apart(result)
            bases.append(of_base)
        results.append(result)
    ours = RunResult(plan.threads, limits, tuple(results))
    return ours, None if base is None else replace(ours, cases=tuple(bases))


def prepare_cases(
    cases: Sequence[Case],
    plan: Plan,
    *,
    given: GivenModel | None = None,
    base: Base | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Build all that `run_cases` would build, and measure nothing: what takes long need not run on a quiet machine."""
    for one in cases:
        progress(f"{one.name}: prepare")
        specs = peer_specs(one.kind, plan.peers, plan.caches)
        _prepared(one, specs, plan, given)
        if base is not None:
            _prepared_base(one, specs, plan, given, base)


def _prepared(one: Case, specs: Mapping[str, PeerSpec], plan: Plan, given: GivenModel | None) -> Prepared:
    builds = [kind for spec in specs.values() if absence(spec) is None for kind in spec.builds]
    return prepare(one, plan.cache, plan.sample, builds=builds, threads=plan.threads, given=given)


def _prepared_base(one: Case, specs: Mapping[str, PeerSpec], plan: Plan, given: GivenModel | None, base: Base) -> Prepared:
    """In a folder of its own: a cache keeps the newest of its kind alone."""
    builds = [kind for name, spec in specs.items() if is_ours(name) for kind in spec.builds]
    model = base.given or given
    try:
        return prepare(
            one, plan.cache / "base", plan.sample, builds=builds, threads=plan.threads, given=model, python=base.python
        )
    except BackendError as error:
        raise BackendError(
            f"case {one.name}: the base could not prepare {', '.join(builds) or 'its artifact'} by {base.python}; if it is older "
            f"than that, choose other --case and --peer: {error}"
        ) from None


def _say(progress: Callable[[str], None], name: str, text: str) -> None:
    progress(f"{name}: {text}")


def _run_case(
    one: Case,
    specs: Mapping[str, PeerSpec],
    plan: Plan,
    given: GivenModel | None,
    base: Base | None,
    progress: Callable[[str], None],
) -> CaseResult:
    """Of the base, if there is one, too: it stands among the peers, under `base_of` the names of ours."""
    absent = {name: why for name, spec in specs.items() if (why := absence(spec)) is not None}
    for name, why in absent.items():
        progress(f"without {name}: {why}")
    present = {name: spec for name, spec in specs.items() if name not in absent}
    progress("prepare")
    prepared = {OURS: _prepared(one, present, plan, given)}
    if base is not None:
        prepared[base_of(OURS)] = _prepared_base(one, present, plan, given, base)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=plan.cache)))
        clients: dict[str, PeerProcess] = {}
        tolerances: dict[str, float] = {}

        def open_peer(spec: PeerSpec, of: Prepared, python: str = sys.executable) -> None:
            progress(f"open {spec.name}")
            clients[spec.name] = stack.enter_context(PeerProcess(spec, of, scratch, threads=plan.threads, python=python))
            clients[spec.name].open()
            tolerances[spec.name] = spec.tolerance

        for name, spec in present.items():
            open_peer(spec, prepared[OURS])
            if base is not None and is_ours(name):
                open_peer(replace(spec, name=base_of(name)), prepared[base_of(OURS)], base.python)
        result = measure_case(
            one,
            clients,
            tolerances,
            scratch,
            pace=plan.pace,
            timed_peers=[name for name in clients if is_ours(name) or is_base(name) or name in (*plan.peers, ANCHORS[one.kind])],
            progress=progress,
        )
    result = replace(result, absent=absent)
    if not result.peers:
        return result
    sizes = {name: {**result.counts.get(name, {}), **_artifact_bytes(of)} for name, of in prepared.items()}
    result = replace(result, counts={**result.counts, **sizes})
    if one.kind == "picture" or not plan.loop_runs:
        return result
    progress("loop")
    return replace(result, loop=measure_loop(prepared[OURS].artifact, steps=one.steps, runs=plan.loop_runs, threads=plan.threads))


def _artifact_bytes(prepared: Prepared) -> dict[str, int]:
    files = [path for path in prepared.artifact.rglob("*") if path.is_file()]
    sizes = {kind: sum(path.stat().st_size for path in files if path.suffix == f".{kind}") for kind in ("safetensors", "onnx")}
    total = sum(path.stat().st_size for path in files)
    return {
        "artifact bytes, weights": sizes["safetensors"],
        "artifact bytes, graphs": sizes["onnx"],
        "artifact bytes, the rest": total - sum(sizes.values()),
    }
