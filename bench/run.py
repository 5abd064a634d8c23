"""`bench run`: prepare each case, open its peers, measure them, then the runtime's loop."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vitrify.bench.cases import Case, case
from vitrify.bench.limits import measure_limits
from vitrify.bench.loop import measure_loop
from vitrify.bench.peers.client import PeerProcess
from vitrify.bench.peers.registry import OURS, REFERENCE, peer_spec
from vitrify.bench.prepare import prepare
from vitrify.bench.results import CaseResult, RunResult
from vitrify.bench.run_case import measure_case

__all__ = ["run_cases"]


def run_cases(
    cases: Sequence[str],
    peers: Sequence[str],
    *,
    rounds: int,
    runs: int,
    threads: int,
    cache: Path,
    sample: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """Measure `cases` with `peers`; ours and the reference always take part.

    rounds: of turns. runs: whole requests through the runtime's loop. cache: keeps what is built.
    Raises BackendError when a process fails, ParityError when a case's check could not fail.
    """
    names = tuple(dict.fromkeys((OURS, *peers, REFERENCE)))
    progress("limits")
    limits = measure_limits(threads)
    results = []
    for name in cases:
        one = case(name)
        results.append(
            _run_case(one, names, rounds, runs, threads, cache, sample, lambda text, name=name: progress(f"{name}: {text}"))  # type: ignore[misc]
        )
    return RunResult(threads, rounds, limits, tuple(results))


def _run_case(
    one: Case,
    names: Sequence[str],
    rounds: int,
    runs: int,
    threads: int,
    cache: Path,
    sample: Path,
    progress: Callable[[str], None],
) -> CaseResult:
    specs = {name: peer_spec(name) for name in names}
    progress("prepare")
    prepared = prepare(one, cache, sample, plain=any(spec.needs_plain for spec in specs.values()), threads=threads)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=cache)))
        clients = {}
        for name, spec in specs.items():
            progress(f"open {name}")
            clients[name] = stack.enter_context(PeerProcess(spec, prepared, scratch, threads=threads))
            clients[name].open()
        tolerances = {name: spec.tolerance for name, spec in specs.items()}
        result = measure_case(one, clients, tolerances, scratch, rounds=rounds, progress=progress)
    if not result.peers:
        return result
    progress("loop")
    return replace(result, loop=measure_loop(prepared.artifact, steps=one.steps, runs=runs, threads=threads))
