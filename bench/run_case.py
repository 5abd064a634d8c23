"""One case, from correctness to ratios: first everybody is held against the reference, then those who are right are timed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from vitrify.bench.cases import Case
from vitrify.bench.inputs import CaseInputs, draw_inputs
from vitrify.bench.measure import Pace, Timing, interleave, rest, summarise
from vitrify.bench.peers.client import PeerClient
from vitrify.bench.peers.ours import CONDITION
from vitrify.bench.peers.peer import STEP
from vitrify.bench.peers.registry import ANCHORS, OURS, REFERENCE, base_of
from vitrify.bench.picture_inputs import PictureInputs, draw_picture_inputs
from vitrify.bench.pictures import to_png
from vitrify.bench.results import CaseResult, Check, PeerResult
from vitrify.engine.errors import ParityError
from vitrify.engine.session import Array
from vitrify.export.parity import Difference, difference

__all__ = ["check_peers", "check_sensitivity", "measure_case", "measure_peers"]

OUTSIDE = "outside plan.run()"
_SPREAD = "condition, per step"
_SEED = 11
_LEAST_MOVE = 1e-2
# The machine's other users come and go within some hundred milliseconds: many short visits tell more than few long ones.
_VISIT_S = 0.02
_MOST_CALLS = 50


def measure_case(
    case: Case,
    clients: Mapping[str, PeerClient],
    tolerances: Mapping[str, float],
    scratch: Path,
    *,
    pace: Pace,
    timed_peers: Collection[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    settle: Callable[[], None] = rest,
) -> CaseResult:
    """Check, then count, then time.

    clients: opened peers by name, the reference among them; the base of one of ours belongs next to it.
    tolerances: a peer's relative error at most.
    timed_peers: those that get numbers if they are right; None: all.
    Raises ParityError if the reference does not notice another input: such a check could not fail.
    """
    inputs = _draw(case, _SEED)
    given = scratch / "inputs.npz"
    inputs.save(given)
    for client in clients.values():
        client.give(given)
    progress("check")
    sensitivity = check_sensitivity(case, clients[REFERENCE], scratch)
    clients[REFERENCE].give(given)
    checks, pictures = check_peers(case, clients, tolerances)
    peers: dict[str, PeerResult] = {}
    counts: dict[str, Mapping[str, int]] = {}
    # Without our own number there is nothing that theirs could be compared with.
    if checks.get(OURS, _UNASKED).passed:
        right = {name: client for name, client in clients.items() if checks[name].passed}
        counts = {name: found for name, client in right.items() if (found := client.counts())}
        progress("measure")
        asked = right if timed_peers is None else {name: client for name, client in right.items() if name in timed_peers}
        peers = measure_peers(case, asked, pace, settle)
    return CaseResult(
        name=case.name,
        kind=case.kind,
        summary=case.summary,
        parameters=case.shape.parameters,
        flops=case.flops,
        dims={"batch": case.batch, "image_tokens": case.image_tokens, "text_tokens": case.text_tokens, "steps": case.steps},
        sensitivity=sensitivity,
        checks=checks,
        peers=peers,
        counts=counts,
        pictures=pictures,
    )


def _draw(case: Case, seed: int) -> CaseInputs | PictureInputs:
    return draw_inputs(case, seed) if case.kind == "step" else draw_picture_inputs(case, seed)


def _checked(case: Case) -> tuple[int, ...]:
    """What is held against the reference: the first and the last step, or every picture."""
    return (0, case.steps - 1) if case.kind == "step" else tuple(range(len(case.prompts)))


_UNASKED = Check(0.0, 0.0, 0.0)


def check_sensitivity(case: Case, reference: PeerClient, scratch: Path) -> dict[str, float]:
    """Input → relative change of the reference's answer when that input changes. Raises ParityError if one does nothing."""
    plain = _numbers(reference.predict(0))
    moved = {}
    for name, changed in _draw(case, _SEED).changes(_SEED + 1).items():
        path = scratch / "changed.npz"
        changed.save(path)
        reference.give(path)
        moved[name] = difference(_numbers(reference.predict(0)), plain).relative
    still = {name: move for name, move in moved.items() if not move >= _LEAST_MOVE}
    if still:
        raise ParityError(
            f"case {case.name}: another {', '.join(still)} moves the reference's answer by {min(still.values()):.1e}, "
            f"expected at least {_LEAST_MOVE:.0e}: its correctness check could not fail; draw other weights"
        )
    return moved


