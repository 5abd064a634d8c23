"""`vitrify bench`: run, components (beside peers), compare, report; export, startup, ops, gpu, skips (ours); caches (a study)."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrify.bench.artifact_cases import artifact_cases
from vitrify.bench.cases import CASES, COMPONENT_CASES
from vitrify.bench.compare import Margins
from vitrify.bench.export_growth import GROWTH_CASES
from vitrify.bench.jobs import available_cpus
from vitrify.bench.op_cases import OP_CASES
from vitrify.bench.peers.registry import PEERS, is_ours
from vitrify.engine.errors import ParityError, VitrifyError

if TYPE_CHECKING:
    from rich.table import Table

    from vitrify.bench.results import RunResult

__all__ = ["bench"]

_PAPER_COLUMNS = 140

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_PEER_NAMES = tuple(dict.fromkeys(name for peers in PEERS.values() for name in peers))
_MODELS = [name for name, one in CASES.items() if one.kind == "step"]
_STEP_CACHES = ("first-block:0.08", "taylorseer")
_PROMPTS = ("red apple", "a glass blower at work")
_SPREAD = 0.01

_json = click.option("--json", "json_file", type=_PATH, help="Write the document to this file.")
_threads = click.option("--threads", type=click.IntRange(1), help="Threads of every peer; default: all CPUs.")
_cache = click.option("--cache", type=_PATH, default=Path("build/bench"), show_default=True, help="Folder for what is built.")
_sample = click.option(
    "--sample", type=_PATH, default=Path("examples/emoji_flux"), show_default=True, help="The sample pipeline's folder."
)
_models = click.option("--case", "cases", type=click.Choice(_MODELS), multiple=True, help="Default: all; may be repeated.")


@click.group()
def bench() -> None:
    """Measure steps, exports and start-up against peers on this machine.

    A number comes only after its correctness check. Leave the machine alone while it measures.
    """


@bench.command()
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="Default: all; may be repeated.")
@click.option("--artifact", type=_FOLDER, help="Measure this artifact instead of the cases; needs --source.")
@click.option("--source", type=_FOLDER, help="The diffusers folder that --artifact was compiled from: what the peers run.")
@click.option("--prompt", "prompts", multiple=True, help="Of the artifact's pictures; may be repeated.")
@click.option(
    "--base-python",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, executable=True),
    help="The interpreter whose vitrify to compare with, in the same rounds; needs --json and --base-json.",
)
@click.option("--base-artifact", type=_FOLDER, help="The artifact to compare --artifact with; needs --json and --base-json.")
@click.option("--base-json", "base_file", type=_PATH, help="Write what is compared with to this file, as `compare`'s BASE.")
@click.option("--peer", "peers", type=click.Choice(_PEER_NAMES), multiple=True, help="Default: all; may be repeated.")
@click.option(
    "--step-cache",
    "caches",
    multiple=True,
    default=_STEP_CACHES,
    show_default=True,
    help="Ours under this cache; may be repeated.",
)
@click.option("--rounds", type=click.IntRange(2), default=10, show_default=True, help="At least; each visits every peer twice.")
@click.option(
    "--spread",
    type=click.FloatRange(0, 1, min_open=True),
    default=_SPREAD,
    show_default=True,
    help="More rounds until ours ÷ base, or without one ours ÷ anchor, is known to ± this share.",
)
@click.option("--most", type=click.IntRange(2), default=100, show_default=True, help="Rounds at most.")
@click.option(
    "--runs", type=click.IntRange(0), default=5, show_default=True, help="Whole requests for the runtime's loop; 0: none."
)
@click.option("--limits/--no-limits", default=True, show_default=True, help="What the machine reaches at most, beside.")
@click.option("--prepare-only", is_flag=True, help="Build what the run needs and keep it in --cache; measure nothing.")
@_threads
@_json
@click.option("--html", "html_file", type=_PATH, help="Write one page with plots and pictures to this file.")
@_cache
@_sample
def run(
    cases: tuple[str, ...],
    artifact: Path | None,
    source: Path | None,
    prompts: tuple[str, ...],
    base_python: Path | None,
    base_artifact: Path | None,
    base_file: Path | None,
    peers: tuple[str, ...],
    caches: tuple[str, ...],
    rounds: int,
    spread: float,
    most: int,
    runs: int,
    limits: bool,
    prepare_only: bool,
    threads: int | None,
    json_file: Path | None,
    html_file: Path | None,
    cache: Path,
    sample: Path,
) -> None:
    """Time steps and whole pictures: ours, and its peers in the same run, in turns.

    With --artifact and --source it measures a model of your own, in CI for instance: `run --json` then `compare`.
    With --base-python, --base-artifact or both it measures in the same rounds what ours is to be compared with.
    """
    from vitrify.bench.beside import Base, check_same_cases, installed
    from vitrify.bench.document import Document, write_document
    from vitrify.bench.machine import this_machine
    from vitrify.bench.measure import Pace
    from vitrify.bench.page import write_page
    from vitrify.bench.prepare import GivenModel
    from vitrify.bench.report import case_tables
    from vitrify.bench.run import Plan, prepare_cases, run_cases

    if (artifact is None) != (source is None):
        raise click.UsageError(
            "--artifact and --source go together: the peers run the folder that the artifact was compiled from"
        )
    if artifact is not None and cases:
        raise click.UsageError("--case names one of vitrify's own cases; leave it out with --artifact")
    if prompts and artifact is None:
        raise click.UsageError("--prompt acts with --artifact alone; the cases have prompts of their own")
    if base_artifact is not None and artifact is None:
        raise click.UsageError("--base-artifact acts with --artifact alone")
    has_base = base_python is not None or base_artifact is not None
    if has_base and not prepare_only and (base_file is None or json_file is None):
        raise click.UsageError("a base is there for `compare`: name both documents, --base-json and --json")
    if base_file is not None and json_file is not None and base_file.absolute() == json_file.absolute():
        raise click.UsageError("--json and --base-json name the same file")
    if base_file is not None and not has_base:
        raise click.UsageError("--base-json needs a base: --base-python, --base-artifact or both")
    chosen = [CASES[name] for name in cases or CASES]
    given = base = None
    if artifact is not None and source is not None:
        given = GivenModel(artifact.resolve(), source.resolve())
        chosen = list(artifact_cases(given.artifact, prompts or _PROMPTS))
    base_vitrify = None
    if has_base:
        # Not resolved: an environment's interpreter is a link, and where it leads to has no packages.
        python = sys.executable if base_python is None else str(base_python.absolute())
        base = Base(python)
        if given is not None and base_artifact is not None:
            check_same_cases(given.artifact, base_artifact.resolve())
            base = Base(python, GivenModel(base_artifact.resolve(), given.source))
        base_vitrify = installed(python, compiles=given is None)
        same = base_vitrify.digest == installed(compiles=False).digest
        _report(f"the base is the vitrify of {base_vitrify.folder}{', the same code as this one' if same else ''}")
    plan = Plan(
        peers=peers or _PEER_NAMES,
        caches=caches,
        pace=Pace(rounds, spread, max(rounds, most)),
        loop_runs=runs,
        threads=threads or available_cpus(),
        cache=cache.resolve(),
        sample=sample.resolve(),
        limits=limits,
    )
    if prepare_only:
        prepare_cases(chosen, plan, given=given, base=base, progress=_report)
        return
    run_id = uuid.uuid4().hex
    measured, of_base = run_cases(chosen, plan, given=given, base=base, progress=_report)
    found = Document.of_today(this_machine(), measured, run_id)
    _print(table for case in found.run.cases for table in case_tables(case, found.run.limits))
    if json_file is not None:
        write_document(json_file, found)
    if base_file is not None and of_base is not None and base_vitrify is not None:
        write_document(base_file, Document.of_today(base_vitrify.machine, of_base, run_id, is_base=True))
    if html_file is not None:
        write_page(html_file, found)
    for said in _wrong(measured):
        _report(f"wrong, so without a number: {said}")
    if of_base is not None:
        # No error: a change that mends what was wrong is to pass.
        for said in _wrong(of_base, ours=True):
            _report(f"the base is wrong there, so its time is not compared: {said}")
    if ours := _wrong(measured, ours=True):
        raise ParityError(f"ours failed its correctness check: {', '.join(ours)}")


def _wrong(measured: RunResult, *, ours: bool = False) -> list[str]:
    """Who failed its check, with its case. ours: of ours alone."""
    return [f"{case.name}: {name}" for case in measured.cases for name in case.wrong if is_ours(name) or not ours]


@bench.command()
@click.argument("base", type=_PATH)
@click.argument("new", type=_PATH)
@click.option(
    "--margin",
    type=click.FloatRange(0, min_open=True),
    default=Margins().time,
    show_default=True,
    help="Of a step: ours ÷ base measured in one run, else how ours ÷ anchor changed.",
)
@click.option(
    "--picture-margin",
    type=click.FloatRange(0, min_open=True),
    default=Margins().picture_time,
    show_default=True,
    help="The same of whole pictures.",
)
@click.option("--across-machines", is_flag=True, help="Compare although the processor is another: its ratios are not the same.")
@click.option("--all", "everything", is_flag=True, help="Show what passed too.")
def compare(base: Path, new: Path, margin: float, picture_margin: float, across_machines: bool, everything: bool) -> None:
    """Hold the run NEW against the run BASE: exit code 1 if anything got worse or is missing.

    Times are known best where both are of one run: `run --base-python … --base-json BASE --json NEW`.
    """
    from vitrify.bench.compare import compare as judge
    from vitrify.bench.document import read_document
    from vitrify.bench.report import verdict_table

    margins = Margins(time=margin, picture_time=picture_margin)
    verdicts = judge(read_document(base), read_document(new), margins, across_machines=across_machines)
    _print([verdict_table(verdicts, everything=everything)])
    failed = sum(not one.passed for one in verdicts)
    if failed:
        raise VitrifyError(f"{failed} of {len(verdicts)} gates failed against {base}")


@bench.command()
@click.argument("run_file", metavar="RUN", type=_PATH)
@click.option("--html", "html_file", type=_PATH, help="Write one page with plots and pictures to this file.")
@click.option("--pictures", "grid_file", type=_PATH, help="Write the pictures side by side to this PNG file, a row a peer.")
@click.option("--peer", "peers", multiple=True, help="Of the pictures side by side: rows, in this order; default: all.")
def report(run_file: Path, html_file: Path | None, grid_file: Path | None, peers: tuple[str, ...]) -> None:
    """Show the document RUN of an earlier run: as tables, as one HTML page, and its pictures side by side."""
    from vitrify.bench.document import read_document
    from vitrify.bench.page import write_page
    from vitrify.bench.picture_grid import write_grid
    from vitrify.bench.report import case_tables

    found = read_document(run_file)
    _print(table for case in found.run.cases for table in case_tables(case, found.run.limits))
    if html_file is not None:
        write_page(html_file, found)
    if grid_file is not None:
        write_grid(grid_file, found.run, peers)


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
    from vitrify.bench.document import document, write_json
    from vitrify.bench.export_growth import measure_growth
    from vitrify.bench.machine import this_machine
    from vitrify.bench.report import growth_table

    found = []
    for name in cases or tuple(GROWTH_CASES):
        one = GROWTH_CASES[name]
        _report(name)
        found.append(measure_growth(one, cache.resolve(), sample.resolve(), threads=threads or available_cpus()))
    _print([growth_table(found)])
    if json_file is not None:
        write_json(json_file, document("export", this_machine(), [one.to_json() for one in found]))


@bench.command()
@_models
@_threads
@_json
@_cache
@_sample
def startup(cases: tuple[str, ...], threads: int | None, json_file: Path | None, cache: Path, sample: Path) -> None:
    """Time imports, load and the first image in fresh processes, and count resident memory."""
    from vitrify.bench.document import document, write_json
    from vitrify.bench.machine import this_machine
    from vitrify.bench.prepare import prepare
    from vitrify.bench.report import startup_table
    from vitrify.bench.startup import measure_startup

    count = threads or available_cpus()
    found = []
    for name in cases or _MODELS:
        _report(f"{name}: prepare")
        one = CASES[name]
        prepared = prepare(one, cache.resolve(), sample.resolve(), builds=(), threads=count)
        _report(f"{name}: measure")
        # Random weights draw noise: one step opens every session.
        steps = one.steps if one.trained else 1
        found.append(measure_startup(name, prepared.artifact, steps=steps, threads=count))
    _print([startup_table(found)])
    if json_file is not None:
        write_json(json_file, document("startup", this_machine(), [one.to_json() for one in found]))


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
    from vitrify.bench.document import document, write_json
    from vitrify.bench.machine import this_machine
    from vitrify.bench.ops import measure_ops
    from vitrify.bench.report import ops_table

    names = cases or tuple(one.name for one in OP_CASES)
    found = measure_ops(names, rounds=rounds, threads=threads or available_cpus(), level=level)
    _print([ops_table(found)])
    if json_file is not None:
        write_json(json_file, document("ops", this_machine(), [one.to_json() for one in found]))


@bench.command()
@click.option("--rounds", type=click.IntRange(2), default=8, show_default=True, help="Each visits every peer twice.")
@click.option("--kernels", "folder", type=_FOLDER, help="A folder of `vitrify kernels build`; default: this installation's.")
@_json
def gpu(rounds: int, folder: Path | None, json_file: Path | None) -> None:
    """Check the compiled GPU kernels against float64, and time them against PyTorch's. Needs a GPU."""
    from vitrify.bench.gpu import measure_gpu, table, write

    report = measure_gpu(folder, rounds=rounds)
    click.echo(table(report))
    if json_file is not None:
        write(report, json_file)


