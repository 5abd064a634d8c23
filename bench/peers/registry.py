"""The peers by name: where each one's code lies and how far from the reference it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitrify.engine.errors import RequestError

__all__ = ["DEFAULT_PEERS", "OURS", "PEERS", "REFERENCE", "PeerSpec", "peer_spec"]


@dataclass(frozen=True)
class PeerSpec:
    """A peer. factory: `module:Class` of a Peer. options: for its constructor. needs_plain: runs the unsplit export.

    tolerance: relative error of noise_pred against the reference, above which it gets no number.
    """

    name: str
    summary: str
    factory: str
    tolerance: float
    options: Mapping[str, str | int]
    needs_plain: bool = False


OURS = "vitrify"
REFERENCE = "eager-fp32"

_OURS = "vitrify.bench.peers.ours:Ours"
_EAGER = "vitrify.bench.peers.eager:Eager"
_PLAIN = "vitrify.bench.peers.plain_ort:PlainOrt"
_FLOAT32_TOLERANCE = 1e-4
_BFLOAT16_TOLERANCE = 5e-2

PEERS: Mapping[str, PeerSpec] = {
    spec.name: spec
    for spec in (
        PeerSpec(OURS, "the compiled artifact, condition spread over the steps", _OURS, _FLOAT32_TOLERANCE, {}),
        PeerSpec("plain-ort", "ONNX Runtime on the unsplit float32 export", _PLAIN, _FLOAT32_TOLERANCE, {}, needs_plain=True),
        PeerSpec(REFERENCE, "diffusers, eager PyTorch, float32", _EAGER, _FLOAT32_TOLERANCE, {"dtype": "float32"}),
        PeerSpec("eager-bf16", "diffusers, eager PyTorch, bfloat16", _EAGER, _BFLOAT16_TOLERANCE, {"dtype": "bfloat16"}),
    )
}

DEFAULT_PEERS = tuple(PEERS)


def peer_spec(name: str) -> PeerSpec:
    """The peer called `name`. Raises RequestError listing those there are."""
    if name not in PEERS:
        raise RequestError(f"peer {name!r} is unknown; known: {', '.join(PEERS)}")
    return PEERS[name]
