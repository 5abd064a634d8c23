"""Training of the autoencoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from emoji_training.networks import fresh_autoencoder, to_pixels
from emoji_training.pictures import SIZE_PX, Pictures

__all__ = ["AutoencoderOptions", "psnr", "train_autoencoder"]

GRADIENT_WEIGHT = 0.5
KL_WEIGHT = 1e-4
CLIP_NORM = 1.0
LARGEST_SHIFT_PX = 8
CHECK_CHUNK = 64


@dataclass(frozen=True)
class AutoencoderOptions:
    """`steps` of `batch` pictures; `minutes` ends training early, with the learning rate decayed by then."""

    steps: int = 3500
    batch: int = 16
    learning_rate: float = 2e-3
    minutes: float | None = None
    seed: int = 0


def train_autoencoder(pictures: Pictures, options: AutoencoderOptions, report: Callable[[str], None]) -> Any:
    """An AutoencoderKL trained on pictures [n, 64, 64, 3] uint8, its scale and shift set so that latents are N(0, 1)-like."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    model = fresh_autoencoder().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    started = time.monotonic()
    for step in range(options.steps):
        spent = (time.monotonic() - started) / (options.minutes * 60) if options.minutes else 0.0
        progress = max(step / options.steps, spent)
        if progress >= 1:
            break
        optimiser.param_groups[0]["lr"] = options.learning_rate * _one_cycle(progress)
        pixels = to_pixels(_shifted(pictures[rng.integers(len(pictures), size=options.batch)], rng))
        loss = _reconstruction_loss(model, pixels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        if step % 100 == 0:
            report(f"autoencoder step {step}: loss {loss.item():.4f}")
    model.eval()
    _set_scale(model, pictures)
    report(f"autoencoder: {psnr(model, pictures):.1f} dB")
    return model


def _one_cycle(progress: float) -> float:
    """Factor of the learning rate: up over the first tenth, then a cosine to zero."""
    if progress < 0.1:
        return max(progress / 0.1, 0.01)
    return 0.5 * (1 + float(np.cos(np.pi * (progress - 0.1) / 0.9)))


def _shifted(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Each picture moved by up to 8 px in both directions on white, every second one mirrored."""
    edge = LARGEST_SHIFT_PX
    framed = np.full((len(pictures), SIZE_PX + 2 * edge, SIZE_PX + 2 * edge, 3), 255, np.uint8)
    framed[:, edge:-edge, edge:-edge] = pictures
    moved = np.empty_like(pictures)
    for target, source, (top, left) in zip(moved, framed, rng.integers(2 * edge + 1, size=(len(pictures), 2)), strict=True):
        view = source[top : top + SIZE_PX, left : left + SIZE_PX]
        target[:] = view[:, ::-1] if rng.random() < 0.5 else view
    return moved


def _reconstruction_loss(model: Any, pixels: Tensor) -> Tensor:
    """L1, half the L1 of the horizontal and vertical gradients, and a small KL."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = model.encode(pixels).latent_dist
        restored = model.decode(posterior.sample()).sample
    restored = restored.float()
    across = l1_loss(restored.diff(dim=3), pixels.diff(dim=3))
    down = l1_loss(restored.diff(dim=2), pixels.diff(dim=2))
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence: Tensor = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return l1_loss(restored, pixels) + GRADIENT_WEIGHT * (across + down) + KL_WEIGHT * divergence


@torch.no_grad()
def _set_scale(model: Any, pictures: Pictures) -> None:
    """Store the latents' mean and 1 / standard deviation where pipelines read them."""
    chunks = [pictures[start : start + CHECK_CHUNK] for start in range(0, len(pictures), CHECK_CHUNK)]
    means = torch.cat([model.encode(to_pixels(chunk)).latent_dist.mean for chunk in chunks])
    model.register_to_config(shift_factor=float(means.mean()), scaling_factor=float(1 / means.std()))


@torch.no_grad()
def psnr(model: Any, pictures: Pictures) -> float:
    """Reconstruction of the posterior mean against the pictures: mean over pictures, dB, peak 1."""
    values = []
    for start in range(0, len(pictures), CHECK_CHUNK):
        pixels = to_pixels(pictures[start : start + CHECK_CHUNK])
        restored = model.decode(model.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        error = mse_loss(restored, pixels, reduction="none").mean(dim=(1, 2, 3)) / 4
        values.append(-10 * torch.log10(error.clamp(min=1e-6)))
    return float(torch.cat(values).mean())
