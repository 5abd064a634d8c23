"""MagCache's table: how the magnitude of what the blocks add moves from step to step (Ma et al. 2025, arXiv 2506.09045)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact.presets import Calibration
from vitrify.runtime.guidance import Lane
from vitrify.runtime.tuning.requests import Requests

__all__ = ["calibrate"]

_EPSILON = 1e-8  # as diffusers


def calibrate(requests: Requests, progress: Callable[[int], None] = lambda _: None) -> Calibration:
    """γ_t = mean of ‖T_t‖ / (‖T_{t−1}‖ + 1e-8) over image tokens, rows and requests; γ_0 = 1.

    T: [rows, image_tokens, D], what all blocks add to the image's states in an uncached step; norms over D.
    progress: called with the number of requests done.
    """
    ratios = np.zeros(requests.steps)
    weights = np.zeros(requests.steps)
    for index in range(len(requests)):
        before: dict[tuple[int, ...], npt.NDArray[Any]] = {}

        def observe(step: int, lane: Lane, before: dict[tuple[int, ...], npt.NDArray[Any]] = before) -> None:
            hidden = lane.plan.hidden
            norms = np.linalg.norm(np.subtract(hidden.last, hidden.embedded, dtype=np.float32), axis=-1).astype(np.float64)
            if lane.branches in before:
                ratios[step] += (norms / (before[lane.branches] + _EPSILON)).sum()
                weights[step] += norms.size
            before[lane.branches] = norms

        requests.pipe.denoise(requests.prepared(index), observe=observe)
        progress(index + 1)
    return Calibration((1.0, *(ratios[1:] / weights[1:]).tolist()), len(requests))
