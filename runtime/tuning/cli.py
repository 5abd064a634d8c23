"""`vitrify calibrate`: what a step cache can know of an artifact beforehand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vitrify.engine.artifact.presets import read_presets, write_presets
from vitrify.runtime.loader import load
from vitrify.runtime.tuning.calibrate import calibrate as calibrated
from vitrify.runtime.tuning.prompts import Requests, read_prompts

__all__ = ["calibrate"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("artifact", type=_PATH)
@click.option("--prompts", type=_PATH, required=True, help="A text file, one prompt a line.")
@click.option("--steps", type=click.IntRange(min=2), help="Denoising steps; the artifact's if not given.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first prompt; the next has one more."
)
@click.option("--kernels", type=click.Choice(["auto", "native", "portable"]), default="auto", show_default=True)
@click.option("--threads", type=int, help="Of the CPU; one per core if not given.")
def calibrate(artifact: Path, prompts: Path, steps: int | None, seed: int, kernels: Any, threads: int | None) -> None:
    """Measure how the residual of ARTIFACT's blocks moves from step to step, for `--cache magcache`.

    The table goes to ARTIFACT.presets.json, beside the artifact; a few prompts suffice.
    """
    lines = read_prompts(prompts)
    with load(artifact, kernels=kernels, threads=threads) as pipe:
        presets = read_presets(pipe.artifact)
        requests = Requests(pipe, lines, steps or pipe.request_default("num_inference_steps"), seed)
        calibration = calibrated(requests, lambda done: click.echo(f"{done} of {len(lines)} prompts", err=True))
        path = write_presets(pipe.artifact, replace(presets, calibration=calibration))
    click.echo(" ".join(f"{ratio:.4f}" for ratio in calibration.ratios))
    click.echo(f"{path}: {requests.steps} steps, {len(lines)} prompts; use it with --cache magcache")
