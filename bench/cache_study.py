"""What step caches cost in quality and save in time on the sample, beside the control: fewer plain steps in the same time.

Every figure is of the same names from the same noise. What was measured is kept in a folder, drawings name by name, and not
measured again.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.bench.cache_settings import CAREFUL, FAST, STEPS, Setting, plain_steps, settings
from vitrify.engine.artifact.presets import Calibration
from vitrify.engine.cache_policy import Always, Cache
from vitrify.runtime import PixelGenerationContext, load
from vitrify.runtime.compiled import CompiledPipeline
from vitrify.runtime.request import PreparedRequest, PromptTruncatedWarning
from vitrify.runtime.tuning.calibrate import calibrate
from vitrify.runtime.tuning.quality import Quality, compare
from vitrify.runtime.tuning.requests import Requests

__all__ = ["NAMES", "Study", "judged_names"]

Array = npt.NDArray[Any]

NAMES = 64
_SEARCHED = 96
"""The masks and MagCache's tables come from these; the names that follow judge."""
_CALIBRATED = 16
_GUIDANCE = 2.0
_SEED = 5000
_PLAIN = range(5, 37)
"""Numbers of plain steps that are drawn: the controls are among them."""
_AT_ONCE = 4
"""Names of a request."""
_TIMED = ("interval 3 after 3", "first block 0.12")
"""Decisions whose loops say what a step costs, with each predictor: a step does not know why it is computed or skipped."""
_PAIRS = 12
"""Of a cached and an uncached loop, in turns."""
_CHECKED = {"fast": FAST, "careful": CAREFUL}
_CLOCK_NOISE = 0.05
"""Of a step: by so much a control may be slower."""
_PICTURES = 6


