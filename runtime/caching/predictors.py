"""What stands in for a skipped step: the last value, or a polynomial through the last values.

Newton's divided differences over computed steps s₀ > s₁ > s₂, with δ = s − s₀:
p(s) = y₀ + y[0,1]·δ + y[0,1,2]·δ·(δ + s₀ − s₁). Order n acts once n + 1 steps were computed.

Corrected: with the next computed step k the polynomial of order a gets the term y[k,0..a]·Π(s − s_i), i = 0..a, where
y[k,0..a] = (y[k,0..a−1] − y[0..a]) / (k − s_a). Its sum over the skipped steps, each times its Δσ, is what the latents lack.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_policy import Taylor
from vitrify.engine.errors import SpecError
from vitrify.runtime.caching import compat
from vitrify.runtime.caching.state import DenoisingCacheState, allocate

__all__ = ["add_predicted", "landing", "miss", "predict", "record"]

Array = npt.NDArray[Any]

_BLOCK = 65_536
"""Values extrapolated at a time, so that what several operations read and write of them stays in a core's cache."""


def landing(state: DenoisingCacheState) -> Array:
    """Where the next value may be written, so that `record` need not copy it. It does not outlive the step."""
    buffer = state.held if state.held is not None else state.spare
    if buffer is None:
        raise SpecError("this cache state has no buffers; it comes from create_cache_state and serves one request")
    return buffer


def record(state: DenoisingCacheState, value: Array) -> Array:
    """Take what a computed step gave, and return what it gives on: the same, or corrected, then read-only memory of the cache.

    value: [B, S, width] of what the predictor holds. Raises SpecError for another shape.
    """
    if state.held is None and not state.factors:
        allocate(state, value.shape)
    state.progress.recorded = True
    into = landing(state)
    if value.shape != into.shape:
        raise SpecError(f"the {state.of} to be held has shape {list(value.shape)}, expected {list(into.shape)}")
    if state.policy is None or not isinstance(state.policy.predictor, Taylor):
        if value is not into:
            np.copyto(into, value, casting="same_kind")
        return value
    if state.policy.compat == "max":
        compat.update(state, value)
    elif state.corrected is not None and state.progress.missed:
        value = _corrected(state, value, state.corrected)
    else:
        _difference(state, value)
    state.taylor_last_compute_step = state.progress.step
    return value


def predict(state: DenoisingCacheState) -> Array:
    """What stands in for the running step, read-only: it is the cache's own memory, valid until the next step."""
    if state.policy is None or not isinstance(state.policy.predictor, Taylor):
        prediction = landing(state).view()
    elif state.policy.compat == "max":
        prediction = compat.predict(state).view()
    else:
        prediction = _extrapolated(state).view()
    prediction.flags.writeable = False
    return prediction


def add_predicted(state: DenoisingCacheState, base: Array, out: Array) -> None:
    """out = base + what `predict` gives, to the last bit, without writing that down: memory is what a skipped step waits for.

    base, out: [B, S, width] float32, like what the predictor holds, and not the same memory.
    """
    if state.policy is None or not isinstance(state.policy.predictor, Taylor) or state.policy.compat == "max":
        np.add(base, predict(state), out=out)
    else:
        _extrapolated(state, base, out)


def miss(state: DenoisingCacheState, step: int) -> None:
    """Count the skipped `step` in what the next computed one is to correct."""
    progress = state.progress
    if state.corrected is not None and state.sigmas is not None:
        known = progress.positions[: len(state.factors)]
        progress.missed += (state.sigmas[step + 1] - state.sigmas[step]) * math.prod(progress.position - p for p in known)


def _corrected(state: DenoisingCacheState, value: Array, out: Array) -> Array:
    """Take `value`, and add what the skipped steps before it missed over this step's Δσ. In `out`, read-only."""
    progress, sigmas, step = state.progress, state.sigmas, state.progress.step
    if sigmas is None or step is None:
        raise SpecError("Taylor.corrected: the cache state lost its sigmas; set them before the first step and leave them")
    order = min(len(progress.positions), len(state.factors)) - 1
    scale = progress.missed / (progress.position - progress.positions[order]) / (sigmas[step + 1] - sigmas[step])
    np.copyto(out, state.factors[order])
    _difference(state, value)
    np.subtract(state.factors[order], out, out=out)
    out *= np.float32(scale)
    out += state.factors[0]
    result = out.view()
    result.flags.writeable = False
    return result


def _difference(state: DenoisingCacheState, value: Array) -> None:
    """Move the divided differences on to a new value, in place."""
    factors, progress = state.factors, state.progress
    known = min(len(progress.positions), len(factors) - 1)
    if known > 1:
        np.negative(factors[1], out=factors[2])
    if known:
        np.subtract(value, factors[0], out=factors[1])
        factors[1] /= progress.position - progress.positions[0]
    if known > 1:
        factors[2] += factors[1]
        factors[2] /= progress.position - progress.positions[1]
    if value is state.spare:
        factors[0], state.spare = state.spare, factors[0]
    else:
        np.copyto(factors[0], value, casting="same_kind")


def _extrapolated(state: DenoisingCacheState, base: Array | None = None, into: Array | None = None) -> Array:
    """The polynomial, in `into` or where the next value may be written; on top of `base` where there is one."""
    factors, positions = state.factors, state.progress.positions
    out = landing(state) if into is None else into
    order = min(len(positions), len(factors)) - 1
    if order < 1:
        return factors[0] if base is None else np.add(base, factors[0], out=out)
    ahead = state.progress.position - positions[0]
    flat = [array.reshape(-1) for array in (out, *factors[: order + 1], *([] if base is None else [base]))]
    for start in range(0, out.size, _BLOCK):
        block, *terms = (array[start : start + _BLOCK] for array in flat)
        if order == 1:
            np.multiply(terms[1], np.float32(ahead), out=block)
        else:
            np.multiply(terms[2], np.float32(ahead + positions[0] - positions[1]), out=block)
            block += terms[1]
            block *= np.float32(ahead)
        block += terms[0]
        if base is not None:
            block += terms[-1]
    return out