@bench.command()
@click.option("--case", "cases", type=click.Choice(list(COMPONENT_CASES)), multiple=True, help="Default: all; may be repeated.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of both.")
@click.option("--rounds", type=click.IntRange(2), default=8, show_default=True, help="Each visits ours and theirs twice.")
@_threads
@_json
@_cache
@_sample
def components(
    cases: tuple[str, ...], precision: str, rounds: int, threads: int | None, json_file: Path | None, cache: Path, sample: Path
) -> None:
    """Time text encoders and VAE decoder beside OpenVINO's of the same weights."""
    from vitrify.bench.components import component_builds, measure_components
    from vitrify.bench.document import document, write_json
    from vitrify.bench.machine import this_machine
    from vitrify.bench.prepare import prepare
    from vitrify.bench.report import components_table

    count = threads or available_cpus()
    results = {}
    for name in cases or tuple(COMPONENT_CASES):
        one = COMPONENT_CASES[name]
        prepared = prepare(one, cache.resolve(), sample.resolve(), builds=component_builds(precision), threads=count)
        found = measure_components(one, prepared, precision=precision, rounds=rounds, threads=count)
        _print([components_table(one, precision, found)])
        results[name] = {"precision": precision, "components": [component.to_json() for component in found]}
    if json_file is not None:
        write_json(json_file, document("components", this_machine(), results))


