"""What step caches cost in quality and save in time on the sample, beside the control: fewer plain steps in the same time.

Every figure is of the same names from the same noise. What was measured is kept in a folder and not measured again.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import Always, Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Predictor, Taylor
from vitrify.runtime import PixelGenerationContext, load
from vitrify.runtime.compiled import CompiledPipeline
from vitrify.runtime.request import PromptTruncatedWarning
from vitrify.runtime.tuning.calibrate import calibrate
from vitrify.runtime.tuning.candidates import growing_mask
from vitrify.runtime.tuning.quality import Quality
from vitrify.runtime.tuning.requests import Requests

__all__ = ["CAREFUL", "FAST", "NAMES", "STEPS", "Setting", "Study", "judged_names", "settings"]

Array = npt.NDArray[Any]

STEPS = (28, 20, 50)
NAMES = 64
_SEARCHED = 96
"""The masks and MagCache's table come from these; the names that follow judge."""
_CALIBRATED = 16
_GUIDANCE = 2.0
_SEED = 5000
_TIMED = 2
_PICTURES = 6

_OUT = Taylor(1, "output")
_HELD = Hold("residual")
_GUARDS = Guards(warmup_steps=4, max_consecutive_skips=3)


def _mask(computed: Sequence[int], steps: int = 28) -> Mask:
    return Mask(tuple(step in computed for step in range(steps)))


FAST = Cache(_mask((0, 1, 2, 4, 6, 8, 11, 14, 17, 21, 25)), _OUT)
CAREFUL = Cache(_mask((0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 17, 20, 23, 26)), _OUT)


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


def _plain(steps: int) -> Setting:
    return Setting("plain steps", f"plain {steps}", steps, None)


def settings(table: Calibration) -> list[Setting]:
    """What is measured, beside plain steps. table: MagCache's."""
    of: dict[str, Predictor] = {
        "Taylor 1 of the output": _OUT,
        "Taylor 1 of the output, in sigma": Taylor(1, "output", "sigma"),
        "Taylor 2 of the output": Taylor(2, "output"),
        "Taylor 1 of the residual": Taylor(1, "residual"),
        "hold the residual": _HELD,
    }
    result: list[Setting] = []

    def add(
        family: str, what: str, decision: Any, *, steps: int = 28, predictors: Sequence[int] = (0,), guards: Any = None
    ) -> None:
        for index in predictors:
            said, predictor = list(of.items())[index]
            cache = Cache(decision, predictor, guards or Guards())
            result.append(Setting(family, f"{what}, {said}", steps, cache))

    add("searched mask", "mask fast", FAST.decision, predictors=(0, 1, 3, 4))
    add("searched mask", "mask careful", CAREFUL.decision, predictors=(0, 3))
    add("interval", "interval 3 after 3", Interval(3, 3), predictors=(0, 1, 2, 3, 4))
    add("interval", "interval 2 after 3", Interval(2, 3))
    add("interval", "interval 4 after 4", Interval(4, 4))
    add("interval", "interval 5 after 9 (taylorseer)", Interval(5, 9))
    add("interval", "mask preset fast", Mask(preset="fast"))
    add("interval", "mask preset medium", Mask(preset="medium"))
    for threshold, predictors in ((0.08, (4,)), (0.12, (4, 3, 0)), (0.2, (4, 0))):
        add("first block", f"first block {threshold}", FirstBlock(threshold), predictors=predictors, guards=_GUARDS)
    for threshold, predictors in ((0.06, (4,)), (0.12, (4, 0)), (0.24, (0,))):
        add("MagCache", f"MagCache {threshold}", Magnitude(table.ratios, threshold), predictors=predictors)
    for computed, warmup in ((14, 5), (18, 8)):  # Taylor alone at the time that first block and Taylor take together
        add("growing mask", f"growing mask of {computed}", growing_mask(28, computed, warmup, 1.2))
    for steps, computed in ((20, 8), (50, 18)):
        add("growing mask", f"growing mask of {computed}", growing_mask(steps, computed, 3, 1.2), steps=steps)
        add("interval", "interval 3 after 3", Interval(3, 3), steps=steps)
        add("interval", "interval 2 after 3", Interval(2, 3), steps=steps)
        add("first block", "first block 0.12", FirstBlock(0.12), steps=steps, predictors=(4,), guards=_GUARDS)
    return result


