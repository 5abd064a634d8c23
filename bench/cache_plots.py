"""The table and the pictures of `docs/caching.md`: quality over time, and a grid of drawn names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

__all__ = ["grid", "plot", "table"]

Array = npt.NDArray[Any]

_METRICS = {
    "psnr_mean": "PSNR, mean (dB)",
    "ssim_mean": "SSIM, mean",
    "psnr_p5": "PSNR, 5th percentile (dB)",
    "ssim_p5": "SSIM, 5th percentile",
}
_MARKS = {"interval": "o", "searched mask": "*", "growing mask": "*", "first block": "s", "MagCache": "^"}
_SCALE = 2
_LABEL = 96
_HEAD = 14


def table(document: Mapping[str, Any]) -> str:
    """The study's document as a page of Markdown: each setting beside its control, then plain steps."""
    rows = document["rows"]
    head = ["run", "computed", "time", "PSNR (5 %)", "SSIM (5 %)", "control", "its PSNR (5 %)", "its SSIM (5 %)", "gain"]
    lines = [
        f"# Figures of the study: {document['names']} names, guidance {document['guidance']:g}",
        "",
        "Written by `vitrify bench caches`. time: of the loop, 1 is uncached. control: as many plain steps as are not slower.",
        "gain: PSNR over the control's. In brackets the 5th percentile over the names.",
    ]
    for steps in sorted({row.get("of_steps", row["steps"]) for row in rows}):
        lines += ["", f"## {steps} steps", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        cached = [row for row in rows if "of_steps" not in row and row["steps"] == steps]
        for row in sorted(cached, key=lambda r: r["time_ratio"] or 0.0):
            cells = [row["name"], f"{row['computed']:.1f}", *_time(row), *_quality(row), "", "", "", ""]
            if row["control"]:
                control = row["control"]
                gain = row["psnr_mean"] - control["psnr_mean"]
                cells[5:] = [control["name"], *_quality(control), f"{gain:+.1f} dB"]
            lines.append(f"| {' | '.join(cells)} |")
        for row in (row for row in rows if row.get("of_steps") == steps):
            cells = [row["name"], f"{row['computed']:.0f}", *_time(row), *_quality(row), "", "", "", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _time(row: Mapping[str, Any]) -> list[str]:
    return ["" if row["time_ratio"] is None else f"{row['time_ratio']:.3f}"]


def _quality(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['psnr_mean']:.1f} ({row['psnr_p5']:.1f})", f"{row['ssim_mean']:.4f} ({row['ssim_p5']:.3f})"]


def plot(rows: Sequence[Mapping[str, Any]], steps: int, path: Path) -> None:
    """Quality over the share of an uncached loop's time, at one number of steps; plain steps are the line to beat.

    rows: of the study's document. path: a .png file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    plain = sorted((r for r in rows if r.get("of_steps") == steps), key=lambda r: r["time_ratio"])
    cached = [r for r in rows if "of_steps" not in r and r["steps"] == steps and r["time_ratio"] is not None]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, constrained_layout=True)
    for axis, (metric, said) in zip(axes.flat, _METRICS.items(), strict=True):
        axis.plot([r["time_ratio"] for r in plain], [r[metric] for r in plain], "k.-", label="plain steps", linewidth=1)
        for family, mark in _MARKS.items():
            of = [r for r in cached if r["family"] == family]
            if of:
                axis.plot([r["time_ratio"] for r in of], [r[metric] for r in of], mark, label=family, alpha=0.8)
        axis.set_ylabel(said)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel(f"time of the loop ÷ {steps} plain steps")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Step caches on the sample, {steps} steps: nearness to the uncached picture")
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


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
