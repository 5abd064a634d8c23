"""What step caches cost in quality and save in time on the sample, beside the control: fewer plain steps in the same time.

Every figure is of the same names from the same noise. What was measured is kept in a folder and not measured again.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.bench.cache_settings import CAREFUL, FAST, Setting, plain_steps, settings
from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import Always, Cache
from vitrify.runtime import PixelGenerationContext, load
from vitrify.runtime.compiled import CompiledPipeline
from vitrify.runtime.request import PreparedRequest, PromptTruncatedWarning
from vitrify.runtime.tuning.calibrate import calibrate
from vitrify.runtime.tuning.quality import Quality
from vitrify.runtime.tuning.requests import Requests

__all__ = ["NAMES", "STEPS", "Study", "judged_names"]

Array = npt.NDArray[Any]

STEPS = (28, 20, 50)
NAMES = 64
_SEARCHED = 96
"""The masks and MagCache's table come from these; the names that follow judge."""
_CALIBRATED = 16
_GUIDANCE = 2.0
_SEED = 5000
_TIMED_PROBED = 6
_ROUNDS = 3
_PICTURES = 6


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
        """Time each setting's loop against an uncached one, in turns on the same requests. Leave the machine alone.

        Of each of a loop's steps the shortest of a few rounds counts. What computes differs from request to request where the
        first block decides: more requests are timed then.
        """
        for setting in self.settings:
            if f"time of {setting.key}" in self._known:
                continue
            cached = plain = 0.0
            for index in range(_TIMED_PROBED if setting.cache is not None and setting.cache.probes else 1):
                rounds = [
                    (self._step_seconds(index, setting.steps, setting.cache), self._step_seconds(index, setting.steps, None))
                    for _ in range(_ROUNDS)
                ]
                cached += float(np.min([r[0] for r in rounds], axis=0).sum())
                plain += float(np.min([r[1] for r in rounds], axis=0).sum())
            self.say(f"{cached / plain:.3f} of the time: {setting.key}")
            self._keep(f"time of {setting.key}", cached / plain)

    def document(self) -> dict[str, Any]:
        """All figures, with each setting's control; draws the controls that are missing."""
        rows = []
        for setting in self.settings:
            ratio = self._known.get(f"time of {setting.key}")
            row = {**self._row(setting), "time_ratio": None if ratio is None else round(ratio, 4), "control": None}
            if ratio is not None:
                count = max(2, math.floor(ratio * setting.steps + 0.05))  # a twentieth of a step is the clock's noise
                row["control"] = self._row(plain_steps(count), setting.steps)
            rows.append(row)
        plain = []
        for steps in STEPS:
            controls = {row["control"]["steps"] for row in rows if row["control"] and row["steps"] == steps}
            for count in sorted({steps // 4, *controls}):
                row = {**self._row(plain_steps(count), steps), "of_steps": steps, "time_ratio": round(count / steps, 4)}
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
        shown = [("28 steps", 28, None), ("fast, 10 of 28", 28, FAST), ("10 plain steps", 10, None), ("careful, 15", 28, CAREFUL)]
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

    def _batch(self, names: Sequence[str], seeds: Sequence[int], steps: int, cache: Cache | None) -> tuple[Array, float]:
        """(pictures, mean computed steps)."""
        request = self._request(names, seeds, steps, cache)
        latents = self.pipe.denoise(request)
        lanes = [len(lane) for lane in request.reports[-1].computed] if request.reports else [steps]
        return self.pipe.decode(latents, request.size), float(np.mean(lanes))

    def _step_seconds(self, index: int, steps: int, cache: Cache | None) -> Array:
        """Seconds of the steps in the loop of a judged name; what lies before the first and after the last is one more."""
        request = self._request([self.judged[index]], [_SEED + index], steps, cache)
        marks: list[float] = []
        self.pipe.denoise(request, observe=lambda *_: marks.append(time.perf_counter()))
        between = np.diff(marks)
        return np.append(between, request.timings["loop"] - between.sum())

    def _request(self, names: Sequence[str], seeds: Sequence[int], steps: int, cache: Cache | None) -> PreparedRequest:
        context = PixelGenerationContext(
            prompt=list(names), negative_prompt=[""] * len(names), true_cfg_scale=_GUIDANCE, seed=list(seeds),
            num_inference_steps=steps, cache=Cache(Always()) if cache is None else cache,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncatedWarning)  # a few of the names are longer than the text
            return self.pipe.prepare_inputs(context)

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
