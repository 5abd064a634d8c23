"""Caches by name: what a word or an option of the command line means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from vitrify.engine.cache_policy import MASK_PRESETS, Always, Cache, FirstBlock, Guards, Hold, Interval, Mask, Predictor, Taylor
from vitrify.engine.errors import RequestError, SpecError

__all__ = ["PREDICTORS", "PRESETS", "named_cache"]

_SHORT = Guards(only_above_steps=8)  # distilled models of so few steps gain nothing
_CAREFUL = Guards(warmup_steps=4, max_consecutive_skips=3, only_above_steps=8)

PRESETS: Mapping[str, Callable[..., Cache]] = MappingProxyType(
    {
        "none": lambda: Cache(Always()),
        "first-block": lambda threshold=None: Cache(FirstBlock(_number(threshold)), None, _CAREFUL),
        "taylorseer": lambda interval="5", warmup="9": Cache(Interval(int(interval), int(warmup)), Taylor(1, "output"), _SHORT),
        "interval": lambda interval="5", warmup="9": Cache(Interval(int(interval), int(warmup)), None, _SHORT),
        "mask": lambda steps: Cache(_mask(steps), None, _SHORT),
    }
)
"""Name → its cache, from what stands behind the colons."""

PREDICTORS = tuple(f"{kind}{of}" for kind in ("hold", "taylor1", "taylor2") for of in ("", "-residual", "-output"))


def named_cache(name: str, predictor: str | None = None, guards: Sequence[str] = ()) -> Cache:
    """The cache called `name`, e.g. "first-block:0.08", "taylorseer:5:9", "interval:3:3", "mask:fast", "mask:1101", "none".

    predictor: one of PREDICTORS, instead of the preset's. guards: "warmup_steps=4" and the like, over the preset's.
    Raises RequestError naming what is unknown or out of range.
    """
    word, *arguments = name.split(":")
    if word not in PRESETS:
        raise RequestError(f"cache {name!r} is unknown; known: {', '.join(PRESETS)}")
    try:
        preset = PRESETS[word](*arguments)
        chosen = preset.predictor if predictor is None else _predictor(predictor)
        return Cache(preset.decision, chosen, _guards(preset.guards, guards))
    except SpecError as error:
        raise RequestError(f"cache {name!r}: {error}") from error
    except (TypeError, ValueError):
        raise RequestError(f"cache {name!r} cannot be read; forms: {', '.join(_FORMS)}") from None


_FORMS = (
    "none",
    "first-block[:threshold]",
    "taylorseer[:interval[:warmup]]",
    "interval[:interval[:warmup]]",
    "mask:preset or 1s and 0s",
)


def _predictor(name: str) -> Predictor:
    if name not in PREDICTORS:
        raise SpecError(f"predictor {name!r} is unknown; known: {', '.join(PREDICTORS)}")
    kind, _, of = name.partition("-")
    quantity: Any = of or None
    return Hold(quantity) if kind == "hold" else Taylor(int(kind[-1]), quantity)


def _guards(preset: Guards, given: Sequence[str]) -> Guards:
    values = {f.name: getattr(preset, f.name) for f in fields(Guards)}
    for one in given:
        key, _, value = one.partition("=")
        if key not in values or not value.isdecimal():
            raise SpecError(f"guard {one!r} cannot be read; expected NAME=NUMBER, names: {', '.join(values)}")
        values[key] = int(value)
    return Guards(**values)


def _mask(text: str) -> Mask:
    if re.fullmatch("[01]+", text):
        return Mask(tuple(digit == "1" for digit in text))
    if text not in MASK_PRESETS:
        raise SpecError(f"mask {text!r} is unknown; known: {', '.join(MASK_PRESETS)}, or one 0 or 1 a step")
    return Mask(preset=text)


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
