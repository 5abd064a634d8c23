"""Taylor factors as Modular MAX 26.7 has them, for comparison: recursive differences that start from zeros.

d = delta + 1e-9; f0' = y; f1' = (y − f0) / d; f2' = ((f1' − f1) / d) · [order ≥ 2]; a prediction is f0 + f1·o + f2·o²/2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_policy import Taylor
from vitrify.runtime.caching.state import DenoisingCacheState

__all__ = ["predict", "update"]

Array = npt.NDArray[Any]

_EPSILON = 1e-9
_SECOND = 2


def update(state: DenoisingCacheState, value: Array) -> None:
    """Move the three factors on to a new value, in place."""
    assert state.policy is not None
    assert isinstance(state.policy.predictor, Taylor)
    f0, f1, f2 = state.factors
    spacing = np.float32(_delta(state) + _EPSILON)
    np.negative(f1, out=f2)
    np.subtract(value, f0, out=f1)
    f1 /= spacing
    f2 += f1
    f2 /= spacing
    f2 *= np.float32(state.policy.predictor.order >= _SECOND)
    np.copyto(f0, value, casting="same_kind")


def predict(state: DenoisingCacheState) -> Array:
    """The prediction for the running step, in the spare buffer."""
    f0, f1, f2 = state.factors
    out = state.spare
    assert out is not None
    ahead = np.float32(_delta(state))
    np.multiply(f2, ahead / 2, out=out)
    out += f1
    out *= ahead
    out += f0
    return out


def _delta(state: DenoisingCacheState) -> int:
    """Steps since the last computed one; 1 when there is none."""
    if state.taylor_last_compute_step is None or state.progress.step is None:
        return 1
    return state.progress.step - state.taylor_last_compute_step
