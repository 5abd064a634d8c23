"""The configurations of a FLUX pipeline folder, without weights: FLUX.1-dev's own, and small ones around any transformer.

Numbers of FLUX.1-dev: Black Forest Labs, FLUX.1, 2024; its encoders are CLIP ViT-L/14 (Radford et al. 2021) and
T5 v1.1 XXL (Raffel et al. 2020).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrify.bench.cases import TransformerShape

__all__ = ["CLIP_TOKENS", "FluxConfigs", "flux_dev_configs", "short_flux_dev_configs", "small_configs"]

CLIP_TOKENS = 77
"""Of FLUX.1-dev's CLIP."""

_CLASSES = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "T5Tokenizer"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}

_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


@dataclass(frozen=True)
class FluxConfigs:
    """The config.json of each model of a FLUX pipeline, and the scheduler's."""

    transformer: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    text_encoder_2: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write model_index.json and the configurations into `folder`: all that `export --plan` needs."""
        index = {"_class_name": "FluxPipeline", **{name: list(found) for name, found in _CLASSES.items()}}
        _write_json(folder / "model_index.json", index)
        for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
            _write_json(folder / name / "config.json", getattr(self, name))
        _write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler)


def flux_dev_configs(shape: TransformerShape) -> FluxConfigs:
    """FLUX.1-dev's encoders, VAE and scheduler around `shape` (FLUX_DEV itself, or fewer of its blocks)."""
    return FluxConfigs(
        transformer=shape.config(),
        text_encoder=_clip(width=768, layers=12, heads=12, tokens=CLIP_TOKENS, vocabulary=49408, end=2),
        text_encoder_2=_t5(width=4096, layers=24, heads=64, head_dim=64, hidden=10240, vocabulary=32128),
        vae=_vae(channels=(128, 256, 512, 512), latent_channels=16, layers=2, groups=32),
        scheduler=_SCHEDULER,
    )


def short_flux_dev_configs(shape: TransformerShape, *, clip: Mapping[str, Any], t5: Mapping[str, Any]) -> FluxConfigs:
    """FLUX.1-dev's CLIP and VAE around `shape`, and its T5 with two of 24 blocks, for other vocabularies.

    clip, t5: configurations whose tokenizers are used: vocabulary and end token are theirs.
    """
    end, words = int(clip["eos_token_id"]), int(clip["vocab_size"])
    whole = flux_dev_configs(shape)
    return replace(
        whole,
        text_encoder=_clip(width=768, layers=12, heads=12, tokens=CLIP_TOKENS, vocabulary=words, end=end),
        text_encoder_2={**whole.text_encoder_2, "num_layers": 2, "vocab_size": int(t5["vocab_size"])},
    )


def small_configs(shape: TransformerShape, *, clip: Mapping[str, Any], t5: Mapping[str, Any], downsampling: int) -> FluxConfigs:
    """The smallest encoders and VAE that fit `shape`.

    clip, t5: configurations whose tokenizers are used: vocabulary, length and end token are theirs.
    downsampling: pixels per latent position, a power of two.
    """
    return FluxConfigs(
        transformer=shape.config(),
        text_encoder=_clip(
            width=shape.pooled_dim,
            layers=1,
            heads=shape.pooled_dim // 32,
            tokens=int(clip["max_position_embeddings"]),
            vocabulary=int(clip["vocab_size"]),
            end=int(clip["eos_token_id"]),
        ),
        text_encoder_2=_t5(width=shape.joint_dim, layers=1, heads=4, head_dim=32, hidden=256, vocabulary=int(t5["vocab_size"])),
        vae=_vae(channels=(32,) * downsampling.bit_length(), latent_channels=shape.in_channels // 4, layers=1, groups=16),
        scheduler=_SCHEDULER,
    )


def _clip(*, width: int, layers: int, heads: int, tokens: int, vocabulary: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": end,
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": tokens,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": width,
        "vocab_size": vocabulary,
    }


def _t5(*, width: int, layers: int, heads: int, head_dim: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "d_ff": hidden,
        "d_kv": head_dim,
        "d_model": width,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_heads": heads,
        "num_layers": layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "use_cache": False,
        "vocab_size": vocabulary,
    }


def _vae(*, channels: tuple[int, ...], latent_channels: int, layers: int, groups: int) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": latent_channels,
        "layers_per_block": layers,
        "mid_block_add_attention": True,
        "norm_num_groups": groups,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
