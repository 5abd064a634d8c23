"""diffusers' transformer in eager PyTorch. In float32 it is also the reference of every correctness check."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vitrify.bench.inputs import CaseInputs
from vitrify.bench.peers.peer import STEP, Peer
from vitrify.engine.session import Array

__all__ = ["Eager", "load_transformer", "tensors"]


def load_transformer(source: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The transformer of a pipeline folder with its weights in `dtype`."""
    from diffusers import FluxTransformer2DModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flux: Any = FluxTransformer2DModel
        model: torch.nn.Module = flux.from_pretrained(source, subfolder="transformer", torch_dtype=dtype)
    return model.eval()


def tensors(inputs: CaseInputs, step: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """FluxTransformer2DModel's arguments for one step, as FluxPipeline would pass them in `dtype`."""
    given: dict[str, Array | None] = {
        "hidden_states": inputs.latents,
        "encoder_hidden_states": inputs.encoder_hidden_states,
        "pooled_projections": inputs.pooled_projections,
        "timestep": inputs.timesteps[step].repeat(len(inputs.latents)),
        "img_ids": inputs.img_ids,
        "txt_ids": inputs.txt_ids,
        "guidance": inputs.guidance,
    }
    made = {name: torch.from_numpy(value) for name, value in given.items() if value is not None}
    # FluxPipeline keeps guidance in float32 and gives everything else in the model's dtype.
    return {name: value if name == "guidance" else value.to(dtype) for name, value in made.items()}


class Eager(Peer):
    """dtype: `float32` or `bfloat16`, of weights and activations."""

    def __init__(self, *, dtype: str, **given: Any) -> None:
        super().__init__(**given)
        self._dtype: torch.dtype = getattr(torch, dtype)

    def open(self) -> None:
        torch.set_num_threads(self.threads)
        self._model = load_transformer(self.source, self._dtype)

    def give(self, inputs: CaseInputs) -> None:
        self._arguments = [tensors(inputs, step, self._dtype) for step in range(len(inputs.timesteps))]

    def predict(self, index: int) -> Array:
        result: Array = self._step(index).float().numpy()
        return result

    def calls(self) -> Mapping[str, Callable[[int], object]]:
        return {STEP: self._step}

    def _step(self, index: int) -> torch.Tensor:
        with torch.inference_mode():
            noise_pred: torch.Tensor = self._model(**self._arguments[index % len(self._arguments)], return_dict=False)[0]
        return noise_pred
