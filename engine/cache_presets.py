"""Caches by name: what a word or an option of the command line means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from vitrify.engine.artifact import Artifact
from vitrify.engine.artifact.presets import Presets, read_presets
from vitrify.engine.cache_policy import (
    MASK_PRESETS,
    Always,
    Cache,
    FirstBlock,
    Guards,
    Hold,
    Interval,
    Magnitude,
    Mask,
    Predictor,
    Taylor,
)
from vitrify.engine.errors import RequestError, SpecError

__all__ = ["MEASURED", "PREDICTORS", "PRESETS", "TAYLORSEER", "named_cache"]

TAYLORSEER = (5, 9, 1)
"""Interval, warm-up steps and order of "taylorseer", as documented."""
_SHORT = Guards(only_above_steps=8)  # distilled models of so few steps gain nothing
_CAREFUL = Guards(warmup_steps=4, max_consecutive_skips=3, only_above_steps=8)

PRESETS: Mapping[str, Callable[..., Cache]] = MappingProxyType(
    {
        "none": lambda: Cache(Always()),
        "first-block": lambda threshold=None: Cache(FirstBlock(_number(threshold)), None, _CAREFUL),
        "taylorseer": lambda interval=None, warmup=None, *, numbers=TAYLORSEER: _taylorseer(interval, warmup, numbers),
        "interval": lambda interval="5", warmup="9": Cache(Interval(int(interval), int(warmup)), None, _SHORT),
        # Who lists the steps has said what is computed: no guard.
        "mask": lambda steps: Cache(_mask(steps), None, Guards() if set(steps) <= set("01") else _SHORT),
        "fast": lambda: Cache(Mask(repeats=2), Taylor(1, "output", corrected=True), _SHORT),
        "careful": lambda: Cache(Mask(share=0.53), Taylor(1, "output", corrected=True), _SHORT),
    }
)
"""Name → its cache, from what stands behind the colons."""

MEASURED = ("magcache", "tuned")
"""Names of what `vitrify calibrate` and `vitrify tune` measured of an artifact."""

PREDICTORS = (
    *(f"{kind}{of}" for kind in ("hold", "taylor1", "taylor2") for of in ("", "-residual", "-output")),
    "taylor1-corrected",
    "taylor2-corrected",
)
"""Names of what stands in; "corrected" is of the output."""


def named_cache(
    name: str,
    predictor: str | None = None,
    guards: Sequence[str] = (),
    *,
    artifact: Artifact | None = None,
    steps: int | None = None,
    taylorseer: tuple[int, int, int] = TAYLORSEER,
) -> Cache:
    """The cache called `name`, e.g. "first-block:0.08", "taylorseer:5:9", "mask:fast", "mask:1101", "magcache", "tuned", "none".

    predictor: one of PREDICTORS, instead of the preset's. guards: "warmup_steps=4" and the like, over the preset's.
    artifact: whose measured presets the names in MEASURED mean. steps: of the request; "tuned" serves one number of them.
    taylorseer: interval, warm-up and order where "taylorseer" leaves them open: a pipeline's own defaults.
    Raises RequestError naming what is unknown, out of range or not measured yet, ArtifactError for a damaged presets file.
    """
    word, *arguments = name.split(":")
    if word not in PRESETS and word not in MEASURED:
        raise RequestError(f"cache {name!r} is unknown; known: {', '.join((*PRESETS, *MEASURED))}")
    try:
        own = {"numbers": taylorseer} if word == "taylorseer" else {}
        preset = _measured(word, arguments, artifact, steps) if word in MEASURED else PRESETS[word](*arguments, **own)
        chosen = preset.predictor if predictor is None else _predictor(predictor)
        return Cache(preset.decision, chosen, _guards(preset.guards, guards))
    except (RequestError, SpecError) as error:
        raise RequestError(f"cache {name!r}: {error}") from error
    except (TypeError, ValueError):
        raise RequestError(f"cache {name!r} cannot be read; forms: {'; '.join(_FORMS)}") from None


_FORMS = (
    "none",
    "first-block[:threshold]",
    "taylorseer[:interval[:warmup]]",
    "interval[:interval[:warmup]]",
    "mask:preset or mask:share of the steps or mask:1s and 0s",
    "fast",
    "careful",
    "magcache[:threshold]",
    "tuned",
)


def _taylorseer(interval: str | None, warmup: str | None, numbers: tuple[int, int, int]) -> Cache:
    schedule = Interval(*(own if given is None else int(given) for given, own in zip((interval, warmup), numbers, strict=False)))
    return Cache(schedule, Taylor(numbers[2], "output"), _SHORT)


def _measured(word: str, arguments: Sequence[str], artifact: Artifact | None, steps: int | None) -> Cache:
    if artifact is None:
        raise RequestError("it was measured with an artifact; name it on a request to that artifact")
    presets: Presets = read_presets(artifact)
    if word == "magcache":
        if presets.calibration is None:
            raise RequestError(f"it needs a measured table; run `vitrify calibrate {artifact.root} --prompts FILE` first")
        return _magcache(presets.calibration.ratios, *arguments)
    if arguments:
        raise ValueError(arguments)
    if presets.tuned is None:
        raise RequestError(f"nothing was tuned yet; run `vitrify tune {artifact.root} --prompts FILE --min-ssim 0.95` first")
    if steps is not None and steps != presets.tuned.steps:
        raise RequestError(
            f"it was tuned on requests of {presets.tuned.steps} steps, this one has {steps}; ask for {presets.tuned.steps}, "
            f"or run `vitrify tune {artifact.root} --prompts FILE --min-ssim 0.95 --steps {steps}`"
        )
    return presets.tuned.cache


def _magcache(ratios: tuple[float, ...], threshold: str = "0.06") -> Cache:
    return Cache(Magnitude(ratios, float(threshold)), None, _SHORT)


def _predictor(name: str) -> Predictor:
    if name not in PREDICTORS:
        raise SpecError(f"predictor {name!r} is unknown; known: {', '.join(PREDICTORS)}")
    kind, _, of = name.partition("-")
    if of == "corrected":
        return Taylor(int(kind[-1]), "output", corrected=True)
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
    if re.fullmatch(r"0?\.\d+", text):
        return Mask(share=float(text))
    if text not in MASK_PRESETS:
        raise SpecError(f"mask {text!r} is unknown; known: {', '.join(MASK_PRESETS)}, a share as 0.4, or one 0 or 1 a step")
    return Mask(preset=text)


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
