"""`vitrify bench components`: text encoders and VAE decoder beside OpenVINO's of the same weights, in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrify.bench.cases import Case, from_json, to_json
from vitrify.bench.jobs import run_job
from vitrify.bench.measure import Summary, interleave, now, ratios, summarise, timed
from vitrify.bench.prepare import Prepared
from vitrify.engine.errors import ParityError
from vitrify.engine.session import Array
from vitrify.engine.specs import MODEL

if TYPE_CHECKING:
    from vitrify.runtime.components import CompiledModel, GraphModel

__all__ = ["COMPONENTS", "PRECISIONS", "ComponentResult", "component_builds", "measure_components"]

COMPONENTS = ("text_encoder", "text_encoder_2", "vae")
_OURS, _THEIRS = "vitrify", "openvino"
PRECISIONS = {"fp32": ("f32", 1e-4), "bf16": ("bf16", 5e-2)}
"""Precision → OpenVINO's name for it, and the relative error allowed."""
_VISIT_S = 0.25
_SEED = 0

Call = Callable[[], Array]


@dataclass(frozen=True)
class ComponentResult:
    """ours, theirs: seconds a call. ratio: ours / theirs, round by round.

    shape: of what ours gives. our_error, error: ‖a − b‖₂ / ‖b‖₂ against diffusers' and transformers' own in float32.
    """

    name: str
    shape: tuple[int, ...]
    our_error: float
    error: float
    ours: Summary
    theirs: Summary
    ratio: Summary

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ComponentResult:
        summaries = {name: Summary(**data[name]) for name in ("ours", "theirs", "ratio")}
        return cls(**{**data, **summaries, "shape": tuple(data["shape"])})


def component_builds(precision: str) -> tuple[str, ...]:
    """What `prepare` has to build for `measure_components`."""
    from vitrify.bench.peers.diffusers_pictures import OPENVINO_MODELS

    return (OPENVINO_MODELS,) if precision == "fp32" else (OPENVINO_MODELS, f"vitrify-{precision}")


def measure_components(one: Case, prepared: Prepared, *, precision: str, rounds: int, threads: int) -> list[ComponentResult]:
    """Each of COMPONENTS at the case's size, ours and OpenVINO's in turns, both in one of PRECISIONS.

    prepared: with the builds of `component_builds`. Raises ParityError where one of them is off by more than is allowed, so that
    no number comes of it, and BackendError as `run_job`.
    """
    given = {"case": to_json(one), "prepared": prepared.to_json(), "rounds": rounds, "threads": threads, "precision": precision}
    answer = run_job("vitrify.bench.components", given, threads=threads)
    if "wrong" in answer:
        raise ParityError(answer["wrong"])
    return [ComponentResult.from_json(found) for found in answer["results"]]


