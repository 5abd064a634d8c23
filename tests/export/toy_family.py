"""A family of two tiny components, traced in a moment: an encoder, and a denoiser of two blocks with every kind of input.

`vitrify.export.families.SUPPORTED["ToyPipeline"]` is set to this module by the tests that compile it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import Dim
from vitrify.export.families import SourceConfigs
from vitrify.export.options import ExportOptions, Range
from vitrify.export.recipe import Border, ComponentRecipe, GraphInput, Recipe, SegmentRecipe

__all__ = ["NAME", "recipe", "write_toy"]

NAME = "ToyPipeline"
F32 = DType.FLOAT32


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.project = nn.Linear(width, width)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.project(torch.tanh(self.embed(input_ids)))
        return embeds


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, context: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(nn.functional.silu(temb)).chunk(2, dim=-1)
        changed = hidden * (1 + scale[:, None]) + shift[:, None] + context.mean(dim=1, keepdim=True)
        result: torch.Tensor = hidden + self.mix(changed)
        return result


class Denoiser(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(4, width)
        self.context_embedder = nn.Linear(width, width)
        self.time = nn.Linear(1, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.out = nn.Linear(width, 4)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        context, temb = self.context_embedder(encoder_hidden_states), self.time(timestep[:, None])
        hidden = self.x_embedder(latents)
        for block in self.blocks:
            hidden = block(hidden, context, temb)
        result: torch.Tensor = self.out(hidden)
        return result


class _Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class _EncoderWrapper(_Wrapper):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.model(input_ids)
        return embeds


class _DenoiserWrapper(_Wrapper):
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        noise_pred: torch.Tensor = self.model(latents, timestep, encoder_hidden_states)
        return noise_pred


def recipe(source: SourceConfigs, options: ExportOptions) -> Recipe:
    """The family's entry, as `recipe_for` calls it."""
    encoder, denoiser = source.component("encoder").config, source.component("denoiser").config
    batch = (options.batch or Range(1, 2, 4)).dim("batch")
    dims = {
        "height": (options.height or Range(8, 8, 16)).dim("height", 8),
        "width": (options.width or Range(8, 8, 16)).dim("width", 8),
        "batch": batch,
        "text_tokens": (options.max_sequence_length or Range(2, 4, 8)).dim("text_tokens"),
        "image_tokens": Dim("image_tokens", 1, 4, 16),
        "prompts": Dim("prompts", 1, 1, batch.max),
        "condition_rows": Dim("condition_rows", 1, 8, 64),
    }
    defaults = {"height": 8, "width": 8, "num_inference_steps": 3, "max_sequence_length": dims["text_tokens"].opt}
    return Recipe(
        family="toy",
        pipeline_class=source.pipeline_class,
        components=(_encoder(encoder), _denoiser(denoiser)),
        dims=dims,
        tokenizers={},
        scheduler="scheduler",
        defaults={**defaults, **options.defaults},
    )


def _encoder(config: Mapping[str, Any]) -> ComponentRecipe:
    width = int(config["width"])
    return ComponentRecipe(
        name="encoder",
        class_name="ToyEncoder",
        config=config,
        build=lambda: _EncoderWrapper(Encoder(width)),
        inputs=(GraphInput("input_ids", DType.INT64, ("prompts", "text_tokens"), upper=11),),
        outputs=("prompt_embeds",),
        output_shapes=(("prompts", "text_tokens", width),),
        probe_dims=({"prompts": 2, "text_tokens": 3}, {"prompts": 3, "text_tokens": 5}),
    )


def _denoiser(config: Mapping[str, Any]) -> ComponentRecipe:
    width = int(config["width"])
    return ComponentRecipe(
        name="denoiser",
        class_name="ToyDenoiser",
        config=config,
        build=lambda: _DenoiserWrapper(Denoiser(width)),
        inputs=(
            GraphInput("latents", F32, ("batch", "image_tokens", 4), "latents"),
            GraphInput("timestep", F32, ("batch",), "step"),
            GraphInput("encoder_hidden_states", F32, ("batch", "text_tokens", width)),
        ),
        outputs=("noise_pred",),
        output_shapes=(("batch", "image_tokens", 4),),
        probe_dims=(
            {"batch": 2, "image_tokens": 6, "text_tokens": 3},
            {"batch": 3, "image_tokens": 4, "text_tokens": 5},
        ),
        borders=(Border("x_embedder"), Border("blocks.0"), Border("blocks.1")),
        segments=SegmentRecipe("x_embedder", ("blocks.0",), "blocks.1", ("image_tokens", "text_tokens")),
    )


def write_toy(root: Path, dtype: torch.dtype = torch.bfloat16, width: int = 8) -> Path:
    """A source folder with random weights, its licence and its card."""
    torch.manual_seed(0)
    classes = {"encoder": ("transformers", "ToyEncoder"), "denoiser": ("diffusers", "ToyDenoiser")}
    index = {"_class_name": NAME, **classes, "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler")}
    for name in (*classes, "scheduler"):
        (root / name).mkdir(parents=True)
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "LICENSE").write_text("Do as you like.")
    (root / "README.md").write_text("# A toy")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.42.1", "shift": 1.5}
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    modules = {"encoder": ("model", Encoder(width)), "denoiser": ("diffusion_pytorch_model", Denoiser(width))}
    for name, (stem, module) in modules.items():
        (root / name / "config.json").write_text(json.dumps({"width": width}))
        weights = {key: value.to(dtype).contiguous() for key, value in module.state_dict().items()}
        save_file(weights, root / name / f"{stem}.safetensors")
    return root
