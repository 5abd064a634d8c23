"""How near one picture is to another: PSNR and SSIM of luma, where either picture has something to show.

SSIM: Wang et al. 2004, with its Gaussian window of 11 × 11, σ 1.5, K₁ 0.01, K₂ 0.03.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.errors import SpecError

__all__ = ["METRICS", "PSNR_CAP", "WINDOW", "Quality", "compare", "luma", "psnr", "ssim", "union_box"]

Array = npt.NDArray[Any]

METRICS = ("psnr", "ssim")
PSNR_CAP = 60.0
"""dB; equal pictures have it too."""
WINDOW = 11
"""Pixels of SSIM's window along a side; a box is widened to so many."""
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_WHITE = 0.98
"""A pixel with all channels from here on is background."""
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_LOW_PERCENTILE = 5


@dataclass(frozen=True)
class Quality:
    """Of several pairs of pictures, one value a pair. psnr: dB. ssim: at most 1."""

    psnr: Array
    ssim: Array

    @staticmethod
    def of(pictures: Array, references: Array) -> Quality:
        """Compare row by row. pictures, references: [rows, height, width, 3], float from 0 to 1 or uint8."""
        if pictures.shape != references.shape or len(pictures) == 0:
            raise SpecError(f"pictures {list(pictures.shape)} and references {list(references.shape)} are not pairs of pictures")
        pairs = [compare(a, b) for a, b in zip(pictures, references, strict=True)]
        return Quality(np.array([p for p, _ in pairs]), np.array([s for _, s in pairs]))

    @staticmethod
    def joined(parts: Sequence[Quality]) -> Quality:
        """All pairs of several."""
        return Quality(np.concatenate([p.psnr for p in parts]), np.concatenate([p.ssim for p in parts]))

    def values(self, metric: str) -> Array:
        """One value a pair. metric: "psnr" or "ssim"."""
        if metric not in METRICS:
            raise SpecError(f"metric {metric!r} is unknown; known: {', '.join(METRICS)}")
        return self.psnr if metric == "psnr" else self.ssim

    def mean(self, metric: str) -> float:
        """Over the pairs."""
        return float(np.mean(self.values(metric)))

    def low(self, metric: str) -> float:
        """The 5th percentile over the pairs, interpolated linearly."""
        return float(np.percentile(self.values(metric), _LOW_PERCENTILE))

    def worst(self, metric: str) -> float:
        """The least of the pairs."""
        return float(np.min(self.values(metric)))


def compare(picture: Array, reference: Array) -> tuple[float, float]:
    """(PSNR, SSIM) of two pictures [height, width, 3], float from 0 to 1 or uint8, inside the union of their contents' boxes.

    Raises SpecError for a picture with values that are NaN or infinite, and for one smaller than SSIM's window.
    """
    for what, pixels in (("picture", picture), ("reference", reference)):
        if not np.isfinite(pixels).all():
            raise SpecError(
                f"the {what} has {int((~np.isfinite(pixels)).sum())} values that are NaN or infinite; nothing is near it"
            )
    a, b = (np.asarray(p, np.float64) / (255 if p.dtype == np.uint8 else 1) for p in (picture, reference))
    rows, columns = union_box(a, b)
    x, y = luma(a)[rows, columns], luma(b)[rows, columns]
    return psnr(x, y), ssim(x, y)


def luma(picture: Array) -> Array:
    """[..., 3] R'G'B' → [...]."""
    weighted: Array = picture @ _LUMA
    return weighted


def union_box(a: Array, b: Array) -> tuple[slice, slice]:
    """(rows, columns) of the smallest box that holds what is not white in either picture; all, where both are white.

    a, b: [height, width, 3] from 0 to 1. Widened to the window of SSIM, where the picture allows it.
    """
    content: Array = np.minimum(a, b).min(axis=-1) < _WHITE
    return _span(np.any(content, axis=1)), _span(np.any(content, axis=0))


def _span(content: Array) -> slice:
    at, size = np.flatnonzero(content), len(content)
    if not len(at):
        return slice(0, size)
    start, stop = int(at[0]), int(at[-1]) + 1
    while stop - start < min(WINDOW, size):
        start, stop = max(0, start - 1), min(size, stop + 1)
    return slice(start, stop)


def psnr(x: Array, y: Array) -> float:
    """dB of peak 1, at most PSNR_CAP."""
    error = float(np.mean((x - y) ** 2))
    # In this order NaN stays NaN, which keeps no bound.
    return PSNR_CAP if error == 0 else min(-10 * float(np.log10(error)), PSNR_CAP)


def ssim(x: Array, y: Array) -> float:
    """The mean over all whole windows. x, y: [height, width] from 0 to 1. Raises SpecError for less than a window."""
    if min(x.shape) < WINDOW:
        raise SpecError(f"a picture of {list(x.shape)} is smaller than SSIM's window of {WINDOW} × {WINDOW}")
    mean_x, mean_y = _filtered(x), _filtered(y)
    variance_x = _filtered(x * x) - mean_x**2
    variance_y = _filtered(y * y) - mean_y**2
    covariance = _filtered(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return float(np.mean(luminance * structure))


def _filtered(x: Array) -> Array:
    """Gaussian mean of each whole window, one axis after the other."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    windows = np.lib.stride_tricks.sliding_window_view
    down = windows(x, WINDOW, axis=0) @ weights
    across: Array = windows(down, WINDOW, axis=1) @ weights
    return across
