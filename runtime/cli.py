"""`vitrify generate`: a picture from a prompt, on the command line."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vitrify.engine.cache_presets import PREDICTORS
from vitrify.engine.errors import RequestError
from vitrify.runtime.components import KEEP
from vitrify.runtime.loader import load
from vitrify.runtime.request import PromptTruncatedWarning

__all__ = ["generate"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("artifact", type=_PATH)
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("-o", "--output", type=_PATH, default=Path("image.png"), show_default=True, help="A .png file.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--seed", type=int, help="What the noise is drawn from; a random one is printed if none is given.")
@click.option("--height", type=int, help="Pixels.")
@click.option("--width", type=int, help="Pixels.")
@click.option("--guidance-scale", type=float, help="Of models with a guidance embedding.")
@click.option("--true-cfg-scale", type=float, help="Classifier-free guidance; acts above 1 with a negative prompt.")
@click.option("--negative-prompt", help='What to move away from; "" counts.')
@click.option("--max-sequence-length", type=int, help="Text tokens.")
@click.option("--num-images", type=int, default=1, show_default=True, help="Pictures of each prompt.")
@click.option(
    "--cache",
    help="Skip steps, at some loss: first-block[:0.08], taylorseer[:5[:9]], interval[:3[:3]], mask:fast, magcache, tuned, …",
)
@click.option("--cache-predict", type=click.Choice(PREDICTORS), help="What stands in for a skipped step.")
@click.option(
    "--cache-guard", multiple=True, metavar="NAME=N", help="warmup_steps, last_steps, max_consecutive_skips, …; repeatable."
)
@click.option("--keep", type=click.Choice(KEEP), default="none", show_default=True, help="What stays open between components.")
@click.option("--kernels", type=click.Choice(["auto", "native", "portable"]), default="auto", show_default=True)
@click.option("--threads", type=int, help="Of the CPU; one per core if not given.")
@click.option("--verify", type=click.Choice(["load", "full"]), default="load", help="Hash small files, or all.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no report; warnings alone.")
def generate(
    artifact: Path,
    prompts: tuple[str, ...],
    output: Path,
    steps: int | None,
    num_images: int,
    quiet: bool,
    keep: Any,
    kernels: Any,
    threads: int | None,
    verify: Any,
    cache: str | None,
    cache_predict: str | None,
    cache_guard: tuple[str, ...],
    **asked: Any,
) -> None:
    """Draw each PROMPT with ARTIFACT and write PNG files: one to OUTPUT, several to OUTPUT-1.png, OUTPUT-2.png, …

    What is not given comes from the artifact. Prompt, seed and settings stand in the files' metadata.
    """
    if output.suffix.lower() != ".png":
        raise RequestError(f"--output {output}: got suffix {output.suffix!r}, expected .png")
    if not output.absolute().parent.is_dir():
        raise RequestError(f"--output {output}: there is no folder {output.absolute().parent}; create it first")
    if cache is None and (cache_predict is not None or cache_guard):
        raise RequestError("--cache-predict and --cache-guard cannot act without --cache; name a cache")
    with load(artifact, keep=keep, kernels=kernels, threads=threads, verify=verify) as pipe:
        total = steps or pipe.request_default("num_inference_steps")
        policy = None
        if cache is not None:
            policy = pipe.named_cache(cache, cache_predict, cache_guard, steps=total)
        with _progress(total, quiet) as on_step:
            result = pipe(
                list(prompts),
                num_inference_steps=steps,
                num_images_per_prompt=num_images,
                callback_on_step_end=on_step,
                cache=policy,
                **asked,
            )
    paths = result.save(output)
    said = None if result.cache is None or quiet else result.cache.warning  # stands in the summary
    for warning in (w for w in result.warnings if w != said):
        click.echo(f"warning: {warning}", err=True)
    if not quiet:
        if result.cache is not None:
            click.echo(result.cache.summary())
        spent = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in result.timings.items())
        click.echo(f"{', '.join(map(str, paths))}: seed {result.seed}; {spent}")


@contextlib.contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Any]:
    """A bar over the denoising steps, as a step callback. Cut prompts are reported afterwards, not through `warnings`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with warnings.catch_warnings(), Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        task = bar.add_task("denoising", total=total)

        def on_step(_: Any, step: int, __: float, ___: Any) -> None:
            bar.update(task, completed=step + 1)

        yield on_step
