"""The cache study: what is compared with what, and that it goes on where it was broken off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from vitrify.bench import cache_plots, cache_study
from vitrify.bench.cache_plots import as_json, grid, plot, table
from vitrify.bench.cache_settings import CAREFUL, FAMILIES, FAST, PREDICTORS, STEPS, Setting, settings
from vitrify.bench.cache_study import NAMES, Study, judged_names
from vitrify.bench.cli import bench
from vitrify.engine.artifact.presets import Calibration
from vitrify.runtime.tuning.cost import computed_steps

DECISIONS = ("fast", "careful", "interval 3 after 3", "first block 0.12")
FEW = 6
"""Names that judge here: a request of four and one of two."""


def table_of(steps: int) -> Calibration:
    return Calibration((0.98,) * steps, 1)


def test_names_that_judge_were_not_searched_on() -> None:
    names = [f"name {i}" for i in range(300)]
    searched, judged = judged_names(names)
    assert len(judged) == NAMES == 64
    assert not set(searched) & set(judged)
    assert judged_names(names) == (searched, judged)


def test_every_kind_of_decision_meets_every_predictor() -> None:
    found = settings({steps: table_of(steps) for steps in STEPS})
    assert len({s.key for s in found}) == len(found)
    assert {s.family for s in found} == set(FAMILIES)
    assert all(s.cache is not None and s.cache.enabled for s in found)
    for steps in STEPS:
        for decision in {s.decision for s in found if s.steps == steps and s.family != "searched mask"}:
            assert {s.predictor for s in found if (s.decision, s.steps) == (decision, steps)} >= set(PREDICTORS)
    assert len(computed_steps(FAST, 28) or ()) == 10
    assert len(computed_steps(CAREFUL, 28) or ()) == 15


class Artificial:
    """Stands where a pipeline stands: a picture's error is the share of steps that were left out.

    Of what the first block decides, name i computes i more than half of the steps.
    """

    artifact = SimpleNamespace(id="a" * 64)

    def __init__(self) -> None:
        self.requests: list[tuple[int, Any, tuple[int, ...]]] = []

    def computed(self, name: int, steps: int, cache: Any) -> tuple[int, ...]:
        if cache is None or not cache.enabled:
            return tuple(range(steps))
        return computed_steps(cache, steps) or tuple(range(steps // 2 + name))

    def prepare_inputs(self, context: Any) -> Any:
        names = tuple(seed - 5000 for seed in context.seed)
        assert list(context.prompt) == [f"name {i}" for i in names]
        self.requests.append((context.num_inference_steps, context.cache, names))
        lanes = (self.computed(names[0], context.num_inference_steps, context.cache),)
        reports = [SimpleNamespace(computed=lanes)] if context.cache.enabled else []
        return SimpleNamespace(names=names, steps=context.num_inference_steps, cache=context.cache, reports=reports, size=None)

    def denoise(self, request: Any) -> Any:
        return request

    def decode(self, request: Any, size: None) -> Any:
        assert size is None
        noise = np.stack([np.random.default_rng(name).uniform(0, 0.9, (12, 12, 3)) for name in request.names])
        shares = np.array([len(self.computed(name, request.steps, request.cache)) for name in request.names]) / 50
        return (noise * (0.9 + 0.1 * shares[:, None, None, None])).astype(np.float32)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study of six names; called again, it goes on. A tenth of a first block's step is its probe."""
    pipe, timed = Artificial(), list[str]()
    monkeypatch.setattr(cache_study, "load", lambda *_, **__: pipe)
    monkeypatch.setattr(cache_study, "calibrate", lambda requests: table_of(requests.steps))
    monkeypatch.setattr(cache_study, "settings", lambda tables: [s for s in settings(tables) if s.decision in DECISIONS])
    monkeypatch.setattr(
        cache_study, "judged_names", lambda _: ([f"other {i}" for i in range(20)], [f"name {i}" for i in range(FEW)])
    )

    def loop(self: Study, setting: Setting) -> Any:
        del self
        timed.append(setting.key)
        computed = pipe.computed(0, setting.steps, setting.cache)
        probe = 0.001 if setting.cache is not None and setting.cache.probes else 0.0
        seconds = np.array([probe + 0.01 * (s in computed) for s in range(setting.steps)])
        # Most pairs run on a slower machine; a few loops are disturbed.
        return cache_study._Loop(seconds * (1 + len(timed) // 8 % 3) + 0.1 * (len(timed) % 7 == 0), computed)

    monkeypatch.setattr(Study, "_loop", loop)

    def make() -> Study:
        return Study(tmp_path / "art", [], tmp_path / "kept", lambda _: None)

    make.pipe, make.timed = pipe, timed  # type: ignore[attr-defined]
    return make


def test_it_goes_on_where_it_was_broken_off(study: Any) -> None:
    first = study()
    first.draw()
    drawn = len(study.pipe.requests)
    study().draw()
    assert len(study.pipe.requests) == drawn
    kept = first.folder / "20-005.json"
    figures = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: value for key, value in figures.items() if key != "20: fast, hold output"}))
    study().draw()
    assert len(study.pipe.requests) == drawn + 1
    assert json.loads(kept.read_text()) == figures
    study().time()
    timed = len(study.timed)
    assert timed > 0
    study().time()
    assert len(study.timed) == timed


