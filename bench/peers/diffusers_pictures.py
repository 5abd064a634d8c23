"""Whole pictures by diffusers' FluxPipeline: its models in eager PyTorch, through torch.compile, or through OpenVINO."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vitrify.bench.peers.peer import PICTURE, Peer
from vitrify.bench.picture_inputs import PictureInputs
from vitrify.engine.session import Array

__all__ = ["OPENVINO_MODELS", "DiffusersPictures", "export_models", "load_pipeline"]

OPENVINO_MODELS = "openvino-models"


def load_pipeline(source: Path, dtype: torch.dtype) -> Any:
    """diffusers' pipeline of a folder, quiet, with its weights in `dtype`."""
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flux: Any = diffusers.FluxPipeline
        pipeline = flux.from_pretrained(source, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class DiffusersPictures(Peer):
    """dtype: of weights and activations. engine: `eager`, `compile` or `openvino`; precision: OpenVINO's, `f32` or `bf16`."""

    inputs_type = PictureInputs

    def __init__(self, *, dtype: str, engine: str, precision: str = "f32", **given: Any) -> None:
        super().__init__(**given)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._engine = engine
        self._precision = precision

    def open(self) -> None:
        torch.set_num_threads(self.threads)
        self._pipeline = load_pipeline(self.source, self._dtype)
        if self._engine == "compile":
            _compile(self._pipeline)
        elif self._engine == "openvino":
            _use_openvino(self._pipeline, self.build(OPENVINO_MODELS), self._precision, self.threads)

    def give(self, inputs: PictureInputs) -> None:
        self.requests = [
            {
                "prompt": prompt,
                "negative_prompt": inputs.negative_prompt,
                "true_cfg_scale": inputs.true_cfg_scale,
                "num_inference_steps": inputs.num_inference_steps,
                "height": inputs.height,
                "width": inputs.width,
                "max_sequence_length": inputs.max_sequence_length,
                "latents": torch.from_numpy(inputs.latents[index : index + 1]).to(self._dtype),
            }
            for index, prompt in enumerate(inputs.prompts)
        ]

    def predict(self, index: int) -> Array:
        return self._drawn(index)

    def calls(self) -> Mapping[str, Callable[[int], object]]:
        return {PICTURE: self._drawn}

    def _drawn(self, index: int) -> Array:
        return np.asarray(self._pipeline(**self.requests[index % len(self.requests)]).images[0])


def _compile(pipeline: Any) -> None:
    from vitrify.bench.peers.torch_compile import freeze_weights

    freeze_weights()
    for model in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae.decoder):
        model.compile(dynamic=False)


class _Model(torch.nn.Module):
    """One of a pipeline's models, run by OpenVINO; a module without parameters, for the pipeline walks over its modules."""

    def __init__(self, model: Any, path: Path, precision: str, threads: int) -> None:
        from vitrify.bench.peers.openvino import compile_model

        super().__init__()
        self.config = model.config
        self.dtype = model.dtype
        self.device = torch.device("cpu")
        self._request = compile_model(path, precision=precision, threads=threads).create_infer_request()

    def _run(self, **given: torch.Tensor | None) -> torch.Tensor:
        from vitrify.bench.peers.openvino import named_inputs

        arrays = {name: value.numpy() for name, value in given.items() if value is not None}
        feed = named_inputs([port.get_names() for port in self._request.model_inputs], arrays)
        found = self._request.infer(feed, share_inputs=True, share_outputs=False)[0]
        return torch.from_numpy(found)


class _Transformer(_Model):
    @contextlib.contextmanager
    def cache_context(self, _name: str) -> Iterator[None]:
        yield

    def forward(self, *, joint_attention_kwargs: Any = None, return_dict: bool = False, **given: Any) -> tuple[torch.Tensor]:
        del joint_attention_kwargs, return_dict
        from vitrify.bench.peers.openvino import with_sinusoids

        return (self._run(**with_sinusoids({name: value for name, value in given.items() if value is not None})),)


class _Clip(_Model):
    def forward(self, input_ids: torch.Tensor, **_options: Any) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self._run(input_ids=input_ids))


class _T5(_Model):
    def forward(self, input_ids: torch.Tensor, **_options: Any) -> tuple[torch.Tensor]:
        return (self._run(input_ids=input_ids),)


class _Vae(_Model):
    def decode(self, latents: torch.Tensor, **_options: Any) -> tuple[torch.Tensor]:
        return (self._run(latents=latents),)


_KINDS: Mapping[str, type[_Model]] = {"transformer": _Transformer, "text_encoder": _Clip, "text_encoder_2": _T5, "vae": _Vae}


def _use_openvino(pipeline: Any, folder: Path, precision: str, threads: int) -> None:
    for name, kind in _KINDS.items():
        setattr(pipeline, name, kind(getattr(pipeline, name), folder / f"{name}.xml", precision, threads))


def export_models(source: Path, inputs: PictureInputs, folder: Path) -> None:
    """Write transformer.xml, text_encoder.xml, text_encoder_2.xml and vae.xml for one picture of `inputs`, in float32.

    The sizes are those of the calls that diffusers' own pipeline makes while it draws that picture.
    """
    from vitrify.bench.peers.openvino import convert, named_transformer, with_sinusoids

    pipeline = load_pipeline(source, torch.float32)
    peer = DiffusersPictures(
        dtype="float32", engine="eager", source=source, artifact=source, builds={}, threads=torch.get_num_threads()
    )
    peer.give(inputs)
    ids = pipeline.tokenizer(
        "", padding="max_length", max_length=pipeline.tokenizer_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    ids_2 = pipeline.tokenizer_2(
        "", padding="max_length", max_length=inputs.max_sequence_length, truncation=True, return_tensors="pt"
    ).input_ids
    seen: dict[str, Any] = {}
    handle = pipeline.transformer.register_forward_pre_hook(lambda _m, _args, given: seen.update(given), with_kwargs=True)
    scale = pipeline.vae_scale_factor
    latents = torch.zeros(1, pipeline.vae.config.latent_channels, inputs.height // scale, inputs.width // scale)
    pipeline(**{**peer.requests[0], "num_inference_steps": 1})
    handle.remove()
    example = {name: value for name, value in seen.items() if isinstance(value, torch.Tensor)}
    named = named_transformer(pipeline.transformer, example.pop("img_ids"), example.pop("txt_ids"))
    convert(named, with_sinusoids(example), folder / "transformer.xml")
    convert(_Named(pipeline.text_encoder, "pooler_output"), {"input_ids": ids}, folder / "text_encoder.xml")
    convert(_Named(pipeline.text_encoder_2, "last_hidden_state"), {"input_ids": ids_2}, folder / "text_encoder_2.xml")
    convert(_Decoder(pipeline.vae), {"latents": latents}, folder / "vae.xml")


class _Named(torch.nn.Module):
    """An encoder that gives one of its results."""

    def __init__(self, model: torch.nn.Module, result: str) -> None:
        super().__init__()
        self.model = model
        self._result = result

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = getattr(self.model(input_ids), self._result)
        return found


class _Decoder(torch.nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return found
