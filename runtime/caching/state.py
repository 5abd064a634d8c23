"""What a step cache remembers between the steps of one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_policy import Cache, FirstBlock, Hold
from vitrify.engine.errors import SpecError

__all__ = ["DenoisingCacheState", "Progress", "StepRecord", "allocate", "documented_state", "lane_state"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StepRecord:
    """One step as it went. differences: the probe's, one a row, None if nothing was measured. seconds: of the whole step."""

    step: int
    computed: bool
    differences: tuple[float, ...] | None
    seconds: float


@dataclass
class Progress:
    """Where a lane stands.

    step, position: the running step, and where it lies on the predictor's axis. forced: it is computed whatever a probe says.
    recorded: its value has been taken. differences: what its probe measured.
    positions: of the last computed steps, newest first. skips_in_a_row, skips: so far.
    ratio, error: MagCache's running product and sum.
    missed: Σ over the skips since the last computed step of Δσ · Π (position − its polynomial's positions).
    ended: a step failed, and the state cannot run another. log: a record of each step under a policy, in their order.
    """

    step: int | None = None
    position: float = 0.0
    forced: bool = True
    recorded: bool = False
    differences: tuple[float, ...] | None = None
    positions: list[float] = field(default_factory=list)
    skips_in_a_row: int = 0
    skips: int = 0
    ratio: float = 1.0
    error: float = 0.0
    missed: float = 0.0
    ended: bool = False
    log: list[StepRecord] = field(default_factory=list)


@dataclass
class DenoisingCacheState:
    """One lane of one request. B rows, S image tokens; a field that its cache does not use is None.

    prev_residual: [B, S, heads · head_dim], the reference of the first-block decision.
    prev_output: [B, S, patch² · channels], the last computed noise prediction.
    taylor_factor_0 … 2: [B, S, patch² · channels] float32, value and divided differences.
    taylor_last_compute_step: the last step that a Taylor predictor has seen.
    computed: whether the running step was computed; None until that is decided.
    residual_threshold: this request's threshold of the first-block decision.
    The rest is vitrify's. num_inference_steps, sigmas: of the request, for policies that need them (yours to set).
    policy: the cache that runs. uncached: none is meant to, whatever the pipeline's own is.
    of: what its predictor holds, None until that is known.
    held, factors: its values, of the predictor's own width; the documented fields are the same memory where they coincide.
    spare: where a Taylor value or prediction is written. corrected: where a corrected noise prediction is.
    candidate: the first block's residual of this step (compiled pipelines).
    dtype: of references and held values. progress: counters and the log of the steps.
    """

    prev_residual: Array | None = None
    prev_output: Array | None = None
    taylor_factor_0: Array | None = None
    taylor_factor_1: Array | None = None
    taylor_factor_2: Array | None = None
    taylor_last_compute_step: int | None = None
    computed: bool | None = None
    residual_threshold: float | None = None
    num_inference_steps: int | None = None
    sigmas: Sequence[float] | None = None
    policy: Cache | None = None
    uncached: bool = False
    of: Literal["residual", "output"] | None = None
    held: Array | None = None
    factors: list[Array] = field(default_factory=list)
    spare: Array | None = None
    corrected: Array | None = None
    candidate: Array | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    progress: Progress = field(default_factory=Progress)

    @property
    def buffers(self) -> tuple[Array, ...]:
        """Every buffer, each once."""
        documented = (self.prev_residual, self.prev_output, self.taylor_factor_0, self.taylor_factor_1, self.taylor_factor_2)
        arrays = [a for a in (*documented, self.held, *self.factors, self.spare, self.corrected, self.candidate) if a is not None]
        return tuple({id(array): array for array in arrays}.values())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(array.nbytes for array in self.buffers)

    def release(self) -> None:
        """Let go of every buffer; the state cannot run another step."""
        self.prev_residual = self.prev_output = self.held = self.spare = self.corrected = self.candidate = None
        self.taylor_factor_0 = self.taylor_factor_1 = self.taylor_factor_2 = None
        self.factors = []
        self.progress.ended = True


