"""Which step caches a pipeline runs with; all off unless asked for."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitrify.engine.cache_policy import Cache, Decision, FirstBlock, Guards, Interval, Predictor, Taylor
from vitrify.engine.errors import SpecError

__all__ = ["DenoisingCacheConfig"]

_MAX_ORDER = 2
_NUMBERS = ("taylorseer_cache_interval", "taylorseer_warmup_steps", "taylorseer_max_order")


@dataclass(frozen=True)
class DenoisingCacheConfig:
    """The caches of one pipeline. None leaves a number to the pipeline class's default.

    first_block_caching: skip a step whose first block's residual hardly moved.
    taylorseer: compute on a fixed schedule and extrapolate the output between; with both flags the first block decides.
    taylorseer_cache_interval: steps from one computed step to the next, at least 1.
    taylorseer_warmup_steps: the first steps, all computed, at least 1.
    taylorseer_max_order: 1 or 2.
    decision, predictor, guards: the same chosen freely, instead of the flags or to complete them.
    compat: "max": the flags act as in Modular MAX 26.7.
    Raises SpecError naming the field that is out of range, contradicts another, or cannot act.
    """

    first_block_caching: bool = False
    taylorseer: bool = False
    taylorseer_cache_interval: int | None = None
    taylorseer_warmup_steps: int | None = None
    taylorseer_max_order: int | None = None
    decision: Decision | None = None
    predictor: Predictor | None = None
    guards: Guards | None = None
    compat: Literal["max"] | None = None

    def __post_init__(self) -> None:
        for flag in ("first_block_caching", "taylorseer"):
            if not isinstance(getattr(self, flag), bool):
                raise SpecError(f"{flag}={getattr(self, flag)!r}: expected True or False")
        for field in _NUMBERS[:2]:
            value = getattr(self, field)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise SpecError(f"{field}={value!r}: expected a whole number of at least 1, or None for the pipeline's default")
        order = self.taylorseer_max_order
        if order is not None and not (_is_whole(order) and 1 <= order <= _MAX_ORDER):
            raise SpecError(f"taylorseer_max_order={order!r}: expected 1 or 2, or None for the pipeline's default")
        for name, kind in (("decision", Decision), ("predictor", Predictor), ("guards", Guards)):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kind):
                raise SpecError(f"{name}={getattr(self, name)!r}: expected one of vitrify's {name} classes, or None")
        if self.compat not in (None, "max"):
            raise SpecError(f"compat={self.compat!r} is unknown; known: max")
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        flags = [flag for flag in ("first_block_caching", "taylorseer") if getattr(self, flag)]
        if len(flags) == 2 and self.taylorseer_cache_interval is not None:
            raise SpecError(
                f"taylorseer_cache_interval={self.taylorseer_cache_interval}: with first_block_caching and taylorseer both on, "
                "the first block decides which steps are computed; leave the interval None"
            )
        for name in () if self.taylorseer else _NUMBERS:
            if getattr(self, name) is not None:
                raise SpecError(f"{name}={getattr(self, name)} cannot act: taylorseer is off; turn it on, or leave {name} None")
        if self.decision is not None and flags:
            raise SpecError(f"decision and {' and '.join(flags)} both say when to compute; give one of them")
        if self.taylorseer and self.predictor is not None:
            raise SpecError("predictor and taylorseer both say what stands in; leave one of them unset")
        for name in ("predictor", "guards", "compat"):
            if getattr(self, name) is not None and not flags and self.decision is None:
                raise SpecError(f"{name}={getattr(self, name)!r} cannot act: no cache is on; set decision or a flag")
        if len(flags) == 2 and self.guards is not None and self.guards.warmup_steps is not None:
            raise SpecError("guards.warmup_steps and taylorseer_warmup_steps both say how to begin; set the second alone")
        if self.compat == "max":
            if len(flags) == 2:
                raise SpecError("compat='max': that release refuses first_block_caching and taylorseer together; turn one off")
            for name in ("decision", "predictor", "guards"):
                if getattr(self, name) is not None:
                    raise SpecError(f"compat='max': that release has no {name}; leave it None")

    @property
    def enabled(self) -> bool:
        """Whether any cache is on."""
        return self.first_block_caching or self.taylorseer or (self.decision is not None and Cache(self.decision).enabled)

    def filled(self, *, cache_interval: int, warmup_steps: int, max_order: int) -> DenoisingCacheConfig:
        """This configuration with its unset numbers replaced; the interval stays unset where the first block decides."""
        combined = self.first_block_caching and self.taylorseer
        filled = copy.copy(self)
        for name, default in zip(_NUMBERS, (None if combined else cache_interval, warmup_steps, max_order), strict=True):
            if getattr(self, name) is None:
                # Past the checks, which are for what a user says: a default may stand idle.
                object.__setattr__(filled, name, default)
        return filled

    def policy(self) -> Cache | None:
        """The cache that a filled configuration means, None when all is off. Raises SpecError for what cannot act."""
        guards = self.guards or Guards()
        if self.decision is not None:
            cache = Cache(self.decision, self.predictor, guards)
            return cache if cache.enabled else None
        extrapolated = Taylor(self.taylorseer_max_order or 1, "output") if self.taylorseer else None
        if self.first_block_caching:
            if self.taylorseer:
                guards = replace(guards, warmup_steps=self.taylorseer_warmup_steps)
            return Cache(FirstBlock(), extrapolated or self.predictor, guards, self.compat)
        if self.taylorseer:
            schedule = Interval(self.taylorseer_cache_interval or 1, self.taylorseer_warmup_steps or 1)
            return Cache(schedule, extrapolated, guards, self.compat)
        return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
