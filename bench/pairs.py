"""Ours and a peer that compute in the same precision, bfloat16 or int8: the ratio that says who is quicker at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vitrify.bench.measure import Summary
from vitrify.bench.peers.registry import OURS, PEERS, in_precision, is_ours
from vitrify.bench.results import CaseResult

__all__ = ["Pair", "pairs"]


@dataclass(frozen=True)
class Pair:
    """ours, peer: their names. ratio: ours by theirs. our_error, error: each one's ‖a − b‖₂ / ‖b‖₂ against float32."""

    ours: str
    peer: str
    ratio: Summary
    our_error: float
    error: float


def pairs(case: CaseResult) -> Iterator[Pair]:
    """Every measured peer in less than float32 beside ours, where that was measured too."""
    for name, peer in case.peers.items():
        spec = PEERS[case.kind].get(name)
        if spec is None or is_ours(name):
            continue
        ours = in_precision(spec.precision)
        if ours != OURS and ours in case.peers:
            errors = (case.checks[which].relative for which in (ours, name))
            yield Pair(ours, name, case.peers[ours].over(peer), *errors)
