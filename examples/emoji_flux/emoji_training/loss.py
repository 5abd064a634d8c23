"""The flow-matching loss, and how it is measured on fresh noise."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emoji_training.networks import (
    Denoiser,
    TextEncoder,
    Words,
    encode_pictures,
    load_autoencoder,
    load_denoiser,
    load_tokenizers,
)
from emoji_training.pictures import Pictures, read_evaluation_set, rendition_weights, renditions

__all__ = ["evaluate_folder", "evaluate_loss", "flow_loss", "sample_times"]

TIME_MEAN = 0.7


def sample_times(count: int, generator: torch.Generator) -> Tensor:
    """t = sigmoid(N(0.7, 1)), [count] float32 in 0..1, 1 is pure noise."""
    return torch.sigmoid(torch.randn(count, generator=generator) + TIME_MEAN)


def _spread_times(count: int) -> Tensor:
    """The distribution of `sample_times` at evenly spread quantiles: the same mean loss with far less scatter."""
    normal = NormalDist(TIME_MEAN, 1.0)
    quantiles = [normal.inv_cdf((index + 0.5) / count) for index in range(count)]
    return torch.sigmoid(torch.tensor(quantiles, dtype=torch.float32))


def flow_loss(denoiser: Any, latents: Tensor, noise: Tensor, t: Tensor, words: Words) -> Tensor:
    """Mean squared error of the predicted velocity; latents and noise [batch, 64, 32], t [batch]."""
    at = t[:, None, None]
    velocity = denoiser(torch.lerp(latents, noise, at), t, words)
    return torch.nn.functional.mse_loss(velocity.float(), noise - latents)


@torch.no_grad()
def evaluate_loss(
    denoiser: Denoiser,
    autoencoder: Any,
    text: TextEncoder,
    seed: int = 0,
    draws: int = 4,
    names: list[str] | None = None,
    pictures: Pictures | None = None,
) -> float:
    """The loss on fresh noise with plain names, float32; the same `seed` gives the same number.

    Every picture [n, 64, 64, 3] uint8 (default: the shipped evaluation set) is drawn `draws` times, each in a rendition
    by its training share, with its own noise; t = sigmoid(N(0.7, 1)).
    """
    if names is None or pictures is None:
        names, pictures = read_evaluation_set()
    rng = np.random.default_rng(seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    was_training = denoiser.training
    denoiser.eval()
    times = _spread_times(draws * len(names))[torch.randperm(draws * len(names), generator=generator)].reshape(draws, -1)
    every = [renditions(picture) for picture in pictures]
    weights = rendition_weights()
    total = 0.0
    for t in times:
        picks = rng.choice(len(weights), size=len(names), p=weights)
        drawn = np.stack([each[pick] for each, pick in zip(every, picks, strict=True)])
        latents = encode_pictures(autoencoder, drawn)
        noise = torch.randn(latents.shape, generator=generator)
        total += float(flow_loss(denoiser, latents, noise, t, text(names)))
    denoiser.train(was_training)
    return total / draws


def evaluate_folder(folder: Path, seed: int = 0, draws: int = 4) -> float:
    """`evaluate_loss` of a written pipeline folder on the shipped evaluation set."""
    return evaluate_loss(load_denoiser(folder), load_autoencoder(folder), load_tokenizers(folder), seed, draws)
