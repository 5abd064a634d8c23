"""A step cache as options: a decision (when to compute), a predictor (what stands in) and guards, chosen freely."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from vitrify.engine.errors import SpecError
from vitrify.engine.growing_mask import evenly_growing_mask, shared_mask

__all__ = [
    "MASK_PRESETS",
    "Always",
    "Cache",
    "Decision",
    "FirstBlock",
    "Guards",
    "Hold",
    "Interval",
    "Magnitude",
    "Mask",
    "Predictor",
    "Taylor",
]

Quantity = Literal["residual", "output"]
Axis = Literal["step", "sigma"]

MASK_PRESETS: dict[str, tuple[float, int]] = {"slow": (0.3, 2), "medium": (0.25, 3), "fast": (0.2, 4), "ultra": (0.15, 6)}
"""Name → (share of the steps computed first, then one step in how many); the last step is computed too."""

_MAX_ORDER = 2


@dataclass(frozen=True)
class Always:
    """Compute every step: no cache."""


@dataclass(frozen=True)
class FirstBlock:
    """Compute when the first block's residual has moved since the last computed step (ParaAttention's First Block Cache).

    threshold: skip when mean|r − r_ref| / mean|r_ref| is below it for every row; 0 never skips. None: the request's or model's.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check_number("FirstBlock.threshold", self.threshold, 0)


@dataclass(frozen=True)
class Interval:
    """TaylorSeer's schedule: compute the first `warmup_steps`, then each step s with (s − warmup_steps − 1) mod interval = 0."""

    interval: int = 5
    warmup_steps: int = 9

    def __post_init__(self) -> None:
        _check_whole("Interval.interval", self.interval, 1)
        _check_whole("Interval.warmup_steps", self.warmup_steps, 1)


@dataclass(frozen=True)
class Mask:
    """Compute the steps that are listed, or choose them by the request's number of steps; one of the four is given.

    steps: one truth value a step, the first True. preset: "slow", "medium", "fast" or "ultra".
    share: so many of the steps, with gaps that grow; above 0 and below 1.
    repeats: gaps of 1, then of 2, 3 and so on, each so many times: the more steps, the smaller the share that is computed.
    """

    steps: tuple[bool, ...] | None = None
    preset: str | None = None
    share: float | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.steps, self.preset, self.share, self.repeats)) != 1:
            raise SpecError("Mask: give steps, preset, share or repeats, one of them")
        if self.steps is not None:
            if not isinstance(self.steps, tuple | list) or not self.steps or any(s not in (0, 1) for s in self.steps):
                raise SpecError(f"Mask.steps={self.steps!r}: expected one True or False a step")
            object.__setattr__(self, "steps", tuple(bool(s) for s in self.steps))
            if not self.steps[0]:
                raise SpecError("Mask.steps: the first step is False, but nothing could stand in for it; make it True")
        elif self.share is not None:
            _check_number("Mask.share", self.share, 0, 1)
            if self.share in (0, 1):
                raise SpecError(f"Mask.share={self.share!r}: expected a number above 0 and below 1")
        elif self.repeats is not None:
            _check_whole("Mask.repeats", self.repeats, 1)
        elif self.preset not in MASK_PRESETS:
            raise SpecError(f"Mask.preset={self.preset!r} is unknown; known: {', '.join(MASK_PRESETS)}")

    def resolved(self, count: int) -> tuple[bool, ...]:
        """One truth value for each of `count` steps. Raises SpecError when a given mask has another length."""
        if self.preset is not None:
            share, every = MASK_PRESETS[self.preset]
            first = max(1, math.ceil(share * count))
            return tuple(s < first or (s - first) % every == every - 1 or s == count - 1 for s in range(count))
        if self.share is not None:
            return shared_mask(count, self.share)
        if self.repeats is not None:
            return evenly_growing_mask(count, self.repeats)
        steps = self.steps or ()
        if len(steps) != count:
            raise SpecError(f"Mask.steps has {len(steps)} entries, the request has {count} steps; give one a step")
        return steps


