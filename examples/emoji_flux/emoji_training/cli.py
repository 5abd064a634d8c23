"""The stages of the training, in order, from the command line."""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emoji_training.autoencoder import AutoencoderOptions, train_autoencoder
from emoji_training.captions import spellings
from emoji_training.denoiser import DenoiserOptions, encode_renditions, train_denoiser
from emoji_training.folder import write_autoencoder, write_pictures, write_pipeline, write_tokenizers
from emoji_training.loss import evaluate_folder
from emoji_training.networks import load_autoencoder, load_tokenizers
from emoji_training.package import DEFAULT_CACHE, PackageError, check_package, fetch_package
from emoji_training.pictures import MODEL_FOLDER, Emoji, read_emoji, read_vocables, write_evaluation_sheet
from emoji_training.vocabulary import train_tokenizers

__all__ = ["SHORT", "SHORT_RENDITIONS", "main"]

STAGES = ("vae", "tokenizers", "denoiser", "pictures")
DEFAULT_OUT = DEFAULT_CACHE.parent / "emoji_flux"
# Small batches and high rates go furthest in a few minutes.
SHORT = DenoiserOptions(steps=600, batch=16, warm_up=20, muon_learning_rate=6e-3, adam_learning_rate=4e-3, minutes=8.0)
SHORT_RENDITIONS = 6
# Its operations are so small that two threads on a busy machine mostly wait for each other.
SHORT_THREADS = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages asked for; 0, or 2 with a message when the pictures cannot be had."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.short and options.stage != "all":
        parser.error("--short trains the denoiser alone, with the shipped autoencoder and tokenizers: leave --stage out")
    try:
        package = check_package(options.data) if options.data else fetch_package()
    except PackageError as error:
        print(f"error: {error}")
        return 2
    threads = options.threads or (SHORT_THREADS if options.short else None)
    if threads is not None:
        torch.set_num_threads(threads)
    # Norm weights stay float32 under autocast; torch says for each run that this takes the unfused path.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    stages = ("denoiser",) if options.short else STAGES if options.stage == "all" else (options.stage,)
    options.out.mkdir(parents=True, exist_ok=True)
    _run(options, stages, package)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train emoji_flux and write it as a diffusers folder.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the folder to write (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="an unpacked emoji-datasource-google 16.0.0 (default: fetched by npm pack)")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="one stage; later ones read --out")
    parser.add_argument("--steps", type=int, help="training steps of the denoiser, or of the autoencoder with --stage vae")
    parser.add_argument("--minutes", type=float, help="end that training after so long, its learning rate decayed by then")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="default: as many as torch finds cores; one with --short")
    parser.add_argument("--compile", action="store_true", help="run the denoiser through torch.compile (needs a C++ compiler)")
    parser.add_argument(
        "--short", action="store_true", help="a denoiser from scratch in at most ten minutes, to see that it learns"
    )
    return parser


def _run(options: argparse.Namespace, stages: Sequence[str], package: Path) -> None:
    report = functools.partial(print, flush=True)
    emoji = read_emoji(package)
    out: Path = options.out
    (out / "names.txt").write_text("".join(f"{item.name}\n" for item in emoji), encoding="utf-8")
    write_evaluation_sheet(emoji, out / "evaluation.png")
    if "vae" in stages:
        alone = options if options.stage == "vae" else argparse.Namespace(steps=None, minutes=None)
        settings = _with(AutoencoderOptions(seed=options.seed), alone)
        write_autoencoder(out, train_autoencoder(np.stack([item.picture for item in emoji]), settings, report))
    if "tokenizers" in stages:
        write_tokenizers(out, train_tokenizers(spellings(read_vocables(package))))
    if "denoiser" in stages:
        _train_denoiser(options, emoji, report)
    if "pictures" in stages:
        write_pictures(out, out / "pictures.png")


def _train_denoiser(options: argparse.Namespace, emoji: list[Emoji], report: Any) -> None:
    source = MODEL_FOLDER if options.short else options.out
    autoencoder, text = load_autoencoder(source), load_tokenizers(source)
    settings = _with(replace(SHORT if options.short else DenoiserOptions(), seed=options.seed, compiled=options.compile), options)
    latents = encode_renditions(autoencoder, emoji, report, SHORT_RENDITIONS if options.short else None, options.seed)
    denoiser = train_denoiser(emoji, latents, text, settings, report)
    write_pipeline(options.out, denoiser, autoencoder, text)
    report(f"loss on fresh noise: {evaluate_folder(options.out):.3f}")


def _with(settings: Any, options: argparse.Namespace) -> Any:
    """The settings with --steps and --minutes where they were given."""
    given = {name: getattr(options, name) for name in ("steps", "minutes") if getattr(options, name) is not None}
    return replace(settings, **given)
