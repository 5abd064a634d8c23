"""The peers by name: where each one's code lies, what it needs, how far from the reference it may be."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitrify.bench.cases import Kind
from vitrify.engine.errors import RequestError

__all__ = [
    "ANCHORS",
    "OURS",
    "PEERS",
    "PICTURE_PEERS",
    "REFERENCE",
    "STEP_PEERS",
    "PeerSpec",
    "Precision",
    "absence",
    "base_of",
    "cached_peer",
    "in_precision",
    "is_base",
    "is_ours",
    "peer_specs",
]

Precision = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True)
class PeerSpec:
    """A peer. factory: `module:Class` of a Peer. options: for its constructor. builds: what must be prepared for it.

    tolerance: relative error against the reference, above which it gets no number.
    packages, programs: without which it cannot run.
    """

    name: str
    summary: str
    factory: str
    precision: Precision
    tolerance: float
    options: Mapping[str, str | int]
    builds: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


OURS = "vitrify"
_BASE = "base "
REFERENCE = "eager-fp32"

ANCHORS: Mapping[Kind, str] = {"step": "plain-ort", "picture": REFERENCE}
"""Kind of case → the peer that times are compared by from run to run: pinned software that no change of ours makes faster."""

_STEP_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2, "int8": 1e-1}
"""‖a − b‖₂ / ‖b‖₂ of noise_pred."""

_PICTURE_TOLERANCE: Mapping[Precision, float] = {"fp32": 2e-3, "bf16": 1e-1, "int8": 2e-1}
"""The same of uint8 pictures; a level of one value in four is 2e-3 of a mean grey."""

_CACHED_TOLERANCE = 3e-1

_LOWERED: Mapping[Precision, str] = {"bf16": f"{OURS}-bf16", "int8": f"{OURS}-int8"}
"""Precision → what is prepared for ours in it."""

_OPENVINO = ("openvino",)
_INT8 = ("openvino", "nncf")
_CXX = ("c++",)

_OURS = "vitrify.bench.peers.ours:Ours"
_EAGER = "vitrify.bench.peers.eager:Eager"
_COMPILED = "vitrify.bench.peers.torch_compile:Compiled"
_PLAIN = "vitrify.bench.peers.plain_ort:PlainOrt"
_OV = "vitrify.bench.peers.openvino:OpenVino"
_OUR_PICTURES = "vitrify.bench.peers.our_pictures:OurPictures"
_THEIR_PICTURES = "vitrify.bench.peers.diffusers_pictures:DiffusersPictures"


def _step(
    name: str, summary: str, factory: str, precision: Precision, options: Mapping[str, str], *needs: tuple[str, ...]
) -> PeerSpec:
    return PeerSpec(name, summary, factory, precision, _STEP_TOLERANCE[precision], options, *needs)


def _picture(name: str, summary: str, precision: Precision, options: Mapping[str, str], *needs: tuple[str, ...]) -> PeerSpec:
    return PeerSpec(name, summary, _THEIR_PICTURES, precision, _PICTURE_TOLERANCE[precision], options, *needs)


STEP_PEERS: Mapping[str, PeerSpec] = {
    spec.name: spec
    for spec in (
        _step(OURS, "the compiled artifact, condition spread over the steps", _OURS, "fp32", {}),
        *(
            _step(
                f"{OURS}-{precision}",
                f"exported with --precision {precision}",
                _OURS,
                precision,
                {"build": build},
                (build,),
            )
            for precision, build in _LOWERED.items()
        ),
        _step("plain-ort", "ONNX Runtime on the unsplit float32 export", _PLAIN, "fp32", {}, ("plain",)),
        _step(REFERENCE, "diffusers, eager PyTorch, float32", _EAGER, "fp32", {"dtype": "float32"}),
        _step("eager-bf16", "diffusers, eager PyTorch, bfloat16", _EAGER, "bf16", {"dtype": "bfloat16"}),
        _step("compile-fp32", "torch.compile, float32", _COMPILED, "fp32", {"dtype": "float32"}, (), (), _CXX),
        _step("compile-bf16", "torch.compile, bfloat16", _COMPILED, "bf16", {"dtype": "bfloat16"}, (), (), _CXX),
        _step(
            "openvino-fp32", "OpenVINO, float32", _OV, "fp32", {"build": "openvino", "precision": "f32"}, ("openvino",), _OPENVINO
        ),
        _step(
            "openvino-bf16",
            "OpenVINO, bfloat16 by hint",
            _OV,
            "bf16",
            {"build": "openvino", "precision": "bf16"},
            ("openvino",),
            _OPENVINO,
        ),
        _step(
            "openvino-int8",
            "OpenVINO on NNCF's int8 of weights and activations, the rest bfloat16",
            _OV,
            "int8",
            {"build": "openvino-int8", "precision": "bf16"},
            ("openvino-int8",),
            _INT8,
        ),
    )
}
"""Those that compute one denoising step."""

PICTURE_PEERS: Mapping[str, PeerSpec] = {
    spec.name: spec
    for spec in (
        PeerSpec(
            OURS,
            "the compiled artifact, every step computed",
            _OUR_PICTURES,
            "fp32",
            _PICTURE_TOLERANCE["fp32"],
            {"cache": "none"},
        ),
        *(
            PeerSpec(
                f"{OURS}-{precision}",
                f"exported with --precision {precision}",
                _OUR_PICTURES,
                precision,
                _PICTURE_TOLERANCE[precision],
                {"cache": "none", "build": build},
                (build,),
            )
            for precision, build in _LOWERED.items()
        ),
        _picture(REFERENCE, "diffusers' FluxPipeline, eager, float32", "fp32", {"dtype": "float32", "engine": "eager"}),
        _picture("eager-bf16", "diffusers' FluxPipeline, eager, bfloat16", "bf16", {"dtype": "bfloat16", "engine": "eager"}),
        _picture(
            "compile-fp32",
            "diffusers' FluxPipeline, its models by torch.compile, float32",
            "fp32",
            {"dtype": "float32", "engine": "compile"},
            (),
            (),
            _CXX,
        ),
        _picture(
            "compile-bf16",
            "diffusers' FluxPipeline, its models by torch.compile, bfloat16",
            "bf16",
            {"dtype": "bfloat16", "engine": "compile"},
            (),
            (),
            _CXX,
        ),
        _picture(
            "openvino-fp32",
            "diffusers' FluxPipeline, its models by OpenVINO, float32",
            "fp32",
            {"dtype": "float32", "engine": "openvino", "precision": "f32"},
            ("openvino-models",),
            _OPENVINO,
        ),
        _picture(
            "openvino-bf16",
            "diffusers' FluxPipeline, its models by OpenVINO, bfloat16 by hint",
            "bf16",
            {"dtype": "float32", "engine": "openvino", "precision": "bf16"},
            ("openvino-models",),
            _OPENVINO,
        ),
    )
}
"""Those that draw whole pictures."""

PEERS: Mapping[Kind, Mapping[str, PeerSpec]] = {"step": STEP_PEERS, "picture": PICTURE_PEERS}


def is_ours(name: str) -> bool:
    """Whether this is ours, in whatever precision and under whatever cache."""
    return name.startswith(OURS)


def base_of(name: str) -> str:
    """The name of what one of ours is held against in the same rounds; see vitrify.bench.beside."""
    return _BASE + name


def is_base(name: str) -> bool:
    """Whether this is the base of one of ours."""
    return name.startswith(_BASE)


def in_precision(precision: Precision) -> str:
    """Ours that computes in `precision`."""
    return _LOWERED.get(precision, OURS)


def cached_peer(cache: str) -> PeerSpec:
    """Ours under the step cache called `cache`, for whole pictures."""
    return PeerSpec(
        f"{OURS}+{cache}",
        f"the compiled artifact, step cache {cache}",
        _OUR_PICTURES,
        "fp32",
        _CACHED_TOLERANCE,
        {"cache": cache},
    )


def peer_specs(kind: Kind, names: tuple[str, ...], caches: tuple[str, ...] = ()) -> dict[str, PeerSpec]:
    """The peers called `names` that this kind of case has, with ours, the reference and the anchor, in the registry's order.

    caches: step caches under which ours draws pictures too. Raises RequestError for a name that no kind knows.
    """
    known = dict.fromkeys(name for peers in PEERS.values() for name in peers)
    for name in names:
        if name not in known:
            raise RequestError(f"peer {name!r} is unknown; known: {', '.join(known)}")
    found = {name: spec for name, spec in PEERS[kind].items() if name in (OURS, REFERENCE, ANCHORS[kind], *names)}
    if kind == "picture":
        cached = {spec.name: spec for spec in map(cached_peer, caches)}
        found = {OURS: found.pop(OURS), **cached, **found}
    return found


def absence(spec: PeerSpec) -> str | None:
    """Why this peer cannot run here, and what to do about it; None if it can."""
    for package in spec.packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; pip install -c constraints.txt '.[bench-peers]'"
    for program in spec.programs:
        if shutil.which(program) is None:
            return f"{program} was not found; install a C++ compiler"
    return None
