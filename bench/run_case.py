"""One case, from correctness to ratios: first everybody is held against the reference, then those who are right are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vitrify.bench.cases import Case
from vitrify.bench.inputs import draw_inputs
from vitrify.bench.measure import Summary, Timing, interleave, ratios, rest, summarise
from vitrify.bench.peers.client import PeerClient
from vitrify.bench.peers.ours import CONDITION
from vitrify.bench.peers.peer import STEP
from vitrify.bench.peers.registry import OURS, REFERENCE
from vitrify.bench.results import CaseResult, Check, PeerResult
from vitrify.engine.errors import ParityError
from vitrify.export.parity import Difference, difference

__all__ = ["check_peers", "check_sensitivity", "measure_case", "measure_peers"]

OUTSIDE = "outside plan.run()"
_SPREAD = "condition, per step"
_SEED = 11
_LEAST_MOVE = 1e-2
_VISIT_S = 0.25
_MOST_STEPS = 50


def measure_case(
    case: Case,
    clients: Mapping[str, PeerClient],
    tolerances: Mapping[str, float],
    scratch: Path,
    *,
    rounds: int,
    progress: Callable[[str], None] = lambda _: None,
    settle: Callable[[], None] = rest,
) -> CaseResult:
    """Check, then time. clients: opened peers by name, the reference among them. tolerances: a peer's relative error at most.

    Raises ParityError if the reference does not notice another input: such a check could not fail.
    """
    inputs = draw_inputs(case, _SEED)
    given = scratch / "inputs.npz"
    inputs.save(given)
    for client in clients.values():
        client.give(given)
    progress("check")
    sensitivity = check_sensitivity(case, clients[REFERENCE], scratch)
    clients[REFERENCE].give(given)
    checks = check_peers(case, clients, tolerances)
    right = {name: client for name, client in clients.items() if checks[name].passed}
    # Without our own number there is nothing that theirs could be compared with.
    peers = {}
    if checks.get(OURS, _UNASKED).passed:
        progress("measure")
        peers = measure_peers(case, right, rounds, settle)
    dims = {"batch": case.batch, "image_tokens": case.image_tokens, "text_tokens": case.text_tokens, "steps": case.steps}
    return CaseResult(case.name, case.shape.parameters, case.flops, dims, sensitivity, checks, peers)


_UNASKED = Check(0.0, 0.0, 0.0)


def check_sensitivity(case: Case, reference: PeerClient, scratch: Path) -> dict[str, float]:
    """Input → relative change of the reference's noise_pred when that input changes. Raises ParityError if one does nothing."""
    plain = reference.predict(0)
    moved = {}
    for name, changed in draw_inputs(case, _SEED).changes(_SEED + 1).items():
        path = scratch / "changed.npz"
        changed.save(path)
        reference.give(path)
        moved[name] = difference(reference.predict(0), plain).relative
    still = {name: move for name, move in moved.items() if not move >= _LEAST_MOVE}
    if still:
        raise ParityError(
            f"case {case.name}: another {', '.join(still)} moves the reference's noise_pred by {min(still.values()):.1e}, "
            f"expected at least {_LEAST_MOVE:.0e}: its correctness check could not fail; draw other weights"
        )
    return moved


def check_peers(case: Case, clients: Mapping[str, PeerClient], tolerances: Mapping[str, float]) -> dict[str, Check]:
    """Every peer's noise_pred of the first and the last step against the reference's, the worse of both."""
    found = dict.fromkeys(clients, Difference(0.0, 0.0))
    for step in (0, case.steps - 1):
        reference = clients[REFERENCE].predict(step)
        for name, client in clients.items():
            if name != REFERENCE:
                found[name] = found[name] | difference(client.predict(step), reference)
            elif not np.isfinite(reference).all():
                found[name] = Difference(np.inf, np.inf)
    return {name: Check(d.relative, d.worst, tolerances[name]) for name, d in found.items()}


def measure_peers(
    case: Case, clients: Mapping[str, PeerClient], rounds: int, settle: Callable[[], None] = rest
) -> dict[str, PeerResult]:
    """Let the peers take turns over `rounds` rounds; a visit is one step to warm up and then as many as fill its time."""
    counts = {name: _steps_a_visit(client) for name, client in clients.items()}

    def visit(name: str) -> dict[str, Timing]:
        client = clients[name]
        client.time(STEP, 1)
        timings = {STEP: client.time(STEP, counts[name])}
        if name == OURS:
            timings[CONDITION] = client.time(CONDITION, 1)
        return timings

    visits = interleave(tuple(clients), rounds, visit, settle=settle)
    per_round = {name: [_round(case, *both) for both in of_peer] for name, of_peer in visits.items()}
    steps = {name: [whole for whole, _ in found] for name, found in per_round.items()}
    results = {}
    for name, found in per_round.items():
        parts = {part: summarise([values[part] for _, values in found]) for part in found[0][1]}
        ratio: Summary | None = summarise(ratios(steps[OURS], steps[name])) if OURS in steps and name != OURS else None
        results[name] = PeerResult(summarise(steps[name]), parts, ratio)
    return results


def _steps_a_visit(client: PeerClient) -> int:
    client.time(STEP, 1)
    seconds = min(client.time(STEP, 2).seconds)
    return max(1, min(_MOST_STEPS, round(_VISIT_S / max(seconds, 1e-6))))


def _round(case: Case, first: Mapping[str, Timing], second: Mapping[str, Timing]) -> tuple[float, dict[str, float]]:
    """Seconds of a step in one round, and of its parts; `condition` spread over the run's steps."""
    step = first[STEP] + second[STEP]
    whole = float(np.median(step.seconds))
    parts = {name: float(np.median(seconds)) for name, seconds in step.parts.items()}
    if parts:
        inside = np.sum([step.parts[name] for name in parts], axis=0)
        parts[OUTSIDE] = float(np.median(np.asarray(step.seconds) - inside))
    if CONDITION in first:
        spread = float(np.median((first[CONDITION] + second[CONDITION]).seconds)) / case.steps
        parts = {_SPREAD: spread, **parts}
        whole += spread
    return whole, parts
