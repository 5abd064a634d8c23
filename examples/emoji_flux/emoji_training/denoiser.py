"""Training of the transformer and both text encoders, together, by flow matching."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from emoji_training.captions import caption
from emoji_training.loss import flow_loss, sample_times
from emoji_training.networks import Denoiser, TextEncoder, encode_pictures, fresh_denoiser
from emoji_training.pictures import Emoji, rendition_weights, renditions

__all__ = ["DenoiserOptions", "Latents", "encode_renditions", "split_parameters", "train_denoiser"]

REPORT_EVERY = 50


@dataclass(frozen=True)
class DenoiserOptions:
    """`steps` of `batch` pictures; `minutes` ends training early, with the learning rates decayed by then."""

    steps: int = 12_000
    batch: int = 64
    warm_up: int = 100
    muon_learning_rate: float = 1.5e-3
    adam_learning_rate: float = 1e-3
    clip_norm: float = 1.0
    ema: float = 0.998
    minutes: float | None = None
    seed: int = 0
    compiled: bool = False


@dataclass(frozen=True)
class Latents:
    """What is learned: `values` [emoji, renditions, 64, 32] bfloat16, drawn by `shares` [renditions], sum 1."""

    values: Tensor
    shares: npt.NDArray[np.float64]


def encode_renditions(
    autoencoder: Any, emoji: list[Emoji], report: Callable[[str], None], drawn: int | None = None, seed: int = 0
) -> Latents:
    """The latents of every rendition of every emoji, or of `drawn` renditions each, chosen by their shares."""
    rng = np.random.default_rng(seed)
    shares = rendition_weights()
    values = []
    for number, item in enumerate(emoji):
        pictures = renditions(item.picture)
        if drawn is not None:
            pictures = pictures[rng.choice(len(shares), size=drawn, p=shares)]
        values.append(encode_pictures(autoencoder, pictures).bfloat16())
        if number % 256 == 0:
            report(f"latents of emoji {number} of {len(emoji)}")
    return Latents(torch.stack(values), shares if drawn is None else np.full(drawn, 1 / drawn))


def split_parameters(denoiser: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices of the blocks, for Muon; everything else, for AdamW: embeddings, projections in and out, norms, biases)."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in denoiser.named_parameters():
        in_block = any(part in name for part in ("transformer_blocks.", "encoder.layers.", "encoder.block."))
        is_matrix = parameter.ndim == 2 and "relative_attention_bias" not in name
        (matrices if in_block and is_matrix else others).append(parameter)
    return matrices, others


def train_denoiser(
    emoji: list[Emoji], latents: Latents, text: TextEncoder, options: DenoiserOptions, report: Callable[[str], None]
) -> Denoiser:
    """A denoiser trained from scratch on the latents of `emoji`; the returned weights are the running average."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    generator = torch.Generator("cpu").manual_seed(options.seed)
    denoiser = fresh_denoiser(text).train()
    average = copy.deepcopy(denoiser).eval()
    matrices, others = split_parameters(denoiser)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=options.muon_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=options.adam_learning_rate, betas=(0.9, 0.97), weight_decay=0.0),
    ]
    peaks = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    run: Any = torch.compile(denoiser) if options.compiled else denoiser
    batches = _batches(len(emoji), options.batch, rng)
    started = time.monotonic()
    running = 0.0
    for step in range(options.steps):
        spent = (time.monotonic() - started) / (options.minutes * 60) if options.minutes else 0.0
        progress = max(step / options.steps, spent)
        if progress >= 1:
            break
        factor = min(1.0, (step + 1) / options.warm_up) * (1 - progress)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * factor
        chosen = next(batches)
        picks = rng.choice(len(latents.shares), size=len(chosen), p=latents.shares)
        target = latents.values[chosen, picks].float()
        noise = torch.randn(target.shape, generator=generator)
        words = text([caption(emoji[index].words, rng) for index in chosen])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = flow_loss(run, target, noise, sample_times(len(chosen), generator), words)
        denoiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(denoiser.parameters(), options.clip_norm)
        for optimiser in optimisers:
            optimiser.step()
        # A young average forgets its untrained start quickly.
        _follow(average, denoiser, min(options.ema, (step + 1) / (step + 10)))
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % REPORT_EVERY == 0:
            report(f"denoiser step {step}: loss {running:.3f}, {time.monotonic() - started:.0f} s")
    return average


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Indices in shuffled rounds, so that every emoji is seen equally often; a round's ragged end is dropped."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average's parameters towards the model's."""
    averaged: list[Tensor] = list(average.parameters())
    current: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(averaged, current, 1 - decay)
