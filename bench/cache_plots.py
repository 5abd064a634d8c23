"""The tables and the pictures of `docs/caching.md`: quality over time, and a grid of drawn names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vitrify.bench.cache_settings import FAMILIES, PREDICTORS

__all__ = ["as_json", "grid", "plot", "table"]

Array = npt.NDArray[Any]
Row = Mapping[str, Any]

_PANELS = {
    "psnr_mean": "PSNR, mean (dB)",
    "ssim_mean": "1 − SSIM, mean",
    "psnr_p5": "PSNR, 5th percentile (dB)",
    "ssim_p5": "1 − SSIM, 5th percentile",
}
_KINDS = {"corrected": ("o", 36), "Taylor, not corrected": ("^", 14), "hold": ("x", 14)}
"""Of predictors: mark and its area in points²."""
_SCALE = 2
_LABEL = 96
_HEAD = 14


def as_json(document: Mapping[str, Any]) -> str:
    """The study's document, a line a row."""
    lists = {name: value for name, value in document.items() if name in ("rows", "plain")}
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items() if name not in lists]
    for name, rows in lists.items():
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table(document: Mapping[str, Any]) -> str:
    """The study's document as a page of Markdown: gains of all pairs, each setting beside its control, then plain steps."""
    lines = [
        f"# Figures of the study: {document['names']} names, guidance {document['guidance']:g}",
        "",
        "Written by `vitrify bench caches`. time: of the loop, 1 is uncached: the steps that a name computes and skips on",
        "average, each at what it takes by the clock with this predictor, with or without the first block's probe (last table).",
        "control: as many plain steps as are not slower. gain: PSNR over the control's. In brackets the 5th percentile over the",
        "names.",
    ]
    for steps in sorted({row["steps"] for row in document["rows"]}):
        cached = [row for row in document["rows"] if row["steps"] == steps]
        plain = {row["steps"]: row for row in document["plain"] if row["of_steps"] == steps}
        lines += ["", f"## {steps} steps", "", *_gains(cached, plain), "", *_settings(cached, plain)]
    lines += ["", "## Steps by the clock, ÷ an uncached one", "", *_head(["kind", "computed", "skipped"])]
    lines += [f"| {kind} | {computed:.3f} | {skipped:.4f} |" for kind, (computed, skipped) in document["steps"].items()]
    lines += [
        "",
        "Whole loops by the clock, ÷ an uncached one: " + ", ".join(f"{n} {r:.3f}" for n, r in document["loops"].items()),
    ]
    return "\n".join(lines) + "\n"


def _gains(cached: Sequence[Row], plain: Mapping[int, Row]) -> list[str]:
    """Decisions by predictors: time, and gain in dB over as much time of plain steps."""
    lines = _head(["time: gain in dB", *PREDICTORS])
    for decision in dict.fromkeys(row["decision"] for row in cached):
        of = {row["predictor"]: row for row in cached if row["decision"] == decision}
        cells = [f"{of[p]['time_ratio']:.2f}: {_gain(of[p], plain)}" if p in of else "" for p in PREDICTORS]
        lines.append(f"| {decision} | {' | '.join(cells)} |")
    return lines


def _settings(cached: Sequence[Row], plain: Mapping[int, Row]) -> list[str]:
    quality = ["PSNR (5 %)", "SSIM (5 %)"]
    lines = _head(["run", "computed", "time", *quality, "control", *(f"its {q}" for q in quality), "gain"])
    for row in sorted(cached, key=lambda r: float(r["time_ratio"])):
        name = f"{row['decision']}, {row['predictor']}"
        cells = [name, f"{row['computed']:.1f}", f"{row['time_ratio']:.3f}", *_quality(row)]
        if row["control"] is None:
            cells += ["no cache is not slower", "", "", ""]
        else:
            control = plain[row["control"]]
            cells += [control["decision"], *_quality(control), f"{_gain(row, plain)} dB"]
        lines.append(f"| {' | '.join(cells)} |")
    for row in plain.values():
        cells = [row["decision"], str(row["steps"]), f"{row['time_ratio']:.3f}", *_quality(row), "", "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _head(cells: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}"]