def judged_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names that the masks and the table come from, names that judge). names: all that the sample knows."""
    order = np.random.default_rng(7).permutation(len(names))
    shuffled = [names[i] for i in order]
    return shuffled[:_SEARCHED], shuffled[_SEARCHED : _SEARCHED + NAMES]


class Study:
    """Measures in stages, each of which goes on where it was broken off.

    folder: where pictures and figures are kept. names: all that the sample knows. say: takes lines on how it goes.
    """

    def __init__(self, artifact: Path, names: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self.searched, self.judged = judged_names(names)
        folder.mkdir(parents=True, exist_ok=True)
        self.pipe: CompiledPipeline = load(artifact, threads=1)
        self.artifact_id = self.pipe.artifact.id
        self._figures = folder / f"figures-{self.artifact_id[:16]}.json"
        self._known: dict[str, Any] = json.loads(self._figures.read_text()) if self._figures.is_file() else {}
        self.settings = settings(self._table())

    def draw(self) -> None:
        """Draw every name under every setting and compare with the uncached pictures."""
        for setting in self.settings:
            self._measured(setting)

    def time(self) -> None:
        """Time each setting's loop against an uncached one, in turns on the same requests. Leave the machine alone."""
        for setting in self.settings:
            if f"time of {setting.key}" in self._known:
                continue
            pairs = []
            for index in range(_TIMED):
                name, seed = [self.judged[index]], [_SEED + index]
                pairs.append(
                    [self._batch(name, seed, setting.steps, cache)[2] for cache in (setting.cache, None, setting.cache, None)]
                )
            seconds = np.array(pairs)
            ratio = float(np.median((seconds[:, 0] + seconds[:, 2]) / (seconds[:, 1] + seconds[:, 3])))
            self.say(f"{ratio:.3f} of the time: {setting.key}")
            self._keep(f"time of {setting.key}", ratio)

    def document(self) -> dict[str, Any]:
        """All figures, with each setting's control; draws the controls that are missing."""
        rows = []
        for setting in self.settings:
            ratio = self._known.get(f"time of {setting.key}")
            row = {**self._row(setting), "time_ratio": None if ratio is None else round(ratio, 4), "control": None}
            if ratio is not None:
                count = max(2, math.floor(ratio * setting.steps + 0.05))  # a twentieth of a step is the clock's noise
                row["control"] = self._row(_plain(count), setting.steps)
            rows.append(row)
        plain = []
        for steps in STEPS:
            controls = {row["control"]["steps"] for row in rows if row["control"] and row["steps"] == steps}
            for count in sorted({steps // 4, *controls}):
                row = {**self._row(_plain(count), steps), "of_steps": steps, "time_ratio": round(count / steps, 4)}
                plain.append(row)
        return {
            "artifact": self.artifact_id,
            "names": len(self.judged),
            "guidance": _GUIDANCE,
            "magcache_ratios": [round(ratio, 5) for ratio in self._table().ratios],
            "rows": rows + plain,
        }

    def pictures(self) -> tuple[list[str], list[tuple[str, Array]]]:
        """A few judged names, and rows of their pictures [names, height, width, 3]: uncached, masks, the control."""
        names, seeds = self.judged[:_PICTURES], [_SEED + i for i in range(_PICTURES)]
        shown = [("28 steps", 28, None), ("fast mask", 28, FAST), ("11 plain steps", 11, None), ("careful mask", 28, CAREFUL)]
        return names, [(said, self._drawn(names, seeds, steps, cache)[0]) for said, steps, cache in shown]

    # Inside.

    def _row(self, setting: Setting, against: int | None = None) -> dict[str, Any]:
        found = self._measured(setting, against)
        quality = Quality(np.array(found["psnr"]), np.array(found["ssim"]))
        figures = {
            f"{m}_{k}": round(v, 4) for m in ("psnr", "ssim") for k, v in (("mean", quality.mean(m)), ("p5", quality.low(m)))
        }
        return {
            "family": setting.family,
            "name": setting.name,
            "steps": setting.steps,
            "computed": round(found["computed"], 2),
            **figures,
        }

    def _measured(self, setting: Setting, against: int | None = None) -> dict[str, Any]:
        """Per name: psnr and ssim to the pictures of `against` (default: its own) plain steps."""
        steps = setting.steps if against is None else against
        key = setting.key if against is None else f"{setting.key} against {against}"
        if key not in self._known:
            references = self._references(steps)
            seeds = [_SEED + i for i in range(len(self.judged))]
            pictures, computed = self._drawn(self.judged, seeds, setting.steps, setting.cache)
            quality = Quality.of(pictures, references)
            found = {"psnr": quality.psnr.tolist(), "ssim": quality.ssim.tolist(), "computed": computed}
            self._keep(key, found)
            low = f"{quality.low('psnr'):.1f}), SSIM {quality.mean('ssim'):.4f} ({quality.low('ssim'):.3f})"
            self.say(f"{key}: {computed:.1f} computed, PSNR {quality.mean('psnr'):.2f} ({low}")
        result: dict[str, Any] = self._known[key]
        return result

    def _references(self, steps: int) -> Array:
        place = self.folder / f"uncached-{self.artifact_id[:16]}-{steps}.npy"
        if not place.is_file():
            seeds = [_SEED + i for i in range(len(self.judged))]
            partial = place.with_suffix(".part.npy")
            np.save(partial, self._drawn(self.judged, seeds, steps, None)[0])
            partial.rename(place)
        found: Array = np.load(place)
        return found

    def _drawn(self, names: Sequence[str], seeds: Sequence[int], steps: int, cache: Cache | None) -> tuple[Array, float]:
        """(pictures, mean computed steps). A decision of the first block's is each request's own: those go one by one."""
        at_once = 1 if cache is not None and cache.probes else 4
        found = [self._batch(n, s, steps, cache) for n, s in _chunks(names, seeds, at_once)]
        return np.concatenate([f[0] for f in found]), float(np.mean([f[1] for f in found]))

    def _batch(self, names: Sequence[str], seeds: Sequence[int], steps: int, cache: Cache | None) -> tuple[Array, float, float]:
        """(pictures, mean computed steps, seconds of the loop)."""
        context = PixelGenerationContext(
            prompt=list(names), negative_prompt=[""] * len(names), true_cfg_scale=_GUIDANCE, seed=list(seeds),
            num_inference_steps=steps, cache=Cache(Always()) if cache is None else cache,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncatedWarning)  # a few of the names are longer than the text
            request = self.pipe.prepare_inputs(context)
        latents = self.pipe.denoise(request)
        lanes = [len(lane) for lane in request.reports[-1].computed] if request.reports else [steps]
        return self.pipe.decode(latents, request.size), float(np.mean(lanes)), request.timings["loop"]

    def _table(self) -> Calibration:
        if "table" not in self._known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PromptTruncatedWarning)
                requests = Requests(self.pipe, self.searched[:_CALIBRATED], 28, 0)
                self._keep("table", list(calibrate(requests).ratios))
        return Calibration(tuple(self._known["table"]), _CALIBRATED)

    def _keep(self, key: str, value: Any) -> None:
        self._known[key] = value
        partial = self._figures.with_suffix(".part")
        partial.write_text(json.dumps(self._known))
        partial.rename(self._figures)


def _chunks(names: Sequence[str], seeds: Sequence[int], size: int) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
    for start in range(0, len(names), size):
        yield names[start : start + size], seeds[start : start + size]
