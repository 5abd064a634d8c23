"""FLUX.1 (dev- and schnell-like): CLIP's pooled prompt, T5's prompt embedding, the double/single stream transformer, the VAE.

Black Forest Labs, FLUX.1, 2024; module and input names are those of diffusers' FluxTransformer2DModel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from vitrify.engine.denoiser import CONDITION_DIM, CONDITION_ROWS
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import CompileError
from vitrify.engine.specs import Dim
from vitrify.export.families import SourceConfigs
from vitrify.export.options import ExportOptions, Range
from vitrify.export.recipe import Border, ComponentRecipe, GraphInput, Recipe, SegmentRecipe

__all__ = ["recipe"]

_COMPONENTS = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
}
_PACK = 2  # the pipeline packs 2 × 2 latent positions into one token
_LATENTS_IN_SAMPLE = 128  # FluxPipeline's default picture is 128 latent positions wide
_DECODED_AT_ONCE = 63  # diffusers' Upsample2D takes another path from 64 pictures on


def recipe(source: SourceConfigs, options: ExportOptions) -> Recipe:
    """How `source` is traced under `options`. Reads configs only. Raises CompileError naming what does not fit."""
    sources = {name: source.component(name) for name in _COMPONENTS}
    for name, expected in _COMPONENTS.items():
        got = sources[name].class_name
        if got != expected:
            raise CompileError(f"{name}: got {got}, expected {expected} in a {source.pipeline_class}")
    configs = {name: _Config(name, component.config) for name, component in sources.items()}
    _check(configs)
    dims = _dims(configs, options)
    tokens = dims["text_tokens"]
    defaults = {
        "height": dims["height"].opt,
        "width": dims["width"].opt,
        "num_inference_steps": 28 if configs["transformer"].get("guidance_embeds") else 4,
        "guidance_scale": 3.5,
        "max_sequence_length": tokens.opt,
    }
    return Recipe(
        family="flux",
        pipeline_class=source.pipeline_class,
        components=(
            _clip(configs["text_encoder"]),
            _t5(configs["text_encoder_2"]),
            _transformer(configs["transformer"]),
            _vae(configs["vae"]),
        ),
        dims=dims,
        tokenizers={"tokenizer": configs["text_encoder"].whole("max_position_embeddings"), "tokenizer_2": tokens.max},
        scheduler="scheduler",
        defaults={**defaults, **options.defaults},
    )


class _Config(dict[str, Any]):
    """A component's config.json; a field that is read but not there is a CompileError that names it."""

    def __init__(self, component: str, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._component = component

    def __missing__(self, key: str) -> Any:
        raise CompileError(f"{self._component}: its config.json has no {key!r}; copy the whole pipeline folder again")

    def whole(self, key: str, least: int = 1) -> int:
        """A field that is a whole number of at least `least`; anything else is a CompileError that names it."""
        value = self[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise CompileError(
                f"{self._component}: {key} is {value!r} in its config.json, expected a whole number of at least {least}; "
                "copy the whole pipeline folder again"
            )
        return value


def _check(configs: Mapping[str, _Config]) -> None:
    """Raises CompileError where one component does not take what another gives."""
    transformer, clip, t5, vae = (configs[name] for name in ("transformer", "text_encoder", "text_encoder_2", "vae"))
    expected = {
        "patch_size": (transformer.get("patch_size", 1), 1, "the only one supported"),
        "in_channels": (transformer["in_channels"], vae["latent_channels"] * _PACK**2, "the vae's latent_channels × 4"),
        "pooled_projection_dim": (transformer["pooled_projection_dim"], clip["hidden_size"], "text_encoder's hidden_size"),
        "joint_attention_dim": (transformer["joint_attention_dim"], t5["d_model"], "text_encoder_2's d_model"),
    }
    for name, (got, wanted, why) in expected.items():
        if got != wanted:
            raise CompileError(f"transformer: {name} is {got}, expected {wanted}, {why}; is this a FluxPipeline's folder?")
    axes, head_dim = transformer.get("axes_dims_rope", (16, 56, 56)), transformer.whole("attention_head_dim")
    if not isinstance(axes, list | tuple) or any(not isinstance(a, int) or a < 2 or a % 2 for a in axes) or sum(axes) != head_dim:
        raise CompileError(
            f"transformer: axes_dims_rope is {axes}, expected even numbers with the sum {head_dim}, its attention_head_dim"
        )


def _dims(configs: Mapping[str, _Config], options: ExportOptions) -> dict[str, Dim]:
    scale = _scale(configs["vae"])
    step = scale * _PACK
    usual = _LATENTS_IN_SAMPLE * scale
    sizes = {
        name: (asked or Range(usual // 4, usual, usual * 2)).dim(name, step)
        for name, asked in (("height", options.height), ("width", options.width))
    }
    batch = (options.batch or Range(1, 1, 4)).dim("batch")
    longest = 512 if configs["transformer"].get("guidance_embeds") else 256
    text = (options.max_sequence_length or Range(longest, longest, longest)).dim("text_tokens")

    def tokens(pick: str) -> int:
        return int(getattr(sizes["height"], pick) // step * (getattr(sizes["width"], pick) // step))

    def latent(name: str, pixels: Dim) -> Dim:
        return Dim(name, pixels.min // scale, pixels.opt // scale, pixels.max // scale, _PACK)

    return {
        **sizes,
        "batch": batch,
        "text_tokens": text,
        "image_tokens": Dim("image_tokens", tokens("min"), tokens("opt"), tokens("max")),
        "latent_h": latent("latent_h", sizes["height"]),
        "latent_w": latent("latent_w", sizes["width"]),
        "prompts": Dim("prompts", 1, 1, batch.max),
        "images": Dim("images", 1, 1, min(batch.max, _DECODED_AT_ONCE)),
        CONDITION_ROWS: replace(CONDITION_DIM, opt=min(28 * batch.opt, CONDITION_DIM.max)),
    }


def _scale(vae: _Config) -> int:
    """Pixels per latent position."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


class _Clip(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.model(input_ids, output_hidden_states=False).pooler_output
        return pooled


def _clip(config: _Config) -> ComponentRecipe:
    tokens, width = config.whole("max_position_embeddings"), config.whole("hidden_size")
    return ComponentRecipe(
        name="text_encoder",
        class_name="CLIPTextModel",
        config=config,
        build=lambda: _Clip(config),
        inputs=(GraphInput("input_ids", DType.INT64, ("prompts", tokens), upper=config.whole("vocab_size")),),
        outputs=("pooled_projections",),
        output_shapes=(("prompts", width),),
        probe_dims=({"prompts": 2}, {"prompts": 3}),
    )


class _T5(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = T5EncoderModel(T5Config.from_dict(dict(config)))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.model(input_ids, output_hidden_states=False)[0]
        return embeds


def _t5(config: _Config) -> ComponentRecipe:
    blocks = tuple(Border(f"encoder.block.{i}", ("hidden_states", None, None)) for i in range(config.whole("num_layers", 0)))
    traced = ComponentRecipe(
        name="text_encoder_2",
        class_name="T5EncoderModel",
        config=config,
        build=lambda: _T5(config),
        inputs=(GraphInput("input_ids", DType.INT64, ("prompts", "text_tokens"), upper=config.whole("vocab_size")),),
        outputs=("prompt_embeds",),
        output_shapes=(("prompts", "text_tokens", config.whole("d_model")),),
        probe_dims=({"prompts": 2, "text_tokens": 7}, {"prompts": 3, "text_tokens": 16}),
        borders=blocks,
        aliases={"shared.weight": "encoder.embed_tokens.weight", "encoder.embed_tokens.weight": "shared.weight"},
    )
    narrow = {"d_model": 32, "d_kv": 16, "num_heads": 2, "d_ff": 48, "vocab_size": 100}
    return replace(traced, narrow=lambda: _t5(_Config("text_encoder_2", {**config, **narrow})))


class _GivenTables(nn.Module):
    """Stands where FluxPosEmbed stood: what arrives as position ids are the rotary tables, cosines beside sines.

    diffusers computes them in float64 inside the model, in every step; the runtime does so once per request.
    """

    def forward(self, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        width = tables.shape[-1] // 2
        return _twice(tables[:, 0:width:2]), _twice(tables[:, width::2])


def _twice(half: torch.Tensor) -> torch.Tensor:
    """[tokens, n] → [tokens, 2·n]: each angle beside itself, which the tables hold anyway and the rotary pass builds on."""
    return torch.stack([half, half], dim=-1).flatten(1)


class _TimeFrequencies(nn.Module):
    """Sinusoidal timestep embedding (Vaswani et al. 2017, as diffusers' Timesteps(256) lays it out: cosines, then sines).

    The frequencies are PyTorch's own bits: arguments reach 1000 × timestep, where one ulp of a frequency is 1e-4 in the sine.
    """

    frequencies: torch.Tensor

    def __init__(self, channels: int, max_period: float = 10000.0) -> None:
        super().__init__()
        half = channels // 2
        exponent = -math.log(max_period) * torch.arange(0, half, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(exponent / half), persistent=False)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        arguments = timesteps[:, None].float() * self.frequencies[None, :]
        return torch.cat([torch.cos(arguments), torch.sin(arguments)], dim=-1)


class _Transformer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = FluxTransformer2DModel.from_config(dict(config))
        self.model.pos_embed = _GivenTables()
        self.model.time_text_embed.time_proj = _TimeFrequencies(self.model.time_text_embed.time_proj.num_channels)

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        pooled_projections: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_rotary: torch.Tensor,
        image_rotary: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        noise_pred: torch.Tensor = self.model(
            hidden_states=latents,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep,
            guidance=guidance,
            txt_ids=text_rotary,
            img_ids=image_rotary,
            return_dict=False,
        )[0]
        return noise_pred


def _transformer(config: _Config) -> ComponentRecipe:
    head_dim = config.whole("attention_head_dim")
    channels = config.whole("in_channels")
    f32 = DType.FLOAT32
    inputs = [
        GraphInput("latents", f32, ("batch", "image_tokens", channels), "latents"),
        GraphInput("timestep", f32, ("batch",), "step"),
        GraphInput("pooled_projections", f32, ("batch", config.whole("pooled_projection_dim"))),
        GraphInput("encoder_hidden_states", f32, ("batch", "text_tokens", config.whole("joint_attention_dim"))),
        GraphInput("text_rotary", f32, ("text_tokens", 2 * head_dim)),
        GraphInput("image_rotary", f32, ("image_tokens", 2 * head_dim)),
    ]
    if config.get("guidance_embeds"):
        inputs.append(GraphInput("guidance", f32, ("batch",)))
    returned = ("encoder_hidden_states", "hidden_states")
    blocks = [Border(f"transformer_blocks.{i}", returned) for i in range(config.whole("num_layers", 0))]
    blocks += [Border(f"single_transformer_blocks.{i}", returned) for i in range(config.whole("num_single_layers", 0))]
    if len(blocks) < 2:
        raise CompileError(f"transformer: got {len(blocks)} blocks, expected at least 2 (first | rest)")
    out_channels = int(config.get("out_channels") or channels)
    traced = ComponentRecipe(
        name="transformer",
        class_name="FluxTransformer2DModel",
        config=config,
        build=lambda: _Transformer(config),
        inputs=tuple(inputs),
        outputs=("noise_pred",),
        output_shapes=(("batch", "image_tokens", out_channels),),
        probe_dims=(
            {"batch": 2, "image_tokens": 24, "text_tokens": 7},
            {"batch": 3, "image_tokens": 35, "text_tokens": 16},
        ),
        borders=(Border("time_text_embed"), Border("context_embedder"), Border("x_embedder"), *blocks),
        segments=SegmentRecipe(
            embed="x_embedder",
            first=tuple(f"{blocks[0].path}/{name}" for name in returned),
            rest=f"{blocks[-1].path}/hidden_states",
            token_dims=("image_tokens", "text_tokens"),
        ),
    )
    return replace(traced, narrow=lambda: _transformer(_narrowed(config)))


def _narrowed(config: _Config) -> _Config:
    """The same depth at a width of 32: enough to show the wiring, small enough for any machine."""
    narrow = {
        **config,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": [4, 6, 6],
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
    }
    return _Config("transformer", narrow)


class _Decoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = AutoencoderKL.from_config(dict(config))
        self.scaling_factor = float(config["scaling_factor"])
        self.shift_factor = float(config.get("shift_factor") or 0.0)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.model.decode(latents / self.scaling_factor + self.shift_factor, return_dict=False)[0]
        return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def _vae(config: _Config) -> ComponentRecipe:
    channels, scale = config.whole("latent_channels"), _scale(config)
    return ComponentRecipe(
        name="vae",
        class_name="AutoencoderKL",
        config=config,
        build=lambda: _Decoder(config),
        inputs=(GraphInput("latents", DType.FLOAT32, ("images", channels, "latent_h", "latent_w"), "latents"),),
        outputs=("image",),
        output_shapes=(("images", "height", "width", config.whole("out_channels")),),
        probe_dims=({"images": 2, "latent_h": 6, "latent_w": 8}, {"images": 3, "latent_h": 10, "latent_w": 4}),
        derived_dims={"height": ("latent_h", scale), "width": ("latent_w", scale)},
        trace_limits={"images": _DECODED_AT_ONCE},
        called="decoder",
    )