def allocate(state: DenoisingCacheState, shape: tuple[int, ...]) -> None:
    """Give the predictor its buffers, zeros: [B, S, width] of what it holds.

    A documented field that holds the same thing is the same memory. Hold: one in the activation's dtype; Taylor of
    order k: k + 1 factors and one spare in float32, and one more if it is corrected.
    """
    policy = state.policy
    if policy is None:
        return
    predictor = policy.predictor or Hold()
    output = state.of == "output"
    if isinstance(predictor, Hold):
        state.held = np.zeros(shape, state.dtype) if state.prev_output is None or not output else state.prev_output
        if output:
            state.prev_output = state.held
        return
    orders = 2 if policy.compat == "max" else predictor.order
    state.factors = [np.zeros(shape, np.float32) for _ in range(orders + 1)]
    state.spare = np.zeros(shape, np.float32)
    state.corrected = np.zeros(shape, np.float32) if predictor.corrected else None
    if output:
        state.taylor_factor_0, state.taylor_factor_1, state.taylor_factor_2 = (*state.factors, None)[:3]


def documented_state(
    policy: Cache | None,
    of: Literal["residual", "output"] | None,
    batch_size: int,
    seq_len: int,
    transformer_config: Any,
    dtype: npt.DTypeLike,
) -> DenoisingCacheState:
    """The state of a user's own pipeline: the documented buffers of its policy, all zeros.

    transformer_config: an object or mapping with num_attention_heads, attention_head_dim, patch_size, out_channels
        and in_channels. dtype: of references and held values; factors are float32.
    of: what the predictor holds; None: its first use says (its buffers are allocated then).
    Raises SpecError naming a field that is missing.
    """
    heads, head_dim, patch, in_channels = (
        _field(transformer_config, name) for name in ("num_attention_heads", "attention_head_dim", "patch_size", "in_channels")
    )
    out_channels = _field(transformer_config, "out_channels") or in_channels
    residual_shape = (batch_size, seq_len, heads * head_dim)
    output_shape = (batch_size, seq_len, patch**2 * out_channels)
    state = DenoisingCacheState(policy=policy, of=of, dtype=np.dtype(dtype))
    if policy is None:
        return state
    if isinstance(policy.decision, FirstBlock):
        state.prev_residual = np.zeros(residual_shape, dtype)
        if of != "residual":
            state.prev_output = np.zeros(output_shape, dtype)
    if of is not None:
        allocate(state, output_shape if of == "output" else residual_shape)
    return state


def lane_state(
    policy: Cache | None, hidden: Array, output: Array, count: int, sigmas: Sequence[float], threshold: float
) -> DenoisingCacheState:
    """The state of one lane of a compiled pipeline: what its policy needs and nothing else.

    hidden: [B, S, D], like the image's hidden states. output: [B, S, C], like the noise prediction. count: steps.
    """
    state = DenoisingCacheState(policy=policy, num_inference_steps=count, sigmas=sigmas, residual_threshold=threshold)
    if policy is None:
        state.uncached = True
        return state
    predictor = policy.predictor or Hold("output" if policy.compat else None)
    state.of = predictor.of or "residual"
    shape, state.dtype = (hidden.shape, hidden.dtype) if state.of == "residual" else (output.shape, output.dtype)
    if policy.probes:
        state.prev_residual, state.candidate = np.zeros(hidden.shape, hidden.dtype), np.zeros(hidden.shape, hidden.dtype)
    allocate(state, shape)
    return state


def _field(config: Any, name: str) -> Any:
    if isinstance(config, Mapping):
        if name in config:
            return config[name]
    elif hasattr(config, name):
        return getattr(config, name)
    raise SpecError(f"transformer_config has no {name!r}; the cache buffers' sizes come from it")
