"""Writing a diffusers folder, and drawing with one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw
from torch import nn

from emoji_training.networks import T5_LENGTH, Denoiser, TextEncoder, scheduler
from emoji_training.pictures import SIZE_PX, Pictures

__all__ = ["draw", "load_pipeline", "write_autoencoder", "write_pictures", "write_pipeline", "write_tokenizers"]

SHOWN = ("red apple", "cat face", "pizza", "rocket", "tiger face", "Hamburger", "soccer ball", "blue heart", "penguin")
SHOWN_SEEDS = (1, 2, 3, 4)
LABEL_PX = 90


def write_tokenizers(folder: Path, text: TextEncoder) -> None:
    """`tokenizer/` and `tokenizer_2/`."""
    text.clip.save_pretrained(folder / "tokenizer")
    text.t5.save_pretrained(folder / "tokenizer_2")


def write_autoencoder(folder: Path, autoencoder: Any) -> None:
    """`vae/` in bfloat16; the module given is left as it is."""
    _lowered(autoencoder).save_pretrained(folder / "vae")


def write_pipeline(folder: Path, denoiser: Denoiser, autoencoder: Any, text: TextEncoder) -> None:
    """The whole folder, in bfloat16, as FluxPipeline.from_pretrained expects it."""
    lowered = _lowered(denoiser)
    pipeline: Any = FluxPipeline(
        scheduler=scheduler(),
        vae=_lowered(autoencoder),
        text_encoder=lowered.text_encoder,
        tokenizer=text.clip,
        text_encoder_2=lowered.text_encoder_2,
        tokenizer_2=text.t5,
        transformer=lowered.transformer,
    )
    pipeline.save_pretrained(folder)


def _lowered(module: Any) -> Any:
    """A copy in bfloat16. nn.Module's own `to`: diffusers' would warn of modules kept in float32, of which there are none."""
    return nn.Module.to(copy.deepcopy(module), torch.bfloat16)


def load_pipeline(folder: Path) -> Any:
    """The folder as a silent FluxPipeline in float32."""
    pipeline: Any = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Any, names: Sequence[str], seeds: Sequence[int], steps: int = 20, guidance: float = 2.0, batch: int = 16
) -> Pictures:
    """One picture for each name, from its own seed: [n, 64, 64, 3] uint8."""
    drawn = []
    for start in range(0, len(names), batch):
        part = slice(start, start + batch)
        values = pipeline(
            list(names[part]),
            negative_prompt="",
            true_cfg_scale=guidance,
            height=SIZE_PX,
            width=SIZE_PX,
            num_inference_steps=steps,
            max_sequence_length=T5_LENGTH,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[part]],
            output_type="np",
        ).images
        drawn.append((values * 255).round().astype(np.uint8))
    return np.concatenate(drawn)


def write_pictures(folder: Path, path: Path) -> None:
    """A sheet of four seeds of nine names, with the names at the left."""
    names = [name for name in SHOWN for _ in SHOWN_SEEDS]
    pictures = draw(load_pipeline(folder), names, SHOWN_SEEDS * len(SHOWN))
    sheet = Image.new("RGB", (LABEL_PX + SIZE_PX * len(SHOWN_SEEDS), SIZE_PX * len(SHOWN)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(SHOWN):
        pen.text((2, row * SIZE_PX + SIZE_PX // 2 - 6), name, fill="black")
        for column in range(len(SHOWN_SEEDS)):
            picture = Image.fromarray(pictures[row * len(SHOWN_SEEDS) + column])
            sheet.paste(picture, (LABEL_PX + column * SIZE_PX, row * SIZE_PX))
    sheet.save(path, optimize=True)