def _quality(row: Row) -> list[str]:
    return [f"{row['psnr_mean']:.1f} ({row['psnr_p5']:.1f})", f"{row['ssim_mean']:.4f} ({row['ssim_p5']:.3f})"]


def _gain(row: Row, plain: Mapping[int, Row]) -> str:
    return "none" if row["control"] is None else f"{row['psnr_mean'] - plain[row['control']]['psnr_mean']:+.1f}"


def plot(document: Mapping[str, Any], steps: int, path: Path) -> None:
    """Quality over the share of an uncached loop's time, at one number of steps; plain steps are the line to beat.

    Corrected predictions of one kind of decision are joined. path: a .png file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    cached = [row for row in document["rows"] if row["steps"] == steps and row["control"] is not None]
    slowest = max(float(row["time_ratio"]) for row in cached)
    plain = [row for row in document["plain"] if row["of_steps"] == steps and row["time_ratio"] <= slowest]
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9), sharex=True, constrained_layout=True)
    for axis, (metric, said) in zip(axes.flat, _PANELS.items(), strict=True):
        axis.plot([row["time_ratio"] for row in plain], _shown(plain, metric), "k.-", label="plain steps", linewidth=1)
        for number, family in enumerate(FAMILIES):
            for kind, (mark, area) in _KINDS.items():
                of = sorted(
                    (r for r in cached if (r["family"], _kind(r)) == (family, kind)), key=lambda r: float(r["time_ratio"])
                )
                times, values = [row["time_ratio"] for row in of], _shown(of, metric)
                axis.scatter(times, values, area, f"C{number}", marker=mark, alpha=0.8, linewidths=1)
                if kind == "corrected":
                    first_order = [row for row in of if row["predictor"].startswith("Taylor 1 corrected")]
                    times, values = [row["time_ratio"] for row in first_order], _shown(first_order, metric)
                    axis.plot(times, values, f"C{number}", label=family, alpha=0.5, linewidth=1)
        axis.set_ylabel(said)
        axis.grid(alpha=0.3)
        if metric.startswith("ssim"):
            axis.set_yscale("log")
            axis.invert_yaxis()
    for kind, (mark, area) in _KINDS.items():
        axes[0, 0].scatter([], [], area, "gray", marker=mark, label=kind)
    for axis in axes[1]:
        axis.set_xlabel(f"time of the loop ÷ {steps} plain steps")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Step caches on the sample, {steps} steps: nearness to the uncached picture (up is nearer)")
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def _kind(row: Row) -> str:
    if row["predictor"].startswith("hold"):
        return "hold"
    return "corrected" if "corrected" in row["predictor"] else "Taylor, not corrected"


def _shown(rows: Sequence[Row], metric: str) -> list[float]:
    return [1 - row[metric] if metric.startswith("ssim") else row[metric] for row in rows]


def grid(names: Sequence[str], rows: Sequence[tuple[str, Array]], path: Path) -> None:
    """A row of pictures for each setting, with its label in front. rows: (label, [names, height, width, 3] from 0 to 1)."""
    height, width = (int(extent) * _SCALE for extent in rows[0][1].shape[1:3])
    sheet = Image.new("RGB", (_LABEL + width * len(names), _HEAD + height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((_LABEL + column * width + 4, 1), name[:20], fill="black")
    for line, (label, pictures) in enumerate(rows):
        draw.text((4, _HEAD + line * height + height // 2), label, fill="black")
        for column, picture in enumerate(pictures):
            tile = Image.fromarray((picture * 255).round().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (_LABEL + column * width, _HEAD + line * height))
    sheet.save(path, optimize=True)
