"""`torch.randn` on the CPU, drawn in numpy: the same seed gives a diffusers user the same picture.

The stream is torch's own (aten/src/ATen/core/MT19937RNGEngine.h, DistributionTemplates.h, DistributionsHelper.h):
MT19937 with Knuth's seeding by the seed's low 32 bits, and two ways from bits to normals:

- 16 elements or more: one 24-bit uniform per element; Box-Muller within blocks of 16 (the first eight give the
  radius, the last eight the angle, cosines go to the first eight places, sines to the last). A ragged tail is
  covered by drawing the last 16 elements once more.
- fewer: Box-Muller in double precision from 53-bit uniforms, two values per pair; the second of a pair waits in
  the generator for the next small draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrify.engine.errors import RequestError

__all__ = ["Generator", "normal"]

_BLOCK = 16
_HALF = _BLOCK // 2
_SEED_MIN, _SEED_MAX = -(2**63), 2**64 - 1


def normal(shape: int | Sequence[int], seed: int) -> NDArray[np.float32]:
    """Standard normal float32 values of `shape`, within 1e-6 of `torch.randn(shape, generator=manual_seed(seed))`.

    seed: -2**63 .. 2**64 - 1, as `torch.Generator.manual_seed` takes; only its low 32 bits matter, as in torch.
    Raises RequestError for any other seed and for a negative extent.
    """
    return Generator(seed).normal(shape)


class Generator:
    """One stream of normals: consecutive draws equal those of one `torch.Generator("cpu").manual_seed(seed)`.

    State: the engine's position, and the second half of a small draw's last pair. Not for two threads at once.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        self._bits.state = np.random.RandomState(_checked(seed) & 0xFFFFFFFF).get_state(legacy=False)  # type: ignore[assignment]
        self._waiting: float | None = None

    def normal(self, shape: int | Sequence[int]) -> NDArray[np.float32]:
        """The next float32 normals of the stream, as a new array of `shape`. Raises RequestError for a negative extent."""
        extents = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        if any(n < 0 for n in extents):
            raise RequestError(f"shape: got {extents}, expected extents >= 0")
        size = math.prod(extents)
        values = self._blocks(size) if size >= _BLOCK else self._pairs(size)
        return values.reshape(extents)

    def _blocks(self, size: int) -> NDArray[np.float32]:
        values = self._uniform24(size)
        whole = size - size % _BLOCK
        _box_muller(values[:whole].reshape(-1, _BLOCK))
        if whole != size:
            values[-_BLOCK:] = self._uniform24(_BLOCK)
            _box_muller(values[-_BLOCK:].reshape(1, _BLOCK))
        return values

    def _pairs(self, size: int) -> NDArray[np.float32]:
        values: list[float] = []
        while len(values) < size:
            if self._waiting is not None:
                values.append(self._waiting)
                self._waiting = None
                continue
            angle, depth = 2.0 * math.pi * self._uniform53(), self._uniform53()
            radius = math.sqrt(-2.0 * math.log1p(-depth))
            values.append(radius * math.cos(angle))
            self._waiting = radius * math.sin(angle)
        return np.array(values, dtype=np.float32)

    def _uniform24(self, size: int) -> NDArray[np.float32]:
        raw = self._bits.random_raw(size).astype(np.uint32)
        return (raw & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)

    def _uniform53(self) -> float:
        high, low = (int(word) for word in self._bits.random_raw(2))
        return float(((high << 32 | low) & (2**53 - 1)) * 2.0**-53)


def _checked(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not _SEED_MIN <= seed <= _SEED_MAX:
        raise RequestError(f"seed: got {seed!r}, expected a whole number from -2**63 to 2**64 - 1")
    return int(seed)


def _box_muller(blocks: NDArray[np.float32]) -> None:
    """Uniforms → normals in place. blocks: [n, 16] float32.

    The angle is rounded to float32 as torch's kernel rounds it: six radii times that rounding would exceed 1e-6.
    """
    depth = np.float64(1.0) - blocks[:, :_HALF].astype(np.float64)
    angle = (blocks[:, _HALF:] * np.float32(2.0 * math.pi)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log(depth))
    blocks[:, :_HALF] = radius * np.cos(angle)
    blocks[:, _HALF:] = radius * np.sin(angle)
