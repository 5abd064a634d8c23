"""OpenVINO on diffusers' transformer: converted from PyTorch by its own front end, compiled for one request at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch

from vitrify.bench.cases import Case
from vitrify.bench.inputs import CaseInputs, draw_inputs
from vitrify.bench.peers.peer import STEP, Peer
from vitrify.engine.errors import BackendError
from vitrify.engine.session import Array

__all__ = [
    "CALIBRATION_SEEDS",
    "MODEL",
    "OpenVino",
    "compile_model",
    "convert",
    "export_openvino",
    "named_inputs",
    "named_transformer",
    "quantise",
    "with_sinusoids",
]

MODEL = "model.xml"
CALIBRATION_SEEDS = range(101, 117)
"""Inputs that NNCF calibrates on are drawn from these; those that are measured from another."""

_NUMBERS = {"timestep", "guidance"}
_POSITIONS = {"img_ids", "txt_ids"}
_ON_VECTORS = (".*time_text_embed.*", ".*norm[^/]*linear.*")

# OpenVINO and NNCF report their use over the network unless this package of theirs is missing: here it is.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def compile_model(path: Path, *, precision: str, threads: int) -> Any:
    """A compiled model. precision: `f32` or `bf16`, said outright: by default it is whatever the processor is quickest at."""
    import openvino

    core = openvino.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    return core.compile_model(core.read_model(path), "CPU", config)


def convert(model: Any, example: Mapping[str, Any], path: Path) -> None:
    """Convert a PyTorch module for inputs of exactly the example's sizes; weights are stored in float32."""
    import openvino

    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=dict(example))
    shapes = {}
    for port in converted.inputs:
        (name,) = port.get_names() & set(example)
        port.get_tensor().set_names({name})  # the front end adds its own names of values behind a cast
        shapes[port] = list(example[name].shape)
    converted.reshape(shapes)
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, path, compress_to_fp16=False)


def named_inputs(ports: Iterable[Set[str]], given: Mapping[str, Array]) -> dict[str, Array]:
    """What a model takes of `given`, which may hold more: all that the pipeline says.

    ports: the names of each input. A compiled model adds names of its own, in no order, to that which the file has.
    Raises BackendError where an input is not given, or by two names: the model would run on zeros.
    """
    taken = {}
    for names in ports:
        known = sorted(names & given.keys())
        if len(known) != 1:
            raise BackendError(
                f"an input of the converted model goes by {sorted(names)}; of {sorted(given)} expected is one of them"
            )
        taken[known[0]] = given[known[0]]
    return taken


class _Computed(torch.nn.Module):
    """In place of diffusers' `time_proj`: gives the sinusoids that were computed before, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: list[torch.Tensor] = []

    def forward(self, _number: torch.Tensor) -> torch.Tensor:
        return self.ready.pop(0)


class _Named(torch.nn.Module):
    def __init__(self, model: Any, img_ids: torch.Tensor, txt_ids: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.model.time_text_embed.time_proj = self._computed = _Computed()
        self.register_buffer("img_ids", img_ids)
        self.register_buffer("txt_ids", txt_ids)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._computed.ready = [timestep] if guidance is None else [timestep, guidance]
        result: torch.Tensor = self.model(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep,
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            guidance=guidance,
            return_dict=False,
        )[0]
        return result


def named_transformer(model: Any, img_ids: torch.Tensor, txt_ids: torch.Tensor) -> torch.nn.Module:
    """diffusers' transformer as the converter wants it: named arguments in, one tensor out; timestep and guidance as sinusoids.

    Positions become constants, for the sizes are fixed: OpenVINO then computes the rotary tables once, before the first step,
    and in full precision. Left as inputs they cost time in every step, and in bfloat16 angles are off by a tenth of a radian.
    Sinusoids come from outside for the same reason: diffusers computes their angles in float32 in every dtype, OpenVINO rounds
    them to bfloat16, which puts angles up to 1000 off by two radians. Changes `model`.
    """
    return _Named(model, img_ids, txt_ids)


def with_sinusoids(arguments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The transformer's arguments with timestep and guidance, [rows], as their sinusoids, [rows, 256] float32."""
    from diffusers.models.embeddings import get_timestep_embedding

    made = dict(arguments)
    for name in _NUMBERS & made.keys():
        made[name] = get_timestep_embedding(1000 * made[name].float(), 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return made


def export_openvino(case: Case, source: Path, folder: Path) -> None:
    """Write `folder`/model.xml: the case's transformer in float32 for its sizes."""
    from vitrify.bench.peers.eager import load_transformer, tensors

    example = with_sinusoids(tensors(draw_inputs(case, seed=0), 0, torch.float32))
    model = named_transformer(load_transformer(source, torch.float32), example.pop("img_ids"), example.pop("txt_ids"))
    convert(model, example, folder / MODEL)


def quantise(case: Case, converted: Path, folder: Path) -> None:
    """Write `folder`/model.xml: `converted`'s model with int8 weights and activations by NNCF, its preset for transformers.

    Calibrated on a step each of requests that are not those measured. Layers on one vector a sample (embedders of timestep,
    guidance and pooled prompt, modulation) stay as they are, as in ours: NNCF smooths a layer's inputs by the largest that it
    has seen in each channel, and of a vector a request shows one value; those measured then lie far outside.
    """
    import nncf
    import openvino

    samples = [_feeds(draw_inputs(case, seed))[(7 * seed) % case.steps] for seed in CALIBRATION_SEEDS]
    quantised = nncf.quantize(
        openvino.Core().read_model(converted / MODEL),
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(patterns=list(_ON_VECTORS)),
    )
    folder.mkdir()
    openvino.save_model(quantised, folder / MODEL, compress_to_fp16=False)


def _feeds(inputs: CaseInputs) -> list[dict[str, Array]]:
    """What the converted model takes in each step."""
    from vitrify.bench.peers.eager import tensors

    steps = [with_sinusoids(tensors(inputs, step, torch.float32)) for step in range(len(inputs.timesteps))]
    return [{name: value.numpy() for name, value in step.items() if name not in _POSITIONS} for step in steps]


class OpenVino(Peer):
    """build: which prepared model. precision: `f32` or `bf16`, what it computes in where the model does not say int8."""

    def __init__(self, *, build: str, precision: str, **given: Any) -> None:
        super().__init__(**given)
        self._kind = build
        self._precision = precision

    def open(self) -> None:
        compiled = compile_model(self.build(self._kind) / MODEL, precision=self._precision, threads=self.threads)
        self._request = compiled.create_infer_request()
        self._names = {name for port in compiled.inputs for name in port.get_names()}

    def give(self, inputs: CaseInputs) -> None:
        self._steps = _feeds(inputs)
        if set(self._steps[0]) != self._names:
            raise BackendError(f"the converted model takes {sorted(self._names)}, expected {sorted(self._steps[0])}")

    def predict(self, index: int) -> Array:
        result: Array = self._step(index).copy()
        return result

    def calls(self) -> Mapping[str, Callable[[int], object]]:
        return {STEP: self._step}

    def _step(self, index: int) -> Array:
        # Inputs are handed over without a copy where OpenVINO can, as its guide for latency says.
        found: Array = self._request.infer(self._steps[index % len(self._steps)], share_inputs=True, share_outputs=True)[0]
        return found