@dataclass(frozen=True)
class Magnitude:
    """Compute when the residual's magnitude, by a measured table, has drifted too far (MagCache, arXiv 2506.09045).

    ratios: γ, one a step of the measured run: mean over tokens of ‖T_t‖ / ‖T_{t−1}‖; resampled to the request's steps (nearest).
    threshold: largest sum of |1 − Πγ| over a run of skips. max_consecutive_skips: longest such run.
    retention_ratio: share of the steps, from the first, that are always computed.
    """

    ratios: tuple[float, ...]
    threshold: float = 0.06
    max_consecutive_skips: int = 3
    retention_ratio: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.ratios, tuple | list) or not self.ratios:
            raise SpecError(f"Magnitude.ratios={self.ratios!r}: expected a measured table, one number a step")
        for i, ratio in enumerate(self.ratios):
            _check_number(f"Magnitude.ratios[{i}]", ratio, 0)
        object.__setattr__(self, "ratios", tuple(float(r) for r in self.ratios))
        _check_number("Magnitude.threshold", self.threshold, 0)
        _check_whole("Magnitude.max_consecutive_skips", self.max_consecutive_skips, 0)
        _check_number("Magnitude.retention_ratio", self.retention_ratio, 0, 1)


@dataclass(frozen=True)
class Hold:
    """The last computed value stands in.

    of: "residual": of the remaining blocks under a first-block decision, of all blocks under a static one, so that what
        surrounds them stays fresh; "output": the noise prediction; None: the residual where the pipeline can, else the output.
    """

    of: Quantity | None = None

    def __post_init__(self) -> None:
        _check_choice("Hold.of", self.of, get_args(Quantity))


@dataclass(frozen=True)
class Taylor:
    """A polynomial through the last computed values stands in, in Newton's form.

    order: 1 or 2; lower ones act until order + 1 steps were computed. of: as in Hold.
    along: what the values are spaced by: "step" or "sigma".
    corrected: a computed step also makes good what the skipped steps before it are now seen to have missed: its value joins
        the polynomial, and noise_pred carries the difference, so that the latents come to lie where the better polynomial
        leads (predictor–corrector; of multistep solvers UniPC, arXiv 2302.04867). Of the output alone, and for latents that
        move by (σ_{k+1} − σ_k) · noise_pred; `sigmas` of the request must then have the last step's end too.
    """

    order: int = 1
    of: Quantity | None = None
    along: Axis = "step"
    corrected: bool = False

    def __post_init__(self) -> None:
        if not _is_whole(self.order) or not 1 <= self.order <= _MAX_ORDER:
            raise SpecError(f"Taylor.order={self.order!r}: expected 1 or 2")
        _check_choice("Taylor.of", self.of, get_args(Quantity))
        if self.along not in get_args(Axis):
            raise SpecError(f"Taylor.along={self.along!r}: expected step or sigma")
        if not isinstance(self.corrected, bool):
            raise SpecError(f"Taylor.corrected={self.corrected!r}: expected True or False")
        if self.corrected and self.of != "output":
            raise SpecError(f"Taylor.corrected: only a predicted output can be corrected, got of={self.of!r}; use of='output'")


@dataclass(frozen=True)
class Guards:
    """Steps that are computed whatever the decision says; each acts only when set.

    warmup_steps: the first so many. last_steps: the last so many. max_consecutive_skips, max_skips: of a request.
    only_above_steps: a request of so many steps or fewer computes all of them.
    """

    warmup_steps: int | None = None
    last_steps: int | None = None
    max_consecutive_skips: int | None = None
    max_skips: int | None = None
    only_above_steps: int | None = None

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if value is not None:
                _check_whole(f"Guards.{option.name}", value, 1)

    @property
    def need_count(self) -> bool:
        """Whether the request's number of steps must be known."""
        return self.last_steps is not None or self.only_above_steps is not None


Decision = Always | FirstBlock | Interval | Mask | Magnitude
Predictor = Hold | Taylor


