"""FLUX pipelines to compile: the sample, and small random ones whose every input moves the output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

__all__ = ["SAMPLE", "RandomFlux", "write_random_flux"]

SAMPLE = Path(__file__).parents[2] / "examples" / "emoji_flux"


@dataclass(frozen=True)
class RandomFlux:
    """What a random FLUX folder is made of; no two of its sizes are equal by habit."""

    guidance_embeds: bool = True
    seed: int = 0
    scheduler: dict[str, Any] = field(default_factory=lambda: {"use_dynamic_shifting": True})
    layers: tuple[int, int] = (2, 2)
    heads: int = 3
    axes: tuple[int, int, int] = (4, 6, 6)
    latent_channels: int = 4
    joint: int = 24
    pooled: int = 20


def write_random_flux(folder: Path, made: RandomFlux) -> Path:
    """A diffusers folder of random weights in float32, with the sample's tokenizers."""
    torch.manual_seed(made.seed)
    clip_tokenizer = CLIPTokenizer.from_pretrained(SAMPLE / "tokenizer")
    t5_tokenizer = T5Tokenizer.from_pretrained(SAMPLE / "tokenizer_2")
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=made.pooled,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=clip_tokenizer.model_max_length,
        projection_dim=made.pooled,
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,
        pad_token_id=clip_tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(t5_tokenizer),
        d_model=made.joint,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    transformer: Any = FluxTransformer2DModel(
        in_channels=4 * made.latent_channels,
        num_layers=made.layers[0],
        num_single_layers=made.layers[1],
        attention_head_dim=sum(made.axes),
        num_attention_heads=made.heads,
        joint_attention_dim=made.joint,
        pooled_projection_dim=made.pooled,
        guidance_embeds=made.guidance_embeds,
        axes_dims_rope=made.axes,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 24),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=made.latent_channels,
        norm_num_groups=8,
        scaling_factor=0.37,
        shift_factor=0.11,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    _strengthen(transformer)
    pipeline: Any = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**made.scheduler),
        vae=vae,
        text_encoder=CLIPTextModel(clip),
        tokenizer=clip_tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return folder


def _strengthen(module: torch.nn.Module) -> None:
    """Unit gain everywhere, modulation and its gates included: fresh weights let neither prompt nor timestep through."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]))
            elif name.endswith("weight"):
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0.0, 0.2)
