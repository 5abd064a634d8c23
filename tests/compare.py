"""The one comparison of arrays in the tests, with a message that names the worst element."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["assert_close", "relative_error"]


def relative_error(actual: ArrayLike, expected: ArrayLike) -> float:
    """‖a − b‖₂ / ‖b‖₂ in float64; 0 for two empty or two zero arrays, inf if b alone is zero."""
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    difference, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    if difference == 0:
        return 0.0
    return difference / size if size else float("inf")


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float, what: str = "result") -> None:
    """‖a − b‖₂ ≤ tolerance · ‖b‖₂, max |a − b| ≤ 20 · tolerance · rms(b), equal shapes, nothing but finite numbers."""
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape, f"{what}: got shape {a.shape}, expected {b.shape}"
    if not b.size:
        return
    for name, array in (("result", a), ("reference", b)):
        bad = np.argwhere(~np.isfinite(array))
        assert not len(bad), f"{what}: {len(bad)} elements of the {name} are not finite, the first at {tuple(map(int, bad[0]))}"
    error = relative_error(a, b)
    distance = np.abs(a - b)
    worst = np.unravel_index(int(distance.argmax()), a.shape)
    largest, allowed = float(distance[worst]), 20 * tolerance * float(np.sqrt(np.mean(b * b)))
    where = f"worst at {tuple(map(int, worst))}: got {a[worst]!r}, expected {b[worst]!r}"
    assert error <= tolerance, f"{what}: relative error {error:.3g} is above {tolerance:g}; {where}"
    assert largest <= allowed, f"{what}: |a − b| reaches {largest:.3g}, above 20 · {tolerance:g} · rms = {allowed:.3g}; {where}"