@dataclass(frozen=True)
class Cache:
    """One step cache. decision: when to compute. predictor: what stands in. guards: what is computed anyway.

    compat: "max": as Modular MAX 26.7 does it, for comparison: the documented caches alone, without predictor or guards.
    Raises SpecError for a setting that cannot act.
    """

    decision: Decision = field(default_factory=Always)
    predictor: Predictor | None = None
    guards: Guards = field(default_factory=Guards)
    compat: Literal["max"] | None = None

    def __post_init__(self) -> None:
        for name, kind in (("decision", Decision), ("predictor", Predictor | None), ("guards", Guards)):
            if not isinstance(getattr(self, name), kind):
                expected = " or ".join(one.__name__ for one in get_args(kind) or (kind,) if one is not type(None))
                raise SpecError(f"Cache.{name}={getattr(self, name)!r}: expected {expected}")
        if isinstance(self.decision, Always) and (self.predictor is not None or self.guards != Guards()):
            raise SpecError("Cache: predictor and guards cannot act, for every step is computed; choose a decision")
        if self.compat not in (None, "max"):
            raise SpecError(f"compat={self.compat!r} is unknown; known: max")
        if self.compat == "max":
            first_block = isinstance(self.decision, FirstBlock) and self.predictor is None
            taylorseer = (
                isinstance(self.decision, Interval) and isinstance(self.predictor, Taylor) and self.predictor.of == "output"
            )
            if not (first_block or taylorseer) or self.guards != Guards() or self.needs_sigmas:
                raise SpecError(
                    "compat='max': that release has FirstBlock() alone, or Interval() with Taylor(order, 'output'); "
                    "set no more than that, or leave compat None"
                )

    @property
    def enabled(self) -> bool:
        """Whether a step may be skipped at all."""
        return not isinstance(self.decision, Always)

    @property
    def probes(self) -> bool:
        """Whether the decision needs to run the first block."""
        return isinstance(self.decision, FirstBlock)

    @property
    def needs_count(self) -> bool:
        """Whether the request's number of steps must be known."""
        corrected = isinstance(self.predictor, Taylor) and self.predictor.corrected
        return corrected or isinstance(self.decision, Mask | Magnitude) or self.guards.need_count

    @property
    def needs_sigmas(self) -> bool:
        """Whether the request's sigmas must be known."""
        return self.along_sigma or (isinstance(self.predictor, Taylor) and self.predictor.corrected)

    @property
    def along_sigma(self) -> bool:
        """Whether the predictor's values are spaced by sigma, not by steps."""
        return isinstance(self.predictor, Taylor) and self.predictor.along == "sigma"

    def __str__(self) -> str:
        set_ = {f.name: getattr(self.guards, f.name) for f in fields(self.guards) if getattr(self.guards, f.name) is not None}
        parts = [_shown(self.decision), _shown(self.predictor or Hold())]
        parts += [f"Guards({', '.join(f'{k}={v}' for k, v in set_.items())})"] if set_ else []
        return " + ".join(parts) + (" (compat max)" if self.compat else "")


def _shown(option: Any) -> str:
    values = {f.name: getattr(option, f.name) for f in fields(option)}
    shown = (
        f"{k}={f'{len(v)} values' if isinstance(v, tuple) else v}" for k, v in values.items() if v is not None and v is not False
    )
    return f"{type(option).__name__}({', '.join(shown)})"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_whole(name: str, value: Any, least: int) -> None:
    if not _is_whole(value) or value < least:
        raise SpecError(f"{name}={value!r}: expected a whole number of at least {least}")


def _check_number(name: str, value: Any, least: float, most: float = math.inf) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and least <= value <= most
    if not fits:
        raise SpecError(
            f"{name}={value!r}: expected a number of at least {least}{f' and at most {most}' if most < math.inf else ''}"
        )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise SpecError(f"{name}={value!r}: expected {' or '.join(choices)}, or None for the pipeline's default")