def judged_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names that the masks and the tables come from, names that judge). names: all that the sample knows."""
    order = np.random.default_rng(7).permutation(len(names))
    shuffled = [names[i] for i in order]
    return shuffled[:_SEARCHED], shuffled[_SEARCHED : _SEARCHED + NAMES]


@dataclass(frozen=True)
class _Figures:
    """Of a setting over all names. computed: mean steps."""

    quality: Quality
    computed: float

    @staticmethod
    def of(found: Sequence[Sequence[float]]) -> _Figures:
        """found: (PSNR, SSIM, computed steps) of each name."""
        psnr, ssim, computed = np.array(found).T
        return _Figures(Quality(psnr, ssim), float(computed.mean()))


class Study:
    """Measures in stages, each of which goes on where it was broken off.

    folder: where figures and uncached pictures are kept. names: all that the sample knows. say: takes lines on how it goes.
    """

    def __init__(self, artifact: Path, names: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
        self.say = say
        self.searched, self.judged = judged_names(names)
        self.pipe: CompiledPipeline = load(artifact, threads=1)
        self.artifact_id = self.pipe.artifact.id
        self.folder = folder / self.artifact_id[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tables = {steps: self._table(steps) for steps in STEPS}
        self.settings = settings(self.tables)

    def draw(self) -> None:
        """Draw every name under every setting and under fewer plain steps, and compare with its uncached picture."""
        for steps in STEPS:
            wanted = [setting for setting in self.settings if setting.steps == steps]
            for names in _chunks(len(self.judged)):
                self._draw_names(names, steps, wanted)
        for names in _chunks(len(self.judged)):
            self._draw_plain(names)

    def time(self) -> None:
        """Time the steps of each kind against uncached ones, in loops in turns, on one request. Leave the machine alone.

        Kept are a computed step and a skipped one, ÷ an uncached one; and as a check of what follows from them two whole loops.
        """
        known = _read(self._times)
        for setting in self.settings:
            if setting.steps == STEPS[0] and setting.decision in _TIMED and _kind(setting) not in known:
                known[_kind(setting)] = self._step_ratios(setting)
                self.say("computed {:.3f}, skipped {:.4f} of an uncached step: ".format(*known[_kind(setting)]) + _kind(setting))
                _write(self._times, known)
        for name, cache in _CHECKED.items():
            if name not in known:
                setting = Setting("", name, "", STEPS[0], cache)
                ratios = [cached.seconds.sum() / plain.seconds.sum() for plain, cached in self._pairs(setting)]
                known[name] = float(np.median(ratios))
                self.say(f"{known[name]:.3f} of the time by whole loops: {name}")
                _write(self._times, known)

    def document(self) -> dict[str, Any]:
        """All figures.

        rows: of the settings; control: the largest number of plain steps that is not slower; None where no cache is not slower.
        plain: of plain steps.
        steps: a computed step and a skipped one of each kind, ÷ an uncached one. loops: by the clock ÷ an uncached loop.
        """
        times = _read(self._times)
        rows = []
        for setting in self.settings:
            found, (computed, skipped) = self._figures(setting), times[_kind(setting)]
            worth = found.computed * computed + (setting.steps - found.computed) * skipped  # of uncached steps
            count = max(math.floor(worth + _CLOCK_NOISE), _PLAIN.start)
            control = None if count >= setting.steps or found.computed == setting.steps else count
            rows.append({**_row(setting, found), "time_ratio": round(worth / setting.steps, 4), "control": control})
        plain = []
        for steps in STEPS:
            for count in (count for count in _PLAIN if count < steps):
                row = _row(plain_steps(count), self._plain_figures(count, steps))
                plain.append({**row, "of_steps": steps, "time_ratio": round(count / steps, 4)})
        return {
            "artifact": self.artifact_id,
            "names": len(self.judged),
            "guidance": _GUIDANCE,
            "steps": {_kind(s): [round(ratio, 4) for ratio in times[_kind(s)]] for s in self.settings},
            "loops": {name: round(times[name], 4) for name in _CHECKED},
            "magcache_ratios": {str(steps): [round(r, 5) for r in table.ratios] for steps, table in self.tables.items()},
            "rows": rows,
            "plain": plain,
        }

    def pictures(self) -> tuple[list[str], list[tuple[str, Array]]]:
        """A few judged names, and rows of their pictures [names, height, width, 3]: uncached, cached, as many plain steps."""
        names = range(_PICTURES)
        shown = [("28 steps", 28, None), ("fast, 10 of 28", 28, FAST), ("10 plain steps", 10, None)]
        shown += [("careful, 15", 28, CAREFUL), ("15 plain steps", 15, None)]
        return self.judged[:_PICTURES], [(said, self._drawn(names, steps, cache)[0]) for said, steps, cache in shown]

    # Drawing.

    def _draw_names(self, names: Sequence[int], steps: int, wanted: Sequence[Setting]) -> None:
        places = [self.folder / f"{steps}-{index:03}.json" for index in names]
        known: list[dict[str, Any]] = [_read(place) for place in places]
        missing = [setting for setting in wanted if any(setting.key not in one for one in known)]
        if not missing:
            return
        started = time.perf_counter()
        references = self._references(names, steps)
        for setting in missing:
            pictures, computed = self._drawn(names, steps, setting.cache)
            for one, picture, reference, count in zip(known, pictures, references, computed, strict=True):
                one[setting.key] = [*compare(picture, reference), count]
        for place, one in zip(places, known, strict=True):
            _write(place, one)
        self.say(f"{steps} steps, names from {names[0]}: {len(missing)} settings, {time.perf_counter() - started:.0f} s")

    def _draw_plain(self, names: Sequence[int]) -> None:
        places = [self.folder / f"plain-{index:03}.json" for index in names]
        known: list[dict[str, Any]] = [_read(place) for place in places]
        missing = [count for count in _PLAIN if any(str(count) not in one for one in known)]
        for count in missing:
            pictures, _ = self._drawn(names, count, None)
            for one in known:
                one[str(count)] = {}
            for steps in STEPS:
                for one, picture, reference in zip(known, pictures, self._references(names, steps), strict=True):
                    one[str(count)][str(steps)] = compare(picture, reference)
        if missing:
            for place, one in zip(places, known, strict=True):
                _write(place, one)
            self.say(f"plain steps, names from {names[0]}")

    def _references(self, names: Sequence[int], steps: int) -> Array:
        """The uncached pictures of judged names."""
        places = [self.folder / f"uncached-{steps}-{index:03}.npy" for index in names]
        if not all(place.is_file() for place in places):
            for place, picture in zip(places, self._drawn(names, steps, None)[0], strict=True):
                partial = place.with_suffix(".part.npy")
                np.save(partial, picture)
                partial.rename(place)
        return np.stack([np.load(place) for place in places])

    def _drawn(self, names: Sequence[int], steps: int, cache: Cache | None) -> tuple[Array, list[float]]:
        """(pictures of judged names, mean computed steps of each). What the first block decides is each request's own."""
        alone = cache is not None and cache.probes
        requests = [self._request(some, steps, cache) for some in ([[name] for name in names] if alone else [list(names)])]
        pictures, computed = [], list[float]()
        for request in requests:
            latents = self.pipe.denoise(request)
            pictures.append(self.pipe.decode(latents, request.size))
            lanes = [len(lane) for lane in request.reports[-1].computed] if request.reports else [steps]
            computed += [float(np.mean(lanes))] * len(pictures[-1])
        return np.concatenate(pictures), computed

    def _request(self, names: Sequence[int], steps: int, cache: Cache | None) -> PreparedRequest:
        context = PixelGenerationContext(
            prompt=[self.judged[name] for name in names], negative_prompt=[""] * len(names), true_cfg_scale=_GUIDANCE,
            seed=[_SEED + name for name in names], num_inference_steps=steps, cache=Cache(Always()) if cache is None else cache,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncatedWarning)  # a few of the names are longer than the text
            return self.pipe.prepare_inputs(context)

    def _table(self, steps: int) -> Calibration:
        place = self.folder / f"magcache-{steps}.json"
        if not place.is_file():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PromptTruncatedWarning)
                requests = Requests(self.pipe, self.searched[:_CALIBRATED], steps, 0)
                _write(place, list(calibrate(requests).ratios))
        return Calibration(tuple(_read(place)), _CALIBRATED)

    # Reading what was measured.

    def _figures(self, setting: Setting) -> _Figures:
        files = (_read(self.folder / f"{setting.steps}-{index:03}.json") for index in range(len(self.judged)))
        return _Figures.of([one[setting.key] for one in files])

    def _plain_figures(self, count: int, steps: int) -> _Figures:
        """Of `count` plain steps against the pictures of `steps`."""
        files = (_read(self.folder / f"plain-{index:03}.json") for index in range(len(self.judged)))
        return _Figures.of([[*one[str(count)][str(steps)], count] for one in files])

    # Timing.

    @property
    def _times(self) -> Path:
        return self.folder / "times.json"

    def _pairs(self, setting: Setting) -> list[tuple[_Loop, _Loop]]:
        """(uncached, under the setting) of the first judged name, in turns; the first of them warms up."""
        pairs = [(self._loop(plain_steps(setting.steps)), self._loop(setting)) for _ in range(1 + _PAIRS)]
        return pairs[1:]

    def _step_ratios(self, setting: Setting) -> tuple[float, float]:
        """(a computed step, a skipped one) ÷ an uncached one, the medians over pairs of loops."""
        ratios = []
        for plain, cached in self._pairs(setting):
            is_computed = np.isin(np.arange(setting.steps), cached.computed)
            step = np.median(plain.seconds)
            ratios.append((np.median(cached.seconds[is_computed]) / step, cached.seconds[~is_computed].mean() / step))
        computed, skipped = np.median(ratios, axis=0)
        return float(computed), float(skipped)

    def _loop(self, setting: Setting) -> _Loop:
        request = self._request([0], setting.steps, setting.cache)
        marks: list[float] = []
        self.pipe.denoise(request, observe=lambda *_: marks.append(time.perf_counter()))
        between = np.diff(marks)
        computed = request.reports[-1].computed[0] if request.reports else range(setting.steps)
        return _Loop(np.append(request.timings["loop"] - between.sum(), between), tuple(computed))


@dataclass(frozen=True)
class _Loop:
    """By the clock. seconds: of each step; the first has what lies before it and after the last. computed: which steps were."""

    seconds: Array
    computed: tuple[int, ...]


def _kind(setting: Setting) -> str:
    """What the time of its steps depends on."""
    return f"{setting.predictor}{', first block' if setting.cache is not None and setting.cache.probes else ''}"


def _row(setting: Setting, found: _Figures) -> dict[str, Any]:
    quality = found.quality
    figures = {f"{m}_{k}": round(v, 4) for m in ("psnr", "ssim") for k, v in (("mean", quality.mean(m)), ("p5", quality.low(m)))}
    names = {"family": setting.family, "decision": setting.decision, "predictor": setting.predictor}
    return {**names, "steps": setting.steps, "computed": round(found.computed, 2), **figures}


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, _AT_ONCE):
        yield range(start, min(start + _AT_ONCE, count))


def _read(place: Path) -> Any:
    return json.loads(place.read_text()) if place.is_file() else {}


def _write(place: Path, value: Mapping[str, Any] | Sequence[float]) -> None:
    partial = place.with_suffix(".part")
    partial.write_text(json.dumps(value))
    partial.rename(place)
