"""A run as one HTML page that needs nothing else: plots as SVG, pictures inside, no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from vitrify.bench.document import Document
from vitrify.bench.measure import Summary
from vitrify.bench.pairs import pairs
from vitrify.bench.peers.registry import OURS, is_ours
from vitrify.bench.report import limit_text
from vitrify.bench.results import CaseResult

__all__ = ["page", "write_page"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #d9dee6; }
th:first-child, td:first-child { text-align: left; }
.part td { color: #6b7685; border-bottom: none; } .part td:first-child { padding-left: 2rem; }
.pictures td { text-align: center; border: none; padding: .2rem; } .pictures img { width: 7rem; image-rendering: pixelated; }
.bad { color: #b3261e; } .note { color: #6b7685; } svg text { font: 13px system-ui, sans-serif; fill: #1c2430; }
"""

_LABEL_PX, _PLOT_PX, _NUMBER_PX, _ROW_PX = 170, 560, 190, 28
_OURS_COLOR, _PEER_COLOR, _WHISKER_COLOR = "#0b6bcb", "#aab4c2", "#1c2430"


def write_page(path: Path, found: Document) -> None:
    """Write `page` to a file, with the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(found))


def page(found: Document) -> str:
    """The whole page."""
    machine = found.machine
    cpus = f"{machine.cpus} CPUs, {found.run.threads} threads a peer"
    about = (found.date, machine.cpu, cpus, ", ".join(machine.cpu_flags))
    parts = [
        "<h1>vitrify bench</h1>",
        f"<p>{' · '.join(map(escape, about))}</p>",
        f"<p class=note>{escape('; '.join(limit_text(*one) for one in found.run.limits.items()))}</p>",
        *(part for case in found.run.cases for part in _case(case)),
        "<h2>Versions</h2>",
        _table(("package", "version"), [("Python", machine.python), *machine.packages.items()]),
    ]
    title = f"vitrify bench, {escape(found.date)}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _case(case: CaseResult) -> Iterable[str]:
    dims = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in case.dims.items())
    yield f"<h2>{escape(case.name)}: {escape(case.summary)}</h2>"
    yield f"<p class=note>{case.parameters / 1e6:.0f} M parameters; {escape(dims)}</p>"
    if case.peers:
        yield _plot(f"ms per {case.kind}", {name: peer.time.scaled(1e3) for name, peer in case.peers.items()})
    yield _peers(case)
    if found := list(pairs(case)):
        yield "<h3>In the same precision</h3>"
        yield _table(
            ("ours", "peer", "ours ÷ this", "interval", "our error", "its error"),
            [(one.ours, one.peer, *_ratio(one.ratio), f"{one.our_error:.1e}", f"{one.error:.1e}") for one in found],
        )
    if case.counts:
        yield "<h3>Counts</h3>"
        names = list(case.counts)
        whats = dict.fromkeys(what for counts in case.counts.values() for what in counts)
        yield _table(("", *names), [(what, *(str(case.counts[name].get(what, "")) for name in names)) for what in whats])
    if case.loop is not None:
        yield f"<h3>{case.loop.steps} steps through the runtime's loop</h3>"
        rows = (("whole request", case.loop.run, case.loop.run_outside), ("its loop", case.loop.loop, case.loop.loop_outside))
        yield _table(
            ("", "ms", "interval", "outside plan.run()"),
            [(name, *_time(whole), f"{outside.median:.2%}") for name, whole, outside in rows],
        )
    if case.pictures:
        yield "<h3>Pictures</h3>"
        yield _pictures(case.pictures)


def _peers(case: CaseResult) -> str:
    ours = case.peers.get(OURS)
    rows: list[tuple[str, Sequence[str]]] = []
    for name, check in case.checks.items():
        error, peer = f"{check.relative:.1e}", case.peers.get(name)
        if peer is None:
            kind, why = ("", "not measured") if check.passed else ("bad", f"wrong: allowed {check.tolerance:.0e}")
            rows.append((kind, (name, error, why, "", "", "")))
            continue
        over = None if ours is None or name == OURS else ours.over(peer)
        ratio = ("", "") if over is None else _ratio(over)
        rows.append(("", (name, error, *_time(peer.time), *ratio)))
        rows += [("part", (part, "", *_time(seconds), "", "")) for part, seconds in peer.parts.items()]
    rows += [("", (name, "", f"absent: {why}", "", "", "")) for name, why in case.absent.items()]
    return _table(("peer", "error", f"ms per {case.kind}", "interval", "ours ÷ this", "interval"), *_split(rows))


def _split(rows: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[Sequence[str]], list[str]]:
    return [cells for _, cells in rows], [kind for kind, _ in rows]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = []
    for index, cells in enumerate(rows):
        kind = f' class="{kinds[index]}"' if index < len(kinds) and kinds[index] else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(body) + "</table>"


def _plot(title: str, bars: Mapping[str, Summary]) -> str:
    """Bars from zero, quickest first, each with its 95 % interval."""
    longest = max(bar.high for bar in bars.values())
    width, height = _LABEL_PX + _PLOT_PX + _NUMBER_PX, _ROW_PX * len(bars)
    shapes = []
    for row, (name, bar) in enumerate(sorted(bars.items(), key=lambda one: one[1].median)):
        top, middle = row * _ROW_PX + 5, row * _ROW_PX + _ROW_PX // 2
        end, low, high = (_LABEL_PX + _PLOT_PX * value / longest for value in (bar.median, bar.low, bar.high))
        color = _OURS_COLOR if is_ours(name) else _PEER_COLOR
        shapes += [
            f'<text x="{_LABEL_PX - 10}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL_PX}" y="{top}" width="{end - _LABEL_PX:.1f}" height="{_ROW_PX - 10}" fill="{color}"/>',
            f'<path stroke="{_WHISKER_COLOR}" d="M{low:.1f} {middle - 4}v8m0 -4H{high:.1f}m0 -4v8"/>',
            f'<text x="{high + 8:.1f}" y="{middle + 4}">{bar.median:.4g}</text>',
        ]
    return (
        f"<h3>{escape(title)}</h3>"
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        + "".join(shapes)
        + "</svg>"
    )


def _pictures(pictures: Mapping[str, Sequence[bytes]]) -> str:
    """A row a peer, a column a prompt."""
    rows = []
    for name, found in pictures.items():
        images = "".join(_image(f"{name}, picture {index + 1}", one) for index, one in enumerate(found))
        rows.append(f"<tr><td>{escape(name)}</td>{images}</tr>")
    return "<table class=pictures>" + "\n".join(rows) + "</table>"


def _image(said: str, png: bytes) -> str:
    return f'<td><img alt="{escape(said)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></td>'


def _ratio(ratio: Summary) -> tuple[str, str]:
    return f"{ratio.median:.3f}", f"{ratio.low:.3f} – {ratio.high:.3f}"


def _time(seconds: Summary) -> tuple[str, str]:
    return f"{seconds.median * 1e3:.3f}", f"{seconds.low * 1e3:.3f} – {seconds.high * 1e3:.3f}"
