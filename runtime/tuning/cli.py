"""`vitrify calibrate` and `vitrify tune`: what is measured of an artifact on this machine, for its step caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vitrify.engine.artifact.presets import Tuned, check_writable, read_presets, update_presets
from vitrify.engine.errors import RequestError
from vitrify.runtime.loader import load
from vitrify.runtime.tuning.calibrate import calibrate as calibrated
from vitrify.runtime.tuning.requests import Requests, read_prompts
from vitrify.runtime.tuning.search import Bound
from vitrify.runtime.tuning.tune import Outcome
from vitrify.runtime.tuning.tune import tune as tuned

__all__ = ["calibrate", "tune"]

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
        read_presets(pipe.artifact)
        check_writable(pipe.artifact)
        requests = Requests(pipe, lines, steps or pipe.request_default("num_inference_steps"), seed)
        calibration = calibrated(requests, lambda done: click.echo(f"{done} of {len(lines)} prompts", err=True))
        click.echo(" ".join(f"{ratio:.4f}" for ratio in calibration.ratios))
        path = update_presets(pipe.artifact, lambda presets: replace(presets, calibration=calibration))
    click.echo(f"{path}: {requests.steps} steps, {len(lines)} prompts; use it with --cache magcache")


@click.command()
@click.argument("artifact", type=_PATH)
@click.option("--prompts", type=_PATH, required=True, help="A text file, one prompt a line.")
@click.option("--held-out", type=_PATH, help="Prompts to judge the result on; every fourth of --prompts if not given.")
@click.option("--check", "check_file", type=_PATH, help="Prompts to check it on; every second of those left if not given.")
@click.option("--min-ssim", type=float, help="The least SSIM to the uncached picture, 5th percentile over the prompts.")
@click.option("--min-psnr", type=float, help="The least PSNR in dB, likewise; one of the two is given.")
@click.option("--steps", type=click.IntRange(min=2), help="Denoising steps; the artifact's if not given.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first prompt; the next has one more."
)
@click.option("--kernels", type=click.Choice(["auto", "native", "portable"]), default="auto", show_default=True)
@click.option("--threads", type=int, help="Of the CPU; one per core if not given.")
def tune(
    artifact: Path,
    prompts: Path,
    held_out: Path | None,
    check_file: Path | None,
    min_ssim: float | None,
    min_psnr: float | None,
    steps: int | None,
    seed: int,
    kernels: Any,
    threads: int | None,
) -> None:
    """Search the fastest step cache of ARTIFACT whose pictures stay near the uncached ones, for `--cache tuned`.

    It is searched on some prompts, must keep the bound on every one of others, and is judged on yet others. What
    `vitrify calibrate` measured brings in MagCache.
    """
    if (min_ssim is None) == (min_psnr is None):
        raise RequestError("give --min-ssim or --min-psnr, one of them, e.g. --min-ssim 0.95")
    bound = Bound("ssim", min_ssim) if min_ssim is not None else Bound("psnr", min_psnr or 0.0)
    searched, checking, judging = _parts(prompts, check_file, held_out)
    with load(artifact, kernels=kernels, threads=threads) as pipe:
        presets = read_presets(pipe.artifact)
        check_writable(pipe.artifact)
        count = steps or pipe.request_default("num_inference_steps")
        search = Requests(pipe, searched, count, seed)
        check = Requests(pipe, checking, count, seed + len(searched))
        judge = Requests(pipe, judging, count, seed + len(searched) + len(checking))
        outcome = tuned(search, check, judge, bound, presets.calibration, lambda line: click.echo(line, err=True))
        _report(outcome, bound)
        found = Tuned(outcome.cache, count, outcome.record())
        path = update_presets(pipe.artifact, lambda presets: replace(presets, tuned=found))
    click.echo(f"{path}: {count} steps; use it with --cache tuned")


def _parts(prompts: Path, check: Path | None, held_out: Path | None) -> tuple[list[str], list[str], list[str]]:
    """(prompts to search on, to check on, to judge on), no prompt in two of them."""
    lines = read_prompts(prompts)
    judging = lines[3::4] if held_out is None else read_prompts(held_out, "--held-out")
    left = [line for line in lines if line not in set(judging)]
    checking = left[1::2] if check is None else [line for line in read_prompts(check, "--check") if line not in set(judging)]
    searched = [line for line in left if line not in set(checking)]
    if not searched or not checking or not judging:
        raise RequestError(
            f"--prompts {prompts}: {len(lines)} prompts leave {len(searched)} to search on, {len(checking)} to check on and "
            f"{len(judging)} held out; give four or more that --check and --held-out do not have"
        )
    return searched, checking, judging


def _report(outcome: Outcome, bound: Bound) -> None:
    record = outcome.record()
    click.echo(f"tuned: {outcome.cache}")
    for name in ("searched", "checked", "held_out"):
        part = record[name]
        figures = [
            f"{m.upper()} {part[f'{m}_mean']:.4f}, 5th percentile {part[f'{m}_p5']:.4f}, worst {part[f'{m}_worst']:.4f}"
            for m in ("ssim", "psnr")
        ]
        click.echo(f"{name.replace('_', ' ')}: {part['requests']} prompts, {part['computed_steps']} steps; {'; '.join(figures)}")
    click.echo(
        f"time of the loop: {record['wall_ratio']:.3f} of an uncached one by the clock, {record['cost_ratio']:.3f} by the "
        f"engine's calls; {record['tried']} settings tried"
    )
    if not outcome.holds_elsewhere:
        click.echo(
            f"warning: {bound.metric} {bound.least:g} holds on the prompts searched and checked, not on those held out; "
            "search on more",
            err=True,
        )
