"""Flow matching with Euler steps, as functions of explicit state.

Equal to diffusers' FlowMatchEulerDiscreteScheduler as FluxPipeline drives it, to the bit: the arithmetic stays
in float32 where diffusers' does. With s the raw sigmas (1 … 1/n unless given) and n steps:

- static shift: s' = shift·s / (1 + (shift − 1)·s);
- dynamic shift: s' = m / (m + 1/s − 1), m = exp(μ) ("exponential") or μ ("linear"), where μ lies on the line
  through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift) at the number of image tokens;
- shift_terminal e: 1 − s' is scaled so that the last s' is e;
- a step: x += (s'[i+1] − s'[i]) · noise_pred, s'[n] = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrify.engine.errors import RequestError
from vitrify.engine.scheduler_config import FLOW_MATCH_EULER_DEFAULTS, MAX_STEPS, check_flow_match_euler
from vitrify.runtime.values import check_count

__all__ = ["FlowMatchEuler", "Schedule"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Schedule:
    """The times of one request.

    timesteps: [steps] float32, in training steps (1000 … ): what a callback is told.
    sigmas: [steps + 1] float32, noise levels from 1 downwards; the last is 0.
    """

    timesteps: Array
    sigmas: Array

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class FlowMatchEuler:
    """The scheduler of one artifact; it holds options only. Units: sigma (1 is pure noise, 0 the picture)."""

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlowMatchEuler:
        """The scheduler that a scheduler_config.json describes. Raises SpecError naming an option it does not obey."""
        check_flow_match_euler(config)
        return cls(**{option: config.get(option, default) for option, default in FLOW_MATCH_EULER_DEFAULTS.items()})

    def schedule(self, num_inference_steps: int, image_tokens: int, sigmas: Sequence[float] | Array | None = None) -> Schedule:
        """The times of `num_inference_steps` steps over an image of `image_tokens` packed tokens.

        sigmas: raw noise levels, one a step, before any shift; None: 1 … 1/steps, evenly.
        Raises RequestError for steps outside 1..10,000, another number of sigmas, sigmas outside 0..1, a schedule not finite.
        """
        if check_count(num_inference_steps, "num_inference_steps") > MAX_STEPS:
            raise RequestError(f"num_inference_steps={num_inference_steps}: expected at most {MAX_STEPS}")
        raw = self._raw(num_inference_steps, sigmas)
        shifted = self._stretched(self._shifted(raw, image_tokens))
        if not np.isfinite(shifted).all():
            raise RequestError(
                f"num_inference_steps={num_inference_steps} with shift_terminal={self.shift_terminal}, raw sigmas "
                f"{raw.tolist()[:8]}: the schedule is not finite; ask for more steps or other sigmas"
            )
        return Schedule(timesteps=shifted * np.float32(self.num_train_timesteps), sigmas=np.append(shifted, np.float32(0.0)))

    def step(self, latents: Array, noise_pred: Array, sigma: float, sigma_next: float, out: Array | None = None) -> Array:
        """`latents` moved along `noise_pred` from noise level `sigma` to `sigma_next`.

        latents, noise_pred: [...] float32, read only unless `out` is one of them.
        out: where the result is written and what is returned; None: a new array.
        """
        delta = np.float32(sigma_next) - np.float32(sigma)
        moved: Array = noise_pred * delta
        target = moved if out is None else out
        np.add(latents, moved, out=target)
        return target

    def _raw(self, steps: int, sigmas: Sequence[float] | Array | None) -> Array:
        if sigmas is None:
            return np.linspace(1.0, 1 / steps, steps).astype(np.float32)
        try:
            raw = np.array(sigmas, dtype=np.float64).astype(np.float32)
        except (TypeError, ValueError):
            raise RequestError(f"sigmas: got {sigmas!r}, expected a list of numbers from 0 to 1") from None
        if raw.shape != (steps,):
            raise RequestError(f"sigmas: got shape {raw.shape}, expected one for each of {steps} steps (the final 0 is added)")
        if not (np.isfinite(raw).all() and (raw >= 0).all() and (raw <= 1).all()):
            raise RequestError(f"sigmas: got {raw.tolist()}, expected numbers from 0 to 1")
        return raw

    def _shifted(self, raw: Array, image_tokens: int) -> Array:
        if not self.use_dynamic_shifting:
            return self.shift * raw / (1 + (self.shift - 1) * raw)
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = image_tokens * slope + (self.base_shift - slope * self.base_image_seq_len)
        scale = math.exp(mu) if self.time_shift_type == "exponential" else mu
        with np.errstate(divide="ignore"):  # sigma 0 → 1/0 → 0 again
            shifted: Array = scale / (scale + (1 / raw - 1))
        return shifted

    def _stretched(self, sigmas: Array) -> Array:
        if not self.shift_terminal:
            return sigmas
        clear = 1 - sigmas
        with np.errstate(divide="ignore", invalid="ignore"):  # a lone sigma of 1 has nothing to stretch; the caller refuses NaN
            stretched: Array = 1 - clear / (clear[-1] / (1 - self.shift_terminal))
        return stretched
