"""Which step caches a pipeline runs with; all off unless asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vitrify.engine.errors import SpecError

__all__ = ["DenoisingCacheConfig"]

_MAX_ORDER = 2


@dataclass(frozen=True)
class DenoisingCacheConfig:
    """The caches of one pipeline. None leaves a number to the pipeline class's default.

    first_block_caching: skip a step whose first block's residual hardly moved.
    taylorseer: compute on a fixed schedule and extrapolate the steps between.
    taylorseer_cache_interval: steps from one computed step to the next, at least 1.
    taylorseer_warmup_steps: the first steps, all computed, at least 1.
    taylorseer_max_order: 1 or 2. Raises SpecError naming the field.
    """

    first_block_caching: bool = False
    taylorseer: bool = False
    taylorseer_cache_interval: int | None = None
    taylorseer_warmup_steps: int | None = None
    taylorseer_max_order: int | None = None

    def __post_init__(self) -> None:
        for flag in ("first_block_caching", "taylorseer"):
            if not isinstance(getattr(self, flag), bool):
                raise SpecError(f"{flag}={getattr(self, flag)!r}: expected True or False")
        for field in ("taylorseer_cache_interval", "taylorseer_warmup_steps"):
            value = getattr(self, field)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise SpecError(f"{field}={value!r}: expected a whole number of at least 1, or None for the pipeline's default")
        order = self.taylorseer_max_order
        if order is not None and not (_is_whole(order) and 1 <= order <= _MAX_ORDER):
            raise SpecError(f"taylorseer_max_order={order!r}: expected 1 or 2, or None for the pipeline's default")
        if self.first_block_caching and self.taylorseer and self.taylorseer_cache_interval is not None:
            raise SpecError(
                f"taylorseer_cache_interval={self.taylorseer_cache_interval}: with first_block_caching and taylorseer both on, "
                "the first block decides which steps are computed; leave the interval None"
            )

    @property
    def enabled(self) -> bool:
        """Whether any cache is on."""
        return self.first_block_caching or self.taylorseer

    def filled(self, *, cache_interval: int, warmup_steps: int, max_order: int) -> DenoisingCacheConfig:
        """This configuration with its unset numbers replaced; the interval stays unset where the first block decides."""
        combined = self.first_block_caching and self.taylorseer
        interval = cache_interval if self.taylorseer_cache_interval is None and not combined else self.taylorseer_cache_interval
        return replace(
            self,
            taylorseer_cache_interval=interval,
            taylorseer_warmup_steps=warmup_steps if self.taylorseer_warmup_steps is None else self.taylorseer_warmup_steps,
            taylorseer_max_order=max_order if self.taylorseer_max_order is None else self.taylorseer_max_order,
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
