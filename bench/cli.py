"""`vitrify bench`: run (peers in turns), export (the compiler's growth), startup (to the first image), ops (our kernels)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitrify.bench.cases import CASES
from vitrify.bench.export_growth import GROWTH_CASES
from vitrify.bench.jobs import available_cpus
from vitrify.bench.op_cases import OP_CASES
from vitrify.bench.peers.registry import DEFAULT_PEERS, PEERS
from vitrify.engine.errors import ParityError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["bench"]

_PAPER_COLUMNS = 140

_PATH = click.Path(path_type=Path)

_json = click.option("--json", "json_file", type=_PATH, help="Write the document to this file.")
_threads = click.option("--threads", type=click.IntRange(1), help="Threads of every peer; default: all CPUs.")
_cache = click.option("--cache", type=_PATH, default=Path("build/bench"), show_default=True, help="Folder for what is built.")
_sample = click.option(
    "--sample", type=_PATH, default=Path("examples/emoji_flux"), show_default=True, help="The sample pipeline's folder."
)
_cases = click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="Default: all; may be repeated.")


@click.group()
def bench() -> None:
    """Measure steps, exports and start-up against peers on this machine.

    A number comes only after its correctness check. Leave the machine alone while it measures.
    """


@bench.command()
@_cases
@click.option("--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, help="Default: all; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Each round visits every peer twice.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Whole requests for the runtime's loop.")
@_threads
@_json
@_cache
@_sample
def run(
    cases: tuple[str, ...],
    peers: tuple[str, ...],
    rounds: int,
    runs: int,
    threads: int | None,
    json_file: Path | None,
    cache: Path,
    sample: Path,
) -> None:
    """Time a step of each case: ours, and its peers in the same run, in turns."""
    from vitrify.bench.machine import this_machine
    from vitrify.bench.report import case_tables, document
    from vitrify.bench.run import run_cases

    found = run_cases(
        cases or tuple(CASES),
        peers or DEFAULT_PEERS,
        rounds=rounds,
        runs=runs,
        threads=threads or available_cpus(),
        cache=cache.resolve(),
        sample=sample.resolve(),
        progress=_report,
    )
    tables = [table for case in found.cases for table in case_tables(case, found.limits)]
    _finish(json_file, document("run", this_machine(), found.to_json()), tables)
    wrong = [f"{case.name}: {name}" for case in found.cases for name, check in case.checks.items() if not check.passed]
    if wrong:
        raise ParityError(f"failed their correctness check and got no number: {', '.join(wrong)}")


@bench.command()
@click.option("--case", "cases", type=click.Choice(list(GROWTH_CASES)), multiple=True, help="Default: all; may be repeated.")
@_threads
@_json
@_cache
@_sample
def export(cases: tuple[str, ...], threads: int | None, json_file: Path | None, cache: Path, sample: Path) -> None:
    """Watch `vitrify export` on FLUX.1-dev's width: time, peak memory, weight bytes.

    The random sources take 7 GB in the cache, an export as much again while it runs as its source.
    """
    from vitrify.bench.export_growth import measure_growth
    from vitrify.bench.machine import this_machine
    from vitrify.bench.report import document, growth_table

    found = []
    for name in cases or tuple(GROWTH_CASES):
        one = GROWTH_CASES[name]
        _report(name)
        found.append(measure_growth(one, cache.resolve(), sample.resolve(), threads=threads or available_cpus()))
    _finish(json_file, document("export", this_machine(), [one.to_json() for one in found]), [growth_table(found)])


@bench.command()
@_cases
@_threads
@_json
@_cache
@_sample
def startup(cases: tuple[str, ...], threads: int | None, json_file: Path | None, cache: Path, sample: Path) -> None:
    """Time imports, load and the first image in fresh processes, and count resident memory."""
    from vitrify.bench.cases import case
    from vitrify.bench.machine import this_machine
    from vitrify.bench.prepare import prepare
    from vitrify.bench.report import document, startup_table
    from vitrify.bench.startup import measure_startup

    count = threads or available_cpus()
    found = []
    for name in cases or tuple(CASES):
        _report(f"{name}: prepare")
        one = case(name)
        prepared = prepare(one, cache.resolve(), sample.resolve(), plain=False, threads=count)
        _report(f"{name}: measure")
        # Random weights draw noise: one step opens every session.
        steps = one.steps if one.trained else 1
        found.append(measure_startup(name, prepared.artifact, steps=steps, threads=count))
    _finish(json_file, document("startup", this_machine(), [one.to_json() for one in found]), [startup_table(found)])


@bench.command()
@click.option(
    "--case", "cases", type=click.Choice([one.name for one in OP_CASES]), multiple=True, help="Default: all; may be repeated."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Each round visits everybody twice.")
@click.option("--level", help="Instruction set of our kernels; default: the best of this machine.")
@_threads
@_json
def ops(cases: tuple[str, ...], rounds: int, level: str | None, threads: int | None, json_file: Path | None) -> None:
    """Time each op's native kernel against ONNX Runtime's own ops and against the machine's peak."""
    from vitrify.bench.machine import this_machine
    from vitrify.bench.ops import measure_ops
    from vitrify.bench.report import document, ops_table

    names = cases or tuple(one.name for one in OP_CASES)
    found = measure_ops(names, rounds=rounds, threads=threads or available_cpus(), level=level)
    _finish(json_file, document("ops", this_machine(), [one.to_json() for one in found]), [ops_table(found)])


def _report(text: str) -> None:
    """Progress as lines: a moving display would take part in what is measured."""
    click.echo(text, err=True)


def _finish(json_file: Path | None, content: dict[str, Any], tables: Iterable[Table]) -> None:
    from rich.console import Console

    from vitrify.bench.report import write_json

    console = Console()
    if not console.is_terminal:
        console.width = _PAPER_COLUMNS
    for table in tables:
        console.print(table)
    if json_file is not None:
        write_json(json_file, content)