def test_the_control_is_the_largest_number_of_plain_steps_that_is_not_slower(study: Any) -> None:
    one = study()
    one.draw()
    one.time()
    document = one.document()
    rows = {(row["decision"], row["predictor"], row["steps"]): row for row in document["rows"]}
    plain = {(row["steps"], row["of_steps"]): row for row in document["plain"]}
    fast = rows["fast", "Taylor 1 corrected", 28]
    assert (fast["computed"], fast["time_ratio"], fast["control"]) == (10.0, pytest.approx(10 / 28, abs=1e-4), 10)
    assert fast["psnr_mean"] == plain[10, 28]["psnr_mean"]  # here a picture is as good as its steps are many
    assert fast["psnr_mean"] < rows["careful", "Taylor 1 corrected", 28]["psnr_mean"] < 60
    # Each name computes as many as its first block decides; the loop's time is that of their mean number.
    first_block = rows["first block 0.12", "hold output", 20]
    assert first_block["computed"] == np.mean([10 + name for name in range(FEW)]) == 12.5
    assert first_block["time_ratio"] == pytest.approx((12.5 * 0.011 + 7.5 * 0.001) / 0.2, abs=1e-4)
    assert first_block["control"] == 14  # 14.5, rounded down
    assert document["loops"] == {"fast": pytest.approx(10 / 28, abs=1e-4), "careful": pytest.approx(15 / 28, abs=1e-4)}
    names = one._figures(next(s for s in one.settings if s.key == "20: first block 0.12, hold output")).quality
    assert list(names.psnr) == sorted(names.psnr)
    kept = one.folder / "times.json"
    times = json.loads(kept.read_text())
    kept.write_text(json.dumps({**times, "Taylor 1 corrected": [1.2, 0.01]}))
    rows = {(row["decision"], row["predictor"], row["steps"]): row for row in one.document()["rows"]}
    assert rows["fast", "Taylor 1 corrected", 28]["control"] == 12
    kept.write_text(json.dumps({**times, "Taylor 1 corrected": [2.0, 0.8]}))
    rows = {(row["decision"], row["predictor"], row["steps"]): row for row in one.document()["rows"]}
    slow = rows["fast", "Taylor 1 corrected", 28]
    assert (slow["time_ratio"], slow["control"]) == (pytest.approx(34.4 / 28, abs=1e-4), None)
    assert "| fast | 1.23: none |" in table({**document, "rows": [slow]})
    assert json.loads(as_json(document)) == document
    lines = table(document).splitlines()
    assert {"## 20 steps", "## 28 steps", "## 50 steps"} <= set(lines)
    part = lines[lines.index("## 28 steps") :]
    line = next(line for line in part if line.startswith("| fast, Taylor 1 corrected |"))
    assert line.split(" | ")[1:3] == ["10.0", "0.357"]
    assert line.split(" | ")[5] == "plain 10"
    assert line.endswith(" | +0.0 dB |")
    assert next(line for line in part if line.startswith("| fast | ")).startswith("| fast | 0.36: +0.0 | ")


