"""What a step cache remembers between the steps of one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_config import DenoisingCacheConfig
from vitrify.engine.errors import SpecError

__all__ = ["DenoisingCacheState", "zero_state"]

Array = npt.NDArray[Any]


@dataclass
class DenoisingCacheState:
    """One lane of one request. B rows, S image tokens; a field that its cache does not use is None.

    prev_residual: [B, S, heads · head_dim], the reference of the first-block decision.
    prev_output: [B, S, patch² · channels], the noise prediction that stands in on a skip.
    taylor_factor_0 … 2: [B, S, patch² · channels] float32, value and differences.
    taylor_last_compute_step: the last computed step.
    computed: whether the running step was computed; None until that is decided.
    residual_threshold: this request's threshold of the first-block decision.
    """

    prev_residual: Array | None = None
    prev_output: Array | None = None
    taylor_factor_0: Array | None = None
    taylor_factor_1: Array | None = None
    taylor_factor_2: Array | None = None
    taylor_last_compute_step: int | None = None
    computed: bool | None = None
    residual_threshold: float | None = None


def zero_state(
    config: DenoisingCacheConfig, batch_size: int, seq_len: int, transformer_config: Any, dtype: npt.DTypeLike
) -> DenoisingCacheState:
    """The documented set of buffers for the caches that `config` turns on, all zeros.

    transformer_config: an object or mapping with num_attention_heads, attention_head_dim, patch_size, out_channels
        and in_channels. dtype: of residual and output; factors are float32.
    Raises SpecError naming a field that is missing.
    """
    heads, head_dim, patch, in_channels = (
        _field(transformer_config, name) for name in ("num_attention_heads", "attention_head_dim", "patch_size", "in_channels")
    )
    out_channels = _field(transformer_config, "out_channels") or in_channels
    residual_shape = (batch_size, seq_len, heads * head_dim)
    output_shape = (batch_size, seq_len, patch**2 * out_channels)
    state = DenoisingCacheState()
    if config.first_block_caching:
        state.prev_residual = np.zeros(residual_shape, dtype)
        state.prev_output = np.zeros(output_shape, dtype)
    if config.taylorseer:
        state.taylor_factor_0 = np.zeros(output_shape, np.float32)
        state.taylor_factor_1 = np.zeros(output_shape, np.float32)
        if config.taylorseer_max_order == 2:
            state.taylor_factor_2 = np.zeros(output_shape, np.float32)
    return state


def _field(config: Any, name: str) -> Any:
    if isinstance(config, Mapping):
        if name in config:
            return config[name]
    elif hasattr(config, name):
        return getattr(config, name)
    raise SpecError(f"transformer_config has no {name!r}; the cache buffers' sizes come from it")
