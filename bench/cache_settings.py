"""What the study of step caches measures: every kind of decision with every predictor, at several thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import (
    MASK_PRESETS,
    Cache,
    Decision,
    FirstBlock,
    Guards,
    Hold,
    Interval,
    Magnitude,
    Mask,
    Predictor,
    Taylor,
)
from vitrify.engine.cache_presets import PRESETS

__all__ = ["CAREFUL", "FAMILIES", "FAST", "PREDICTORS", "STEPS", "Setting", "plain_steps", "settings"]

STEPS = (28, 20, 50)
FAMILIES = ("growing mask", "mask preset", "interval", "first block", "MagCache", "searched mask")
FAST, CAREFUL = (PRESETS[name]() for name in ("fast", "careful"))

PREDICTORS: Mapping[str, Predictor] = {
    "Taylor 1 corrected": Taylor(1, "output", corrected=True),
    "Taylor 2 corrected": Taylor(2, "output", corrected=True),
    "Taylor 1 of output": Taylor(1, "output"),
    "Taylor 2 of output": Taylor(2, "output"),
    "Taylor 1 of residual": Taylor(1, "residual"),
    "Taylor 2 of residual": Taylor(2, "residual"),
    "hold output": Hold("output"),
    "hold residual": Hold("residual"),
}
_IN_SIGMA: Mapping[str, Predictor] = {
    "Taylor 1 of output, in sigma": Taylor(1, "output", "sigma"),
    "Taylor 1 corrected, in sigma": Taylor(1, "output", "sigma", corrected=True),
}
_FIRST_BLOCK_GUARDS = Guards(warmup_steps=4, max_consecutive_skips=3)
_SEARCHED: Sequence[tuple[int, ...]] = (
    (0, 1, 2, 4, 7, 8, 12, 15, 20, 25),
    (0, 1, 2, 4, 6, 8, 11, 14, 17, 22, 26),
    (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 17, 19, 23, 26),
)
"""Of so many steps, searched one step at a time on the names that do not judge, with Taylor 1 corrected."""
_SEARCHED_AT = 28


@dataclass(frozen=True)
class Setting:
    """A cache at a number of steps. family: kind of its decision. decision, predictor: as people say them. cache: None: none."""

    family: str
    decision: str
    predictor: str
    steps: int
    cache: Cache | None

    @property
    def name(self) -> str:
        """Of the cache, in tables."""
        return f"{self.decision}, {self.predictor}" if self.predictor else self.decision

    @property
    def key(self) -> str:
        """Its name on disk and in the document."""
        return f"{self.steps}: {self.name}"


def plain_steps(steps: int) -> Setting:
    """No cache."""
    return Setting("plain steps", f"plain {steps}", "", steps, None)


def settings(tables: Mapping[int, Calibration]) -> list[Setting]:
    """What is measured, beside plain steps. tables: MagCache's, by number of steps."""
    return [setting for steps in STEPS for setting in _of(steps, tables[steps])]


def _of(steps: int, table: Calibration) -> list[Setting]:
    """Each decision with every predictor; at 28 steps a few more."""
    result: list[Setting] = []

    def add(family: str, what: str, decision: Decision, predictors: Mapping[str, Predictor] = PREDICTORS) -> None:
        guards = _FIRST_BLOCK_GUARDS if isinstance(decision, FirstBlock) else Guards()
        result.extend(Setting(family, what, said, steps, Cache(decision, p, guards)) for said, p in predictors.items())

    add("growing mask", "fast", FAST.decision)
    add("growing mask", "careful", CAREFUL.decision)
    for share in (0.39, 0.65):
        add("growing mask", f"growing mask, {100 * share:.0f} %", Mask(share=share))
    for preset in MASK_PRESETS:
        add("mask preset", f"mask {preset}", Mask(preset=preset))
    for interval, warmup in ((4, 4), (3, 3), (2, 3)):
        add("interval", f"interval {interval} after {warmup}", Interval(interval, warmup))
    for threshold in (0.2, 0.12, 0.08):
        add("first block", f"first block {threshold}", FirstBlock(threshold))
    for threshold in (0.24, 0.12, 0.06):
        add("MagCache", f"MagCache {threshold}", Magnitude(table.ratios, threshold))
    if steps == _SEARCHED_AT:
        add("interval", "interval 5 after 9", Interval(5, 9))
        add("interval", "interval 3 after 3", Interval(3, 3), _IN_SIGMA)
        corrected = {name: p for name, p in PREDICTORS.items() if name == "Taylor 1 corrected"}
        for computed in _SEARCHED:
            mask = Mask(tuple(step in computed for step in range(steps)))
            add("searched mask", f"searched mask of {len(computed)}", mask, corrected)
    return result
