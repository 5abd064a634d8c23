"""What the study of step caches measures: decisions and predictors at several numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import (
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
from vitrify.engine.growing_mask import growing_mask

__all__ = ["CAREFUL", "FAST", "Setting", "plain_steps", "settings"]

_OUT = Taylor(1, "output")
_CORRECTED = Taylor(1, "output", corrected=True)
_HELD = Hold("residual")
_GUARDS = Guards(warmup_steps=4, max_consecutive_skips=3)
_PREDICTORS: dict[str, Predictor] = {
    "corrected": _CORRECTED,
    "Taylor 1": _OUT,
    "Taylor 1 in sigma": Taylor(1, "output", "sigma"),
    "Taylor 2": Taylor(2, "output"),
    "Taylor 2, corrected": Taylor(2, "output", corrected=True),
    "Taylor 1 of the residual": Taylor(1, "residual"),
    "hold the output": Hold("output"),
    "hold the residual": _HELD,
}
_BOTH = ("corrected", "Taylor 1")


def _mask(computed: Sequence[int], steps: int = 28) -> Mask:
    return Mask(tuple(step in computed for step in range(steps)))


_SEARCHED_MASKS = {
    10: _mask((0, 1, 2, 4, 7, 8, 12, 15, 20, 25)),
    11: _mask((0, 1, 2, 4, 6, 8, 11, 14, 17, 22, 26)),
    15: _mask((0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 17, 19, 23, 26)),
}
"""Of 28 steps, searched one step at a time on the names that do not judge, with the corrected predictor."""


FAST, CAREFUL = (PRESETS[name]() for name in ("fast", "careful"))


@dataclass(frozen=True)
class Setting:
    """A cache at a number of steps. cache: None computes every step. family: its decision, for the legend."""

    family: str
    name: str
    steps: int
    cache: Cache | None

    @property
    def key(self) -> str:
        """Its name on disk and in the document."""
        return f"{self.steps}: {self.name}"


def plain_steps(steps: int) -> Setting:
    """No cache."""
    return Setting("plain steps", f"plain {steps}", steps, None)


def settings(table: Calibration) -> list[Setting]:
    """What is measured, beside plain steps. table: MagCache's."""
    result: list[Setting] = []

    def add(family: str, what: str, decision: Decision, predictors: Sequence[str] = _BOTH, steps: int = 28) -> None:
        guards = _GUARDS if isinstance(decision, FirstBlock) else Guards()
        for said in predictors:
            result.append(Setting(family, f"{what}, {said}", steps, Cache(decision, _PREDICTORS[said], guards)))

    for computed, mask in _SEARCHED_MASKS.items():
        some = _BOTH[:1] if computed == 10 else (*_BOTH, "Taylor 1 of the residual", "hold the residual")
        add("searched mask", f"searched mask of {computed}", mask, some if computed == 11 else some[:2])
    for computed in (8, 9, 10, 11, 13, 15, 18):
        add("growing mask", f"growing mask of {computed}", Mask(share=computed / 28), ("corrected",))
    add("growing mask", "evenly growing mask of 10 (fast)", Mask(repeats=2), ("corrected",))
    for computed, warmup in ((14, 5), (18, 8)):
        add("growing mask", f"growing mask of {computed}", Mask(growing_mask(28, computed, warmup, 1.2)), ("Taylor 1",))
    add("interval", "interval 3 after 3", Interval(3, 3), tuple(_PREDICTORS))
    add("interval", "interval 2 after 3", Interval(2, 3), (*_BOTH, "hold the residual"))
    add("interval", "interval 4 after 4", Interval(4, 4))
    add("interval", "interval 5 after 9 (taylorseer)", Interval(5, 9))
    add("interval", "mask preset fast", Mask(preset="fast"))
    add("interval", "mask preset medium", Mask(preset="medium"))
    for threshold in (0.08, 0.12, 0.2):
        with_taylor = _BOTH[:1] if threshold == 0.08 else _BOTH
        add("first block", f"first block {threshold}", FirstBlock(threshold), ("hold the residual", *with_taylor))
    add("first block", "first block 0.12", FirstBlock(0.12), ("Taylor 1 of the residual",))
    for threshold in (0.06, 0.12, 0.24):
        with_taylor = _BOTH[:1] if threshold == 0.06 else _BOTH
        add("MagCache", f"MagCache {threshold}", Magnitude(table.ratios, threshold), ("hold the residual", *with_taylor))
    for steps, counts in ((20, (8, 11, 14)), (50, (18, 26))):
        few = counts[0]
        for computed in counts:
            add("growing mask", f"growing mask of {computed}", Mask(share=computed / steps), ("corrected",), steps)
        add("growing mask", f"growing mask of {few}", Mask(growing_mask(steps, few, 3, 1.2)), ("Taylor 1",), steps)
        add("interval", "interval 3 after 3", Interval(3, 3), _BOTH, steps)
        add("interval", "interval 2 after 3", Interval(2, 3), _BOTH, steps)
        add("first block", "first block 0.12", FirstBlock(0.12), ("hold the residual", "corrected"), steps)
        add("MagCache", "MagCache 0.12", Magnitude(table.ratios, 0.12), ("corrected",), steps)
    return result