def test_first_block_requests_go_one_by_one(study: Any) -> None:
    study().draw()
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    for _, cache, names in study.pipe.requests:
        sizes[cache.probes].add(len(names))
    assert sizes == {True: {1}, False: {4, 2}}


@pytest.mark.parametrize(
    ("stage", "done"), [("draw", ["draw"]), ("time", ["draw", "time"]), (None, ["draw", "time", "document"])]
)
def test_the_command_stops_after_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str | None, done: list[str]
) -> None:
    called: list[str] = []

    class Recorded:
        def __init__(self, artifact: Path, names: list[str], folder: Path, say: Any) -> None:
            assert (artifact, names, folder) == (tmp_path / "art", ["cat", "red apple"], tmp_path / "cache" / "caches")
            del say

        def draw(self) -> None:
            called.append("draw")

        def time(self) -> None:
            called.append("time")

        def document(self) -> dict[str, Any]:
            called.append("document")
            return {"rows": [], "plain": [], "names": 1, "guidance": 2.0, "steps": {}, "loops": {}}

        def pictures(self) -> tuple[list[str], list[tuple[str, Any]]]:
            return ["cat"], [("plain", np.ones((1, 12, 12, 3)))]

    monkeypatch.setattr(cache_study, "Study", Recorded)
    monkeypatch.setattr(cache_plots, "plot", lambda document, steps, path: path.write_text(f"{document} {steps}"))
    (tmp_path / "names.txt").write_text("cat\n\nred apple\n")
    words = ["caches", str(tmp_path / "art"), "--names", str(tmp_path / "names.txt"), "--cache", str(tmp_path / "cache")]
    words += ["--out", str(tmp_path / "out"), *(["--stage", stage] if stage else [])]
    assert CliRunner().invoke(bench, words, catch_exceptions=False).exit_code == 0
    assert called == done
    written = sorted(p.name for p in (tmp_path / "out").glob("*"))
    assert written == (
        [] if stage else ["figures.md", "pictures.png", "quality-20.png", "quality-28.png", "quality-50.png", "study.json"]
    )


def row(decision: str, predictor: str, time: float, psnr: float, **more: Any) -> dict[str, Any]:
    figures = {"psnr_mean": psnr, "psnr_p5": psnr - 9, "ssim_mean": 0.99, "ssim_p5": 0.95, "time_ratio": time, "computed": 9.0}
    return {"family": FAMILIES[0], "decision": decision, "predictor": predictor, "steps": 28, **figures, **more}


def test_pictures(study: Any, tmp_path: Path) -> None:
    names, rows = study().pictures()
    grid(names, rows, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (96 + 24 * len(names), 14 + 24 * len(rows))
        tile = np.asarray(sheet)[14 : 14 + 24, 96 : 96 + 24]
    assert np.array_equal(tile[::2, ::2], (rows[0][1][0] * 255).round().astype(np.uint8))
    pytest.importorskip("matplotlib", reason="the extra `study` is not installed")
    cached: Sequence[dict[str, Any]] = [
        row("fast", said, 0.4 + i / 10, 40.0 + i, control=10) for i, said in enumerate(("Taylor 1 corrected", "hold output"))
    ]
    plain = [row(f"plain {steps}", "", steps / 28, 30.0 + steps, steps=steps, of_steps=28) for steps in (9, 10, 14)]
    plot({"rows": cached, "plain": plain}, 28, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size[0] > 500
        assert np.asarray(image.convert("L")).std() > 10
