"""A transformer small enough to trace in seconds, compiled to files, beside the model of diffusers it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from vitrify.engine.artifact import read_header
from vitrify.engine.specs import ComponentSpec
from vitrify.export.families import recipe_for
from vitrify.export.graphs import component_spec
from vitrify.export.options import ExportOptions
from vitrify.export.passes import run_passes
from vitrify.export.passes.external import tie_parameters
from vitrify.export.recipe import ComponentRecipe, Recipe
from vitrify.export.source import TensorLocation
from vitrify.export.trace import TracedGraph, trace

__all__ = ["CONFIG", "Configs", "TinyFlux", "compiled", "flux_recipe", "located", "random_model", "request", "tables"]

Array = npt.NDArray[np.float32]
Model = Any  # a FluxTransformer2DModel: diffusers ships types that a checker cannot follow

CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 8,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "guidance_embeds": True,
    "axes_dims_rope": [4, 6, 6],
}
"""One double block and two single ones, two heads of 16."""


@dataclass(frozen=True)
class _Component:
    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Configs:
    """The configurations of a pipeline folder that is nowhere on disk. changes: component → fields set, None: taken out."""

    transformer: Mapping[str, Any]
    changes: Mapping[str, Mapping[str, Any]]
    pipeline_class: str = "FluxPipeline"

    def component(self, name: str) -> _Component:
        classes = {
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
        }
        configs: dict[str, Mapping[str, Any]] = {
            "text_encoder": {"hidden_size": 20, "vocab_size": 50, "max_position_embeddings": 12},
            "text_encoder_2": {"d_model": 24, "vocab_size": 50, "num_layers": 2},
            "transformer": self.transformer,
            "vae": {"latent_channels": 2, "out_channels": 3, "block_out_channels": [8, 8], "scaling_factor": 0.5},
        }
        fields = {**configs[name], **self.changes.get(name, {})}
        return _Component(fields.pop("_class_name", classes[name]), {k: v for k, v in fields.items() if v is not None})


def flux_recipe(config: Mapping[str, Any], options: ExportOptions | None = None, **changes: Mapping[str, Any]) -> Recipe:
    """A FLUX pipeline's recipe around this transformer configuration."""
    return recipe_for(Configs(config, changes), options or ExportOptions())


def transformer_recipe(config: Mapping[str, Any]) -> ComponentRecipe:
    """The transformer's part of it."""
    return next(c for c in flux_recipe(config).components if c.name == "transformer")


def random_model(config: Mapping[str, Any], seed: int = 0) -> Model:
    """diffusers' own model in float32, every parameter another and each large enough to matter."""
    torch.manual_seed(seed)
    model = FluxTransformer2DModel.from_config(dict(config)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]))
        else:
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


def located(file: Path) -> dict[str, TensorLocation]:
    """Where each tensor of a safetensors file lies."""
    tensors = read_header(file).tensors
    return {n: TensorLocation(file, e.dtype, e.shape, e.offset, e.nbytes) for n, e in tensors.items()}


@dataclass(frozen=True)
class TinyFlux:
    """root: its segments under `transformer/`, and `transformer/unsplit.onnx`, the same graph before the cut."""

    config: Mapping[str, Any]
    recipe: ComponentRecipe
    root: Path
    spec: ComponentSpec
    unsplit: ComponentSpec
    model: Model
    traced: ir.Model
    parameters: Mapping[str, tuple[int, ...]]
    locations: Mapping[str, TensorLocation]


def compiled(config: Mapping[str, Any], root: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> TinyFlux:
    """Trace once, and write both forms over one weight file."""
    recipe = transformer_recipe(config)
    model = random_model(config, seed)
    folder = root / recipe.name
    folder.mkdir(parents=True)
    file = folder / "diffusion_pytorch_model.safetensors"
    stored = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in stored.items()})
    save_file(stored, file)
    traced = trace(recipe)
    parameters, original = dict(traced.parameters), traced.model.clone()
    whole = run_passes(TracedGraph(traced.model.clone(), parameters), replace(recipe, segments=None))
    parts = run_passes(traced, recipe)
    locations = located(file)
    weights = (f"{recipe.name}/{file.name}",)
    spec = component_spec(recipe, parts, parameters, locations, weights)
    unsplit = component_spec(replace(recipe, segments=None), {"unsplit": whole["model"]}, parameters, locations, weights)
    for name, graph in {**parts, "unsplit": whole["model"]}.items():
        tie_parameters(graph, locations, folder)
        (folder / f"{name}.onnx").write_bytes(ir.to_proto(graph).SerializeToString(deterministic=True))
    return TinyFlux(config, recipe, root, spec, unsplit, model, original, parameters, locations)


def tables(model: Model, ids: torch.Tensor) -> Array:
    """Rotary tables of position ids, cosines beside sines, as diffusers' own embedding makes them."""
    cosines, sines = model.pos_embed(ids)
    return np.asarray(torch.cat([cosines, sines], dim=-1).numpy(), dtype=np.float32)


@dataclass(frozen=True)
class Request:
    """One request's inputs: `once` by graph input, `by_step` [steps, batch, …], latents [steps, batch, tokens, channels]."""

    once: dict[str, Array]
    by_step: dict[str, Array]
    latents: Array
    image_ids: torch.Tensor
    text_ids: torch.Tensor

    def eager(self, model: Model, step: int) -> Array:
        """What diffusers predicts at `step`."""
        guidance = torch.from_numpy(self.by_step["guidance"][step]) if "guidance" in self.by_step else None
        with torch.no_grad():
            noise_pred = model(
                hidden_states=torch.from_numpy(self.latents[step]),
                encoder_hidden_states=torch.from_numpy(self.once["encoder_hidden_states"]),
                pooled_projections=torch.from_numpy(self.by_step["pooled_projections"][step]),
                timestep=torch.from_numpy(self.by_step["timestep"][step]),
                guidance=guidance,
                img_ids=self.image_ids,
                txt_ids=self.text_ids,
                return_dict=False,
            )[0]
        return np.asarray(noise_pred.numpy(), dtype=np.float32)


def request(model: Model, *, batch: int, grid: tuple[int, int], text: int, steps: int, seed: int = 1) -> Request:
    """Random inputs for a picture of `grid` tokens; every row and every step its own."""
    rng = np.random.default_rng(seed)
    config = model.config

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    height, width = grid
    ids = torch.zeros(height, width, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None, :]
    image_ids, text_ids = ids.reshape(-1, 3), torch.zeros(text, 3)
    pooled = np.broadcast_to(normal(batch, config.pooled_projection_dim), (steps, batch, config.pooled_projection_dim))
    by_step = {
        "timestep": rng.uniform(0, 1, (steps, batch)).astype(np.float32),
        "pooled_projections": np.array(pooled),
    }
    if config.guidance_embeds:
        by_step["guidance"] = np.array(np.broadcast_to(rng.uniform(1, 9, batch).astype(np.float32), (steps, batch)))
    once = {
        "encoder_hidden_states": normal(batch, text, config.joint_attention_dim),
        "text_rotary": tables(model, text_ids),
        "image_rotary": tables(model, image_ids),
    }
    return Request(once, by_step, normal(steps, batch, height * width, config.in_channels), image_ids, text_ids)