def check_peers(
    case: Case, clients: Mapping[str, PeerClient], tolerances: Mapping[str, float]
) -> tuple[dict[str, Check], dict[str, tuple[bytes, ...]]]:
    """Every peer's answers against the reference's, the worst of them; and, of pictures, the PNG files."""
    found = dict.fromkeys(clients, Difference(0.0, 0.0))
    pictures: dict[str, tuple[bytes, ...]] = {}
    for index in _checked(case):
        reference = clients[REFERENCE].predict(index)
        for name, client in clients.items():
            answer = reference if name == REFERENCE else client.predict(index)
            if name != REFERENCE:
                found[name] = found[name] | difference(_numbers(answer), _numbers(reference))
            elif not np.isfinite(reference).all():
                found[name] = Difference(np.inf, np.inf)
            if case.kind == "picture" and answer.dtype == np.uint8:
                pictures[name] = (*pictures.get(name, ()), to_png(answer))
    return {name: Check(d.relative, d.worst, tolerances[name]) for name, d in found.items()}, pictures


def _numbers(answer: Array) -> Array:
    return answer.astype(np.float32) if answer.dtype == np.uint8 else answer


def measure_peers(
    case: Case, clients: Mapping[str, PeerClient], pace: Pace, settle: Callable[[], None] = rest
) -> dict[str, PeerResult]:
    """Let the peers take turns, in rounds; a visit is one call to warm up and then as many as fill its time.

    Rounds go on until each of ours is known in units of its base as `pace` wants it; without a base, ours in units of the anchor.
    """
    counts = {name: _calls_a_visit(case, client) for name, client in clients.items()}
    # A median of fewer values leans another way where their scatter is lopsided.
    counts |= {base_of(name): count for name, count in counts.items() if base_of(name) in counts}

    def visit(name: str, number: int) -> dict[str, Timing]:
        client = clients[name]
        # Under a cache prompts take different times: in one round all peers draw the same.
        index = None if case.kind == STEP else number % len(case.prompts)
        client.time(case.kind, 1, index)
        timings: dict[str, Timing] = {case.kind: client.time(case.kind, counts[name], index)}
        if name in (OURS, base_of(OURS)) and case.kind == STEP:
            timings[CONDITION] = client.time(CONDITION, 1)
        return timings

    rounds: dict[str, list[float]] = {name: [] for name in clients}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    judged = [(name, base_of(name)) for name in clients if base_of(name) in clients] or [(OURS, ANCHORS[case.kind])]
    while more := max(pace.more(rounds.get(ours, []), rounds.get(other, [])) for ours, other in judged) if clients else 0:
        visits = interleave(tuple(clients), more, visit, first=len(next(iter(rounds.values()))), settle=settle)
        for name, of_peer in visits.items():
            for both in of_peer:
                whole, inside = _round(case, *both)
                rounds[name].append(whole)
                parts[name].append(inside)
    return {
        name: PeerResult(tuple(found), {part: summarise([one[part] for one in parts[name]]) for part in parts[name][0]})
        for name, found in rounds.items()
    }


def _calls_a_visit(case: Case, client: PeerClient) -> int:
    client.time(case.kind, 1)
    seconds = min(client.time(case.kind, 2).seconds)
    return max(1, min(_MOST_CALLS, round(_VISIT_S / max(seconds, 1e-6))))


def _round(case: Case, first: Mapping[str, Timing], second: Mapping[str, Timing]) -> tuple[float, dict[str, float]]:
    """Seconds of a call in one round, and of its parts; `condition` spread over the run's steps."""
    step = first[case.kind] + second[case.kind]
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
