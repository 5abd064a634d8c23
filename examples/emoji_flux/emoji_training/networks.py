"""The networks of the pipeline: their sizes, fresh or loaded, and how text, latents and noise go through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from emoji_training.pictures import SIZE_PX, Pictures

__all__ = [
    "CLIP_LENGTH",
    "T5_LENGTH",
    "Denoiser",
    "TextEncoder",
    "Tokenizer",
    "Words",
    "encode_pictures",
    "fresh_autoencoder",
    "fresh_denoiser",
    "load_autoencoder",
    "load_denoiser",
    "load_tokenizers",
    "pack",
    "scheduler",
    "to_pixels",
]

CLIP_LENGTH = 32
T5_LENGTH = 16
LATENT_CHANNELS = 8
LATENT_PX = SIZE_PX // 4
TOKENS_PER_SIDE = LATENT_PX // 2


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def __call__(self, text: Sequence[str], **options: Any) -> Any: ...

    def __len__(self) -> int: ...

    def save_pretrained(self, folder: Path) -> Any: ...


@dataclass(frozen=True)
class Words:
    """Token ids of a batch of captions: `clip` [batch, 32] int64 and `t5` [batch, 16] int64."""

    clip: Tensor
    t5: Tensor


@dataclass(frozen=True)
class TextEncoder:
    """Both tokenizers, with the lengths that the pipeline uses."""

    clip: Tokenizer
    t5: Tokenizer

    def __call__(self, captions: Sequence[str]) -> Words:
        """Ids of the captions, padded and cut as FluxPipeline does with max_sequence_length=16."""
        return Words(_ids(self.clip, captions, CLIP_LENGTH), _ids(self.t5, captions, T5_LENGTH))


def _ids(tokenizer: Tokenizer, captions: Sequence[str], length: int) -> Tensor:
    encoded = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return cast(Tensor, encoded.input_ids)


class Denoiser(nn.Module):
    """What is trained together: the transformer and both text encoders.

    `forward(noisy, t, words)`: noisy [batch, 64, 32] packed latents, t [batch] in 0..1 (1 is noise) → the velocity
    noise − latents, [batch, 64, 32].
    """

    def __init__(self, transformer: nn.Module, clip: nn.Module, t5: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = clip
        self.text_encoder_2 = t5
        self.register_buffer("image_ids", _image_ids(), persistent=False)
        self.register_buffer("text_ids", torch.zeros(T5_LENGTH, 3), persistent=False)

    def forward(self, noisy: Tensor, t: Tensor, words: Words) -> Tensor:
        prediction = self.transformer(
            hidden_states=noisy,
            timestep=t,
            pooled_projections=self.text_encoder(words.clip).pooler_output,
            encoder_hidden_states=self.text_encoder_2(words.t5)[0],
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            return_dict=False,
        )[0]
        return cast(Tensor, prediction)


def _image_ids() -> Tensor:
    """FLUX position ids of the image tokens: (0, row, column), [64, 3] float32."""
    ids = torch.zeros(TOKENS_PER_SIDE, TOKENS_PER_SIDE, 3)
    ids[..., 1] += torch.arange(TOKENS_PER_SIDE)[:, None]
    ids[..., 2] += torch.arange(TOKENS_PER_SIDE)[None, :]
    return ids.reshape(-1, 3)


def pack(latents: Tensor) -> Tensor:
    """Latents [batch, 8, 16, 16] → tokens [batch, 64, 32], each a 2 × 2 patch, as FluxPipeline packs them."""
    batch = latents.shape[0]
    patches = latents.reshape(batch, LATENT_CHANNELS, TOKENS_PER_SIDE, 2, TOKENS_PER_SIDE, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, TOKENS_PER_SIDE**2, LATENT_CHANNELS * 4)


def to_pixels(pictures: Pictures) -> Tensor:
    """Pictures [n, 64, 64, 3] uint8 → [n, 3, 64, 64] float32 in −1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def encode_pictures(autoencoder: Any, pictures: Pictures, chunk: int = 64) -> Tensor:
    """The packed, normalised latents (posterior means) of pictures [n, 64, 64, 3]: [n, 64, 32] float32."""
    config = autoencoder.config
    parts = []
    for start in range(0, len(pictures), chunk):
        mean = autoencoder.encode(to_pixels(pictures[start : start + chunk])).latent_dist.mean.float()
        parts.append(pack((mean - config.shift_factor) * config.scaling_factor))
    return torch.cat(parts)


def fresh_autoencoder() -> Any:
    """An untrained AutoencoderKL of the sample's shape; its scale and shift are set once it is trained."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=SIZE_PX,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def fresh_denoiser(words: TextEncoder) -> Denoiser:
    """An untrained denoiser whose embeddings fit the tokenizers; torch's global generator draws its weights."""
    clip: Any = words.clip
    t5: Any = words.t5
    transformer: Any = FluxTransformer2DModel(
        in_channels=LATENT_CHANNELS * 4,
        num_layers=2,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=96,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    clip_model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=96,
            intermediate_size=384,
            projection_dim=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
            pad_token_id=clip.pad_token_id,
        )
    )
    t5_model = T5EncoderModel(
        T5Config(
            vocab_size=len(t5),
            d_model=128,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=t5.pad_token_id,
            eos_token_id=t5.eos_token_id,
            use_cache=False,
        )
    )
    return Denoiser(transformer, clip_model, t5_model)


def load_autoencoder(folder: Path) -> Any:
    """The autoencoder of a pipeline folder, float32, in evaluation mode."""
    model: Any = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    return model.eval()


def load_tokenizers(folder: Path) -> TextEncoder:
    """Both tokenizers of a pipeline folder."""
    return TextEncoder(CLIPTokenizer.from_pretrained(folder / "tokenizer"), T5Tokenizer.from_pretrained(folder / "tokenizer_2"))


def load_denoiser(folder: Path) -> Denoiser:
    """The transformer and text encoders of a pipeline folder, float32, in evaluation mode."""
    transformer: Any = FluxTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
    return Denoiser(transformer, clip, t5).eval()


def scheduler() -> Any:
    """FLUX's scheduler: flow-match Euler with dynamic shift."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=1.0)
