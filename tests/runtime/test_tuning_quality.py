"""PSNR and SSIM against their definitions, written a second time with loops in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vitrify.engine.errors import SpecError
from vitrify.runtime.tuning.quality import Quality, compare, psnr, union_box

Array = Any


def looped(a: Array, b: Array) -> tuple[float, float]:
    """a, b: [height, width, 3] from 0 to 1."""
    height, width, _ = a.shape
    marked = [(r, c) for r in range(height) for c in range(width) if min(*a[r, c], *b[r, c]) < 0.98]
    box = [0, height, 0, width]
    if marked:
        rows, columns = [r for r, _ in marked], [c for _, c in marked]
        box = [min(rows), max(rows) + 1, min(columns), max(columns) + 1]
    for low, high, size in ((0, 1, height), (2, 3, width)):
        while box[high] - box[low] < 11:
            box[low], box[high] = max(0, box[low] - 1), min(size, box[high] + 1)

    def gray(p: Array, r: int, c: int) -> float:
        red, green, blue = (float(v) for v in p[r, c])
        return 0.299 * red + 0.587 * green + 0.114 * blue

    x = [[gray(a, r, c) for c in range(box[2], box[3])] for r in range(box[0], box[1])]
    y = [[gray(b, r, c) for c in range(box[2], box[3])] for r in range(box[0], box[1])]
    high, wide = len(x), len(x[0])
    squares = [(x[r][c] - y[r][c]) ** 2 for r in range(high) for c in range(wide)]
    mse = sum(squares) / len(squares)
    weight = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weight))
    found = []
    for r in range(high - 10):
        for c in range(wide - 10):
            cells = [(weight[i][j] / total, x[r + i][c + j], y[r + i][c + j]) for i in range(11) for j in range(11)]
            mx, my = sum(w * p for w, p, _ in cells), sum(w * q for w, _, q in cells)
            vx, vy = sum(w * (p - mx) ** 2 for w, p, _ in cells), sum(w * (q - my) ** 2 for w, _, q in cells)
            cov = sum(w * (p - mx) * (q - my) for w, p, q in cells)
            found.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4)))
    return (60.0 if mse == 0 else min(60.0, -10 * math.log10(mse))), sum(found) / len(found)


def picture(seed: int, shape: tuple[int, int], box: tuple[slice, slice], noise: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    result = np.ones((*shape, 3))
    result[box] = rng.uniform(0, 0.97, (*result[box].shape,))
    return np.clip(result + noise * np.random.default_rng(seed + 99).standard_normal(result.shape) * (result < 1), 0, 1)


CASES = {
    "content in the middle": ((20, 24), (slice(3, 17), slice(5, 20))),
    "whole picture": ((13, 16), (slice(0, 13), slice(0, 16))),
    "a dot is widened to a window": ((20, 20), (slice(9, 10), slice(4, 5))),
    "a dot in a corner": ((16, 15), (slice(15, 16), slice(0, 1))),
    "nothing but white": ((12, 14), (slice(0, 0), slice(0, 0))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.1])
def test_against_loops(name: str, noise: float) -> None:
    shape, box = CASES[name]
    a, b = picture(1, shape, box), picture(1, shape, box, noise)
    assert compare(b, a) == pytest.approx(looped(b, a), rel=1e-9, abs=1e-9)


def test_boxes_of_both_count() -> None:
    a, b = (picture(seed, (30, 28), box) for seed, box in ((1, (slice(2, 8), slice(3, 9))), (2, (slice(10, 25), slice(6, 20)))))
    assert union_box(a, b) == (slice(2, 25), slice(3, 20))
    assert compare(a, b) == pytest.approx(looped(a, b), rel=1e-9)


def test_integers_are_shares_of_255() -> None:
    a, b = ((picture(s, (14, 14), (slice(0, 14), slice(0, 14))) * 255).round().astype(np.uint8) for s in (1, 2))
    assert compare(a, b) == pytest.approx(looped(a / 255, b / 255), rel=1e-9)


def test_equal_pictures_are_best_and_psnr_is_capped() -> None:
    a = picture(3, (16, 16), (slice(2, 14), slice(2, 14)))
    assert compare(a, a) == pytest.approx((60.0, 1.0))
    nearly = np.clip(a + 1e-5, 0, 1)
    assert compare(nearly, a)[0] == 60.0
    assert compare(a * 0.5, a)[1] < 0.9


def test_mean_and_percentile() -> None:
    quality = Quality(np.arange(21.0), np.linspace(0, 1, 21))
    assert quality.mean("psnr") == 10
    assert quality.low("psnr") == 1  # the second of 21
    assert Quality(np.array([1.0, 3.0]), np.array([0.5, 0.7])).low("ssim") == pytest.approx(0.51)
    joined = Quality.joined([quality, Quality(np.array([50.0]), np.array([1.0]))])
    assert joined.mean("psnr") == pytest.approx(260 / 22)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(SpecError, match="are not pairs of pictures"):
        Quality.of(np.ones((2, 16, 16, 3)), np.ones((1, 16, 16, 3)))
    with pytest.raises(SpecError, match="smaller than SSIM's window of 11 × 11"):
        compare(np.ones((8, 16, 3)), np.ones((8, 16, 3)))
    whole, broken = np.ones((16, 16, 3)), np.ones((16, 16, 3))
    broken[3, 3, 1], broken[4, 4] = np.nan, np.inf
    for pair, what in (((broken, whole), "picture"), ((whole, broken), "reference")):
        with pytest.raises(SpecError, match=f"the {what} has 4 values that are NaN or infinite"):
            compare(*pair)
    assert math.isnan(psnr(broken, whole))
    with pytest.raises(SpecError, match="metric 'mse' is unknown; known: psnr, ssim"):
        Quality(np.ones(1), np.ones(1)).mean("mse")