@bench.command()
@click.option("--case", type=click.Choice(_MODELS), default="flux-146m", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Each visits every kind of skip.")
@_threads
@_json
@_cache
@_sample
def skips(case: str, rounds: int, threads: int | None, json_file: Path | None, cache: Path, sample: Path) -> None:
    """Time a skipped step of each kind, and the first block's probe, against a computed step.

    Ends with an error where one takes more than it may.
    """
    from vitrify.bench.document import document, write_json
    from vitrify.bench.machine import this_machine
    from vitrify.bench.prepare import prepare
    from vitrify.bench.report import skips_table
    from vitrify.bench.skips import measure_skips

    count = threads or available_cpus()
    prepared = prepare(CASES[case], cache.resolve(), sample.resolve(), builds=(), threads=count)
    found = measure_skips(prepared.artifact, rounds=rounds, threads=count)
    _print([skips_table(case, found)])
    if json_file is not None:
        write_json(json_file, document("skips", this_machine(), [one.to_json() for one in found]))
    missed = [one.kind for one in found if not one.kept]
    if missed:
        raise VitrifyError(f"{case}: more than it may take: {', '.join(missed)}")


@bench.command()
@click.argument("artifact", type=_PATH)
@click.option(
    "--names", type=_PATH, default=Path("examples/emoji_flux/names.txt"), show_default=True, help="What the sample knows."
)
@click.option("--out", type=_PATH, default=Path("docs/caching"), show_default=True, help="Where figures and pictures go.")
@click.option("--stage", type=click.Choice(["draw", "time", "report"]), help="Up to this one alone; all three if not given.")
@_cache
def caches(artifact: Path, names: Path, out: Path, stage: str | None, cache: Path) -> None:
    """Study step caches on the sample's ARTIFACT: quality and time of each setting, beside fewer plain steps.

    Takes one to two hours; broken off, it goes on where it was. The stage `time` wants the machine for itself.
    """
    from vitrify.bench.cache_plots import as_json, grid, plot, table
    from vitrify.bench.cache_settings import STEPS
    from vitrify.bench.cache_study import Study

    known = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    study = Study(artifact, known, cache / "caches", _report)
    study.draw()
    if stage == "draw":
        return
    study.time()
    if stage == "time":
        return
    document = study.document()
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.json").write_text(as_json(document), encoding="utf-8")
    for steps in STEPS:
        plot(document, steps, out / f"quality-{steps}.png")
    grid(*study.pictures(), out / "pictures.png")
    (out / "figures.md").write_text(table(document), encoding="utf-8")


def _report(text: str) -> None:
    """Progress as lines: a moving display would take part in what is measured."""
    click.echo(text, err=True)


def _print(tables: Iterable[Table]) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = _PAPER_COLUMNS
    for table in tables:
        console.print(table)
