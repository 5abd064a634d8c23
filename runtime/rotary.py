"""Rotary position tables, computed once per request.

Source: Su et al. 2021, RoFormer; one set of frequencies per axis, each value twice, as diffusers' FluxPosEmbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["raster_ids", "rotary_table"]


def rotary_table(ids: npt.NDArray[Any], axes_dims: Sequence[int], theta: float) -> npt.NDArray[np.float32]:
    """Cosines beside sines, [tokens, 2 · sum(axes_dims)] float32, worked out in float64.

    ids: [tokens, len(axes_dims)], a token's position on each axis. axes_dims: rotated dimensions of each axis, even.
    """
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequencies = 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
        angles.append(np.repeat(np.outer(ids[:, axis].astype(np.float64), frequencies), 2, axis=1))
    angle = np.concatenate(angles, axis=1)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def raster_ids(rows: int, columns: int, axes: int) -> npt.NDArray[np.float32]:
    """Positions of an image's tokens, row by row: [rows · columns, axes] float32 with 0 … 0, row, column."""
    ids = np.zeros((rows, columns, axes), np.float32)
    ids[..., -2] = np.arange(rows)[:, None]
    ids[..., -1] = np.arange(columns)[None, :]
    return ids.reshape(rows * columns, axes)
