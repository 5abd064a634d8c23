"""`vitrify kernels`: compile the GPU kernels of this installation, and look at them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from vitrify.engine import cubins
from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.targets import ARCH_NAMES

__all__ = ["kernels"]

_DTYPES = [DType.FLOAT16.value, DType.BFLOAT16.value, DType.FLOAT32.value]


@click.group()
def kernels() -> None:
    """Compile the GPU kernels ahead of time, and look at them."""


@kernels.command()
@click.option("--arch", "archs", multiple=True, type=click.Choice(ARCH_NAMES), help="Architectures; default: all.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(_DTYPES), help="Dtypes of the activations; default: all.")
@click.option("--kernel", "names", multiple=True, help="Kernels by name; default: all.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: beside the op library.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; default: one per CPU that may be used.")
@click.option("--quiet", is_flag=True, help="Print the result only.")
def build(
    archs: tuple[str, ...], dtypes: tuple[str, ...], names: tuple[str, ...], out: Path | None, jobs: int | None, quiet: bool
) -> None:
    """Compile the Triton kernels into cubins, without a GPU or a driver.

    What is there and unchanged is kept, so that an interrupted build goes on where it was.
    The manifest lists what this call selects: without options everything.
    """
    from vitrify.kernels.aot.build import build as run
    from vitrify.kernels.aot.build import select

    spent: list[float] = []

    def report(done: int, total: int, name: str, seconds: float) -> None:
        spent.append(seconds)
        if not quiet:
            click.echo(f"{done}/{total} {name} {seconds:.1f} s", err=True)

    variants = select([DType.from_name(name) for name in dtypes], names)
    manifest = run(out or cubins.folder(), variants, archs or ARCH_NAMES, workers=jobs, report=report)
    images = [
        i for k in cubins.read_manifest(manifest.parent).kernels.values() for v in k.variants.values() for i in v.images.values()
    ]
    size = sum(i.bytes for i in images) / 1e6
    click.echo(
        f"{manifest}: {len(variants)} variants, {len(images)} images, {size:.1f} MB; "
        f"compiled {len(spent)} in {sum(spent):.0f} s of one core"
    )


@kernels.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of a build; default: this installation's.")
@click.option("--verify", is_flag=True, help="Hold every image against its hash first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(out: Path | None, verify: bool, as_json: bool) -> None:
    """Print each kernel's images, and what a FLUX.1 step at 1024 × 1024 asks of them.

    Times are estimates from data sheets (the larger of FLOPs ÷ peak and bytes ÷ bandwidth), never measurements.
    """
    from vitrify.kernels.aot import estimate

    manifest = cubins.read_manifest(out or cubins.folder(), verify=verify)
    rows = estimate.rows(manifest)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        click.echo(estimate.table(manifest, rows))
