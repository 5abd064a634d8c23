"""Measurements as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from vitrify.bench.cases import Case
from vitrify.bench.compare import Verdict
from vitrify.bench.components import ComponentResult
from vitrify.bench.export_growth import Growth
from vitrify.bench.measure import Summary
from vitrify.bench.ops import OpResult
from vitrify.bench.pairs import Pair, pairs
from vitrify.bench.peers.registry import OURS
from vitrify.bench.results import CaseResult, LoopResult
from vitrify.bench.skips import Skip
from vitrify.bench.startup import Startup

__all__ = [
    "case_tables",
    "components_table",
    "growth_table",
    "limit_text",
    "ops_table",
    "skips_table",
    "startup_table",
    "verdict_table",
]

_MIB = 2**20


def case_tables(result: CaseResult, limits: Mapping[str, float]) -> list[Table]:
    """The peers of one case, what was counted, and the runtime's loop where it was measured."""
    tables = [_peer_table(result, limits)]
    if found := list(pairs(result)):
        tables.append(_pair_table(result.name, found))
    if result.counts:
        tables.append(_count_table(result))
    if result.loop is not None:
        tables.append(_loop_table(result.loop))
    return tables


def _peer_table(result: CaseResult, limits: Mapping[str, float]) -> Table:
    dims = ", ".join(f"{name} {size}" for name, size in result.dims.items())
    table = Table(
        title=f"{result.name}: {result.summary}; {result.parameters / 1e6:.0f} M parameters; {dims}",
        caption="Medians of rounds, 95 % bootstrap interval. " + "; ".join(limit_text(*one) for one in limits.items()),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("peer", no_wrap=True)
    for heading in ("error", f"ms per {result.kind}", "interval", "GFLOP/s", "ours / this", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    ours = result.peers.get(OURS)
    for name, check in result.checks.items():
        error = f"{check.relative:.0e}"
        peer = result.peers.get(name)
        if peer is None:
            why = "not measured" if check.passed else f"wrong: allowed {check.tolerance:.0e}"
            table.add_row(name, error, why, "", "", "", "")
            continue
        over = None if ours is None or name == OURS else ours.over(peer)
        ratio = ("", "") if over is None else (f"{over.median:.3f}", _interval(over, 1, 3))
        speed = f"{result.flops / peer.time.median / 1e9:.0f}" if result.kind == "step" else ""
        table.add_row(name, error, *_time(peer.time), speed, *ratio)
        for part, seconds in peer.parts.items():
            table.add_row(f"  {part}", "", *_time(seconds), "", "", "", style="dim")
    for name, why in result.absent.items():
        table.add_row(name, "", f"absent: {why}", "", "", "", "")
    return table


def _pair_table(case: str, found: Iterable[Pair]) -> Table:
    table = Table(title=f"{case}: in the same precision", title_justify="left")
    for heading in ("ours", "peer"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ours / this", "interval", "our error", "its error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        errors = (f"{one.our_error:.1e}", f"{one.error:.1e}")
        table.add_row(one.ours, one.peer, f"{one.ratio.median:.3f}", _interval(one.ratio, 1, 3), *errors)
    return table


def limit_text(name: str, value: float) -> str:
    """One of the machine's limits in words."""
    return f"{name} {value / 1e9:.0f} G{'B' if 'bytes' in name else 'op'}/s"


def _count_table(result: CaseResult) -> Table:
    table = Table(title=f"{result.name}: what can be counted", title_justify="left")
    names = list(result.counts)
    table.add_column("count", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for what in dict.fromkeys(what for counts in result.counts.values() for what in counts):
        table.add_row(what, *(str(result.counts[name].get(what, "")) for name in names))
    return table


def verdict_table(verdicts: Iterable[Verdict], *, everything: bool) -> Table:
    """What the gate found. everything: also what passed."""
    shown = list(verdicts)
    failed = sum(not one.passed for one in shown)
    table = Table(title=f"{len(shown)} gates, {failed} failed", title_justify="left")
    for heading in ("case", "gate", "what", "base", "new", "change", ""):
        table.add_column(heading, no_wrap=heading not in ("change", "what"))
    for one in shown:
        if everything or not one.passed:
            table.add_row(one.case, one.gate, one.what, one.base, one.new, one.change, "ok" if one.passed else "FAILED")
    return table


def _loop_table(loop: LoopResult) -> Table:
    table = Table(title=f"{loop.steps} steps through the runtime's loop", title_justify="left")
    table.add_column("what", no_wrap=True)
    for heading in ("ms", "interval", "outside plan.run()", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, whole, outside in (("whole request", loop.run, loop.run_outside), ("its loop", loop.loop, loop.loop_outside)):
        table.add_row(name, *_time(whole), f"{outside.median:.2%}", f"{outside.low:.2%} – {outside.high:.2%}")
    for graph, seconds in loop.graphs.items():
        table.add_row(f"  {graph}", *_time(seconds), "", "", style="dim")
    return table


def growth_table(found: Iterable[Growth]) -> Table:
    """Exports and plans, one a row."""
    table = Table(title="vitrify export: time and memory", title_justify="left")
    table.add_column("case", no_wrap=True)
    for heading in (
        "blocks",
        "parameters",
        "s",
        "peak anonymous MiB",
        "peak mapped MiB",
        "weights MiB",
        "over source",
        "graphs MiB",
    ):
        table.add_column(heading, justify="right")
    for one in found:
        sizes = ("–", "–", "–")
        if one.source_bytes and one.artifact_bytes is not None and one.graph_bytes is not None:
            over = one.artifact_bytes / one.source_bytes - 1
            sizes = (f"{one.artifact_bytes / _MIB:.0f}", f"{over:+.2%}", f"{one.graph_bytes / _MIB:.1f}")
        table.add_row(
            one.name,
            f"{one.double_blocks} + {one.single_blocks}",
            f"{one.parameters / 1e9:.2f} B",
            f"{one.seconds:.1f}",
            f"{one.peak_anonymous_bytes / _MIB:.0f}",
            f"{one.peak_mapped_bytes / _MIB:.0f}",
            *sizes,
        )
    return table


def startup_table(found: Iterable[Startup]) -> Table:
    """First images, one case a column."""
    columns = list(found)
    table = Table(title="From nothing to the first image: medians of fresh processes", title_justify="left")
    table.add_column("what", no_wrap=True)
    for one in columns:
        table.add_column(one.case, justify="right")
    table.add_row("steps per image", *(str(one.steps) for one in columns))
    seconds = {
        "import vitrify.runtime": "import_s",
        "… and its load": "import_load_s",
        "load": "load_s",
        "first image": "first_image_s",
        "load and first image": "ready_s",
        "whole process, both images": "process_s",
        "next image": "next_image_s",
    }
    for label, name in seconds.items():
        table.add_row(label, *(f"{getattr(one, name):.3f} s" for one in columns))
    sizes = {
        "libraries, anonymous": "library_anonymous",
        "libraries, mapped": "library_mapped",
        "sessions open, anonymous": "opened_anonymous",
        "sessions open, mapped": "opened_mapped",
        "after an image, anonymous": "drawn_anonymous",
        "after an image, mapped": "drawn_mapped",
        "weights in float32": "weights_bytes",
    }
    for label, name in sizes.items():
        table.add_row(label, *(f"{getattr(one, name) / _MIB:.0f} MiB" for one in columns))
    table.add_row("sessions alone / weights", *(f"{one.opened_over_weights:.2f}" for one in columns))
    table.add_row("all after an image / weights", *(f"{one.drawn_over_weights:.2f}" for one in columns))
    return table


def ops_table(found: Iterable[OpResult]) -> Table:
    """Ops, one case a row."""
    results = list(found)
    table = Table(
        title="Our kernels beside ONNX Runtime's own ops",
        caption="Medians of rounds, 95 % bootstrap interval. Peak: the unit on registers alone, in the same rounds.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("case", no_wrap=True)
    table.add_column("op", no_wrap=True)
    for heading in ("error", "ms", "interval", "GFLOP/s", "of peak", "ours / ORT", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in results:
        speed = one.flops / one.ours.median
        share = f"{speed / one.peak_flops:.1%}" if one.peak_flops else ""
        reached = (f"{speed / 1e9:.0f}", share) if one.flops else ("", "")
        ratio = (f"{one.ratio.median:.3f}", _interval(one.ratio, 1, 3))
        table.add_row(one.name, one.op, f"{one.error:.0e}", *_time(one.ours), *reached, *ratio)
    return table


def skips_table(case: str, found: Iterable[Skip]) -> Table:
    """Kinds of skipped steps, one a row."""
    table = Table(
        title=f"{case}: a skipped step beside a computed one",
        caption="Medians of rounds. Shares are of a computed step's segments in the same request. Beside: what is in no segment.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("skipped", no_wrap=True)
    table.add_column("runs", no_wrap=True)
    for heading in ("ms", "computed ms", "share", "beside", "allowed", "of it probe", "beside a computed step", ""):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(
            one.kind,
            ", ".join(one.segments) or "–",
            f"{one.skipped.median * 1e3:.3f}",
            f"{one.computed.median * 1e3:.3f}",
            f"{one.skipped.median / one.computed.median:.2%}",
            f"{one.beside.median:.3%}",
            f"{one.allowed:.1%}",
            "" if one.probe is None else f"{one.probe.median:.3%}",
            f"{one.more.median:.3%}",
            "ok" if one.kept else "OVER",
        )
    return table


def components_table(case: Case, precision: str, found: Iterable[ComponentResult]) -> Table:
    """Components, one a row."""
    table = Table(
        title=f"{case.name}: {case.summary}",
        caption=f"{precision}; medians of rounds, 95 % bootstrap interval.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("component", "gives"):
        table.add_column(heading, no_wrap=True)
    for heading in ("our error", "its error", "ms", "interval", "OpenVINO ms", "ours / OpenVINO", "interval"):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(
            one.name,
            " × ".join(map(str, one.shape)),
            f"{one.our_error:.0e}",
            f"{one.error:.0e}",
            *_time(one.ours),
            f"{one.theirs.median * 1e3:.3f}",
            f"{one.ratio.median:.3f}",
            _interval(one.ratio, 1, 3),
        )
    return table


def _time(summary: Summary) -> tuple[str, str]:
    return f"{summary.median * 1e3:.3f}", _interval(summary, 1e3, 3)


def _interval(summary: Summary, factor: float, digits: int) -> str:
    return f"{summary.low * factor:.{digits}f} – {summary.high * factor:.{digits}f}"