def _inputs(one: Case, pipeline: Any) -> dict[str, tuple[str, Array]]:
    """Component → (the name of its input, what is given): a prompt's tokens, and normal latents."""
    given = {}
    lengths = {"text_encoder": pipeline.tokenizer_max_length, "text_encoder_2": one.text_tokens}
    for name, tokenizer in (("text_encoder", pipeline.tokenizer), ("text_encoder_2", pipeline.tokenizer_2)):
        ids = tokenizer(one.prompts[0], padding="max_length", max_length=lengths[name], truncation=True, return_tensors="np")
        given[name] = ("input_ids", ids.input_ids.astype(np.int64))
    scale = pipeline.vae_scale_factor
    shape = (1, pipeline.vae.config.latent_channels, one.height_px // scale, one.width_px // scale)
    given["vae"] = ("latents", np.random.default_rng(_SEED).standard_normal(shape, dtype=np.float32))
    return given


def _expected(pipeline: Any, given: Mapping[str, tuple[str, Array]]) -> dict[str, Array]:
    """What PyTorch gives for them in float32."""
    import torch

    with torch.no_grad():
        made = {
            "text_encoder": pipeline.text_encoder(torch.from_numpy(given["text_encoder"][1])).pooler_output,
            "text_encoder_2": pipeline.text_encoder_2(torch.from_numpy(given["text_encoder_2"][1])).last_hidden_state,
            "vae": pipeline.vae.decode(torch.from_numpy(given["vae"][1]), return_dict=False)[0],
        }
    return {name: value.numpy() for name, value in made.items()}


def _ours(one: Case, artifact: Path, given: Mapping[str, tuple[str, Array]], threads: int) -> Iterator[tuple[str, Call]]:
    """Our VAE's graph takes latents as the denoiser leaves them and gives pixels from 0 to 1: it does more than theirs."""
    from vitrify.runtime import load

    pipe = load(artifact, threads=threads)
    for name, (_, drawn) in given.items():
        array, sizes = drawn, dict[str, int]()
        component: CompiledModel = getattr(pipe, name)
        if name == "vae":
            config = component.spec.config
            array = (array - np.float32(config["shift_factor"])) * np.float32(config["scaling_factor"])
            sizes = {"height": one.height_px, "width": one.width_px}
        graph = component.spec.graphs[MODEL]
        yield name, partial(_run_ours, component.model, {graph.inputs[0].name: array}, sizes, graph.outputs[0].name)


def _run_ours(model: GraphModel, feed: Mapping[str, Array], sizes: Mapping[str, int], output: str) -> Array:
    return model(feed, sizes)[output]


def _pixels(decoded: Array) -> Array:
    """[1, 3, height, width] as the VAE gives it → [1, height, width, 3] from 0 to 1."""
    return np.clip(decoded / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)


def _theirs(folder: Path, given: Mapping[str, tuple[str, Array]], precision: str, threads: int) -> Iterator[tuple[str, Call]]:
    from vitrify.bench.peers.openvino import compile_model

    for name, (argument, array) in given.items():
        request = compile_model(
            folder / f"{name}.xml", precision=PRECISIONS[precision][0], threads=threads
        ).create_infer_request()
        feed = {argument: array}
        yield name, partial(_run_theirs, request, feed)


def _run_theirs(request: Any, feed: Mapping[str, Array]) -> Array:
    found: Array = request.infer(feed, share_inputs=True, share_outputs=False)[0]
    return found


def _measure_here(one: Case, prepared: Prepared, precision: str, rounds: int, threads: int) -> list[ComponentResult]:
    import torch

    from vitrify.bench.peers.diffusers_pictures import OPENVINO_MODELS, load_pipeline

    pipeline = load_pipeline(prepared.source, torch.float32)
    given = _inputs(one, pipeline)
    expected = _expected(pipeline, given)
    del pipeline
    artifact = prepared.artifact if precision == "fp32" else prepared.builds[f"vitrify-{precision}"] / "artifact"
    ours = dict(_ours(one, artifact, given, threads))
    theirs = dict(_theirs(prepared.builds[OPENVINO_MODELS], given, precision, threads))
    return [
        _component(
            name,
            {_OURS: ours[name], _THEIRS: theirs[name]},
            {_OURS: _pixels(expected[name]) if name == "vae" else expected[name], _THEIRS: expected[name]},
            PRECISIONS[precision][1],
            rounds,
        )
        for name in COMPONENTS
    ]


def _component(
    name: str, calls: Mapping[str, Call], expected: Mapping[str, Array], allowed: float, rounds: int
) -> ComponentResult:
    errors = {peer: _relative(call(), expected[peer]) for peer, call in calls.items()}
    for peer, error in errors.items():
        if not error <= allowed:
            raise ParityError(f"{name}: {peer} is off by {error:.1e}, allowed {allowed:.0e}; no times are given")
    counts = {peer: max(1, int(_VISIT_S / _once(call))) for peer, call in calls.items()}

    def visit(peer: str, _: int) -> float:
        calls[peer]()  # Wakes the pool; does not count.
        return float(np.median(timed(lambda _: calls[peer](), counts[peer]).seconds))

    found = interleave(tuple(calls), rounds, visit)
    seconds = {peer: [float(np.mean(visits)) for visits in found[peer]] for peer in calls}
    return ComponentResult(
        name=name,
        shape=expected[_OURS].shape,
        our_error=errors[_OURS],
        error=errors[_THEIRS],
        ours=summarise(seconds[_OURS]),
        theirs=summarise(seconds[_THEIRS]),
        ratio=summarise(ratios(seconds[_OURS], seconds[_THEIRS])),
    )


def _relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _once(call: Call) -> float:
    start = now()
    call()
    return now() - start


def main() -> None:
    """The job that `measure_components` runs."""
    given = json.loads(sys.argv[1])
    try:
        prepared = Prepared.from_json(given["prepared"])
        found = _measure_here(from_json(given["case"]), prepared, given["precision"], given["rounds"], given["threads"])
    except ParityError as error:
        print(json.dumps({"wrong": str(error)}))
        return
    print(json.dumps({"results": [one.to_json() for one in found]}))


if __name__ == "__main__":
    main()
