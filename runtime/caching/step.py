"""One denoising step: decided, then computed or predicted, then remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_policy import Cache
from vitrify.engine.errors import SpecError
from vitrify.runtime.caching.decisions import check_policy, decide, difference_of_batch, differences, row_sums
from vitrify.runtime.caching.predictors import miss, predict, record
from vitrify.runtime.caching.state import DenoisingCacheState, StepRecord, allocate

__all__ = ["StepHooks", "denoising_step", "probed"]

Array = npt.NDArray[Any]


class StepHooks(Protocol):
    """What a step calls of its pipeline."""

    @property
    def cache(self) -> Cache | None: ...
    def run_transformer(self, cache_state: DenoisingCacheState, **kwargs: Any) -> tuple[Array, ...]: ...
    def run_skipped(self, cache_state: DenoisingCacheState, **kwargs: Any) -> Array: ...


def denoising_step(hooks: StepHooks, step: int, state: DenoisingCacheState, kwargs: Mapping[str, Any]) -> Array:
    """noise_pred of `step`. An error releases the state's buffers: what they hold is then of no step.

    Raises SpecError for a state that does not fit, and for a hook that returns another form, shape or dtype than documented.
    """
    started = time.perf_counter()
    _begin(hooks, step, state)
    try:
        compute = decide(state, step)
        state.progress.forced = compute is True
        if compute is False:
            state.computed = False
            noise_pred = hooks.run_skipped(state, **kwargs) if state.of == "residual" else predict(state)
            _check(noise_pred, "noise_pred", None, state, f"{type(hooks).__name__}.run_skipped")
        else:
            noise_pred = _transformed(hooks, state, kwargs)
        _remember(state, step, time.perf_counter() - started)
    except BaseException:
        state.release()
        raise
    return noise_pred


def probed(
    state: DenoisingCacheState,
    residual: Array,
    compute: Callable[[], Array],
    finish: Callable[[Array], Array] | None,
    threshold: float,
    *,
    finish_predicted: Callable[[], Array] | None = None,
    sums: Array | None = None,
) -> tuple[Array, Array]:
    """The first-block decision inside `run_transformer`: (reference, noise_pred).

    residual: [B, S, D], block 0's output − input. compute: gives the remaining blocks' residual with `finish`, else noise_pred.
    finish: remaining residual → noise_pred. finish_predicted: the same of a skipped step, where it adds the prediction itself.
    sums: Σ|r − r_ref| and Σ|r_ref| of each row, [B, 2], where a graph has measured them.
    Raises SpecError for a state or predictor that this call does not fit.
    """
    policy = state.policy
    if policy is None or not policy.probes:
        raise SpecError("first_block was called, but the cache that is on does not decide by the first block")
    reference = state.prev_residual
    if reference is None:
        raise SpecError("first_block: cache_state has no prev_residual; it comes from create_cache_state")
    _check(residual, "residual", reference, state, "first_block")
    if state.of is None:
        state.of = "residual" if finish is not None else "output"
        if state.of == "output" and state.prev_output is not None:
            allocate(state, state.prev_output.shape)
    if state.of == "residual" and finish is None:
        raise SpecError("first_block was called without finish, so a residual cannot stand in; pass finish, or hold the output")
    _measure(state, residual, reference, sums, threshold)
    if state.computed:
        value = compute()
        if finish is None:
            return residual, value
        if state.of == "residual":
            _check(value, "the remaining blocks' residual", None, state, "first_block's compute")
            record(state, value)
        return residual, finish(value)
    if finish is None or state.of != "residual":
        noise_pred = predict(state)
    else:
        noise_pred = finish(predict(state)) if finish_predicted is None else finish_predicted()
    return (residual if policy.compat == "max" else reference), noise_pred


def _measure(state: DenoisingCacheState, residual: Array, reference: Array, sums: Array | None, threshold: float) -> None:
    """Set `state.computed`: a lane skips only if every row would."""
    progress, compat = state.progress, state.policy is not None and state.policy.compat == "max"
    if compat or not progress.forced:
        sums = row_sums(residual, reference) if sums is None else sums
        progress.differences = (difference_of_batch(sums, residual.size),) if compat else differences(sums)
    state.computed = progress.forced or not all(d < threshold for d in progress.differences or ())


def _begin(hooks: StepHooks, step: int, state: DenoisingCacheState) -> None:
    policy, progress = state.policy, state.progress
    state.computed = None
    if policy is None and not state.uncached and hooks.cache is not None and hooks.cache.enabled:
        raise SpecError(f"a cache is on ({hooks.cache}), but cache_state was not made by create_cache_state; make it there")
    if progress.ended:
        raise SpecError("this cache state ended with an error; make a fresh one with create_cache_state")
    if policy is not None:
        if progress.log and step <= progress.log[-1].step:
            raise SpecError(
                f"step {step} follows step {progress.log[-1].step}: a cache state serves one request; make a fresh one"
            )
        if not progress.log:
            check_policy(policy, state.num_inference_steps, state.sigmas)
        if state.num_inference_steps is not None and step >= state.num_inference_steps:
            raise SpecError(f"step {step} is outside the request's {state.num_inference_steps} steps")
    progress.step, progress.recorded, progress.differences = step, False, None
    sigmas = state.sigmas if policy is not None and policy.along_sigma else None
    progress.position = step if sigmas is None else float(sigmas[step])


def _transformed(hooks: StepHooks, state: DenoisingCacheState, kwargs: Mapping[str, Any]) -> Array:
    """Run the transformer, check what it gives, and keep it."""
    policy, name = state.policy, f"{type(hooks).__name__}.run_transformer"
    outputs: Any = hooks.run_transformer(state, **kwargs)
    probes = policy is not None and policy.probes
    expected = "(new_residual, noise_pred): first-block caching is on" if probes else "(noise_pred,): first-block caching is off"
    if not isinstance(outputs, tuple) or len(outputs) != 1 + probes:
        got = f"a tuple of {len(outputs)}" if isinstance(outputs, tuple) else type(outputs).__name__
        raise SpecError(f"{name} returned {got}, expected {expected}")
    noise_pred: Array = outputs[-1]
    if policy is None:
        state.computed = True
        return noise_pred
    _check(noise_pred, "noise_pred", _like_output(state), state, name)
    if probes:
        if state.computed is None:
            raise SpecError(f"{name} did not call self.first_block(cache_state, residual, compute), which decides this step")
        _check(outputs[0], "new_residual", state.prev_residual, state, name)
        _keep_reference(state, outputs[0])
    else:
        state.computed = True
    given = noise_pred
    if state.computed:
        if state.of == "output":
            given = record(state, noise_pred)
        elif not state.progress.recorded:
            raise SpecError(
                f"{name} computed a step but did not call self.keep_residual(cache_state, residual), whose value is held"
            )
    if state.prev_output is not None and state.prev_output is not state.held and state.computed:
        np.copyto(state.prev_output, noise_pred)
    return given


def _keep_reference(state: DenoisingCacheState, residual: Array) -> None:
    """What is unchanged stays; a buffer of our own is swapped in; memory of others is copied."""
    if state.prev_residual is None or residual is state.prev_residual:
        return
    if residual is state.candidate:
        state.prev_residual, state.candidate = state.candidate, state.prev_residual
    else:
        np.copyto(state.prev_residual, residual)


def _remember(state: DenoisingCacheState, step: int, seconds: float) -> None:
    progress = state.progress
    if state.policy is None:
        return
    if state.computed:
        progress.positions = [progress.position, *progress.positions[:2]]
        progress.skips_in_a_row = 0
        progress.missed = 0.0
    else:
        miss(state, step)
        progress.skips_in_a_row += 1
        progress.skips += 1
    progress.log.append(StepRecord(step, bool(state.computed), progress.differences, seconds))


def _like_output(state: DenoisingCacheState) -> Array | None:
    if state.prev_output is not None:
        return state.prev_output
    return state.factors[0] if state.of == "output" and state.factors else None


def _check(value: Any, what: str, like: Array | None, state: DenoisingCacheState, source: str) -> None:
    """value: of the activation's dtype (a prediction may be float32) and, where there is one, of the buffer's shape."""
    shape = "[B, S, width]" if like is None else str(list(like.shape))
    allowed = {state.dtype} if state.computed is not False else {state.dtype, np.dtype(np.float32)}
    if not isinstance(value, np.ndarray):
        raise SpecError(f"{source}: {what} is a {type(value).__name__}, expected a numpy array {shape} {state.dtype}")
    if value.dtype not in allowed or (like is not None and value.shape != like.shape):
        raise SpecError(f"{source}: {what} is {value.dtype}{list(value.shape)}, expected {state.dtype}{shape}")
