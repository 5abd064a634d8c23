"""The measure of every comparison: relative error, and the worst element beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrify.engine.errors import ParityError
from vitrify.engine.session import Array

__all__ = ["BLOCK_TOLERANCE", "COMPONENT_TOLERANCE", "ROUNDED_TOLERANCES", "Difference", "difference", "rounded_up"]

BLOCK_TOLERANCE = 1e-5
COMPONENT_TOLERANCE = 1e-4
ROUNDED_TOLERANCES = (1e-2, 4e-2)
"""Of a block, and of a component without blocks, in bf16 or int8, against eager PyTorch that rounds alike."""
_WORST_FACTOR = 20.0


@dataclass(frozen=True)
class Difference:
    """relative: ‖a − b‖₂ / ‖b‖₂. worst: max |a − b| / rms(b), or a channel's rms (see `difference`)."""

    relative: float
    worst: float

    def check(self, tolerance: float, what: str) -> None:
        """Raises ParityError unless relative ≤ tolerance and worst ≤ 20 × tolerance; NaN never passes."""
        if not (self.relative <= tolerance and self.worst <= _WORST_FACTOR * tolerance):
            raise ParityError(
                f"{what} differs from eager PyTorch: relative error {self.relative:.2e} (allowed {tolerance:.0e}), "
                f"worst element {self.worst:.2e} of the rms (allowed {_WORST_FACTOR * tolerance:.0e}); nothing was written. "
                "Please report it with the source's configs"
            )

    def __or__(self, other: Difference) -> Difference:
        """The larger of both, each for itself."""
        return Difference(max(self.relative, other.relative), max(self.worst, other.worst))


def difference(a: Array, b: Array, *, rounded: bool = False) -> Difference:
    """How far `a` is from the reference `b`, in float64. A shape that differs or a NaN anywhere is infinitely far.

    rounded: both round inside, to bf16 or int8. A rounding that falls to the other side moves an element by a quantum of x times
    its weight, which is as large as its channel, the last dimension, is: an element is then held against the larger of the
    whole's rms and its channel's, for of weights with outlier channels no other bound holds.
    """
    if a.shape != b.shape:
        return Difference(math.inf, math.inf)
    reference = b.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity − infinity
        delta = a.astype(np.float64) - reference
    if not np.isfinite(delta).all():
        return Difference(math.inf, math.inf)
    norm = float(np.linalg.norm(reference))
    scale = norm if norm > 0 else 1.0
    rms: float | Array = scale / math.sqrt(max(reference.size, 1))
    if rounded and reference.ndim > 1 and reference.size:
        rms = np.maximum(rms, np.sqrt(np.mean(reference * reference, axis=tuple(range(reference.ndim - 1)))))
    return Difference(float(np.linalg.norm(delta)) / scale, float((np.abs(delta) / rms).max(initial=0.0)))


def rounded_up(value: float, steps: Sequence[float] = (1, 2, 5)) -> float:
    """`value` rounded up to one of `steps` × 10ⁿ, so that an artifact's bytes do not hang on the last bit of a measurement."""
    if value <= 0:
        return 0.0
    exponent = math.floor(math.log10(value))
    for candidate in (*steps, 10):
        stepped = float(f"{candidate}e{exponent}")
        if value <= stepped:
            return stepped
    return float(f"2e{exponent + 1}")
