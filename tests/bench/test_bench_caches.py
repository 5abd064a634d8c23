"""The cache study: what is compared with what, and that it goes on where it was broken off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from vitrify.bench import cache_plots, cache_study
from vitrify.bench.cache_plots import grid, plot, table
from vitrify.bench.cache_settings import CAREFUL, FAST, Setting, settings
from vitrify.bench.cache_study import NAMES, STEPS, Study, judged_names
from vitrify.bench.cli import bench
from vitrify.engine.artifact.presets import Calibration
from vitrify.runtime.tuning.cost import computed_steps

TABLE = Calibration(tuple(1.0 + 0.01 * i for i in range(28)), 1)


def test_names_that_judge_were_not_searched_on() -> None:
    names = [f"name {i}" for i in range(300)]
    searched, judged = judged_names(names)
    assert len(judged) == NAMES == 64
    assert not set(searched) & set(judged)
    assert judged_names(names) == (searched, judged)


def test_settings_are_different_runs() -> None:
    found = settings(TABLE)
    assert len({s.key for s in found}) == len(found)
    assert {s.steps for s in found} == set(STEPS)
    assert all(s.cache is not None and s.cache.enabled for s in found)
    assert len(computed_steps(FAST, 28) or ()) == 10
    assert len(computed_steps(CAREFUL, 28) or ()) == 15


class Artificial:
    """Stands where a pipeline stands: a picture's error is the share of steps that were left out."""

    class artifact:  # noqa: N801
        id = "a" * 64


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cache_study, "load", lambda *_, **__: Artificial())
    monkeypatch.setattr(cache_study, "calibrate", lambda *_: TABLE)
    calls: list[tuple[int, Any, int]] = []

    def batch(self: Any, names: Any, seeds: Any, steps: int, cache: Any) -> Any:
        del self
        calls.append((steps, cache, len(names)))
        computed = steps if cache is None else len(computed_steps(cache, steps) or range(steps // 2))
        noise = np.stack([np.random.default_rng(seed).uniform(0, 0.9, (12, 12, 3)) for seed in seeds])
        return (noise * (0.9 + 0.1 * computed / 28)).astype(np.float32), float(computed)

    def step_seconds(self: Any, index: int, steps: int, cache: Any) -> Any:
        del self
        calls.append((steps, cache, 1))
        run = range(steps) if cache is None else computed_steps(cache, steps) or range(index, steps, 2)
        late = 0.02 if len(calls) % 3 else 0.0  # two rounds of three are disturbed, each somewhere else
        return np.array([0.01 * (s in run) + late * (s % 2 == len(calls) % 2) for s in range(steps)])

    monkeypatch.setattr(Study, "_batch", batch)
    monkeypatch.setattr(Study, "_step_seconds", step_seconds)

    def make() -> Study:
        return Study(tmp_path / "art", [f"name {i}" for i in range(200)], tmp_path / "kept", lambda _: None)

    make.calls = calls  # type: ignore[attr-defined]
    return make


def test_it_goes_on_where_it_was_broken_off(study: Any) -> None:
    first = study()
    first.draw()
    drawn = len(study.calls)
    assert drawn > 0
    again = study()
    again.draw()
    assert len(study.calls) == drawn
    again.time()
    timed = len(study.calls)
    assert timed > drawn
    study().time()
    assert len(study.calls) == timed


def test_the_control_is_the_largest_number_of_plain_steps_that_is_not_slower(study: Any) -> None:
    one = study()
    one.draw()
    one.time()
    document = one.document()
    rows = {(row["name"], row["steps"]): row for row in document["rows"]}
    fast = rows["growing mask of 11, corrected", 28]
    assert (fast["computed"], fast["time_ratio"]) == (11.0, pytest.approx(11 / 28, abs=1e-4))
    assert fast["control"]["name"] == "plain 11"
    assert fast["psnr_mean"] == fast["control"]["psnr_mean"]  # here a picture is as good as its steps are many
    assert fast["psnr_mean"] < rows["growing mask of 15, corrected", 28]["psnr_mean"] < 60
    one._known["time of " + Setting("", "growing mask of 11, corrected", 28, None).key] = 12.2 / 28
    rows = {(row["name"], row["steps"]): row for row in one.document()["rows"]}
    assert rows["growing mask of 11, corrected", 28]["control"]["name"] == "plain 12"
    json.dumps(document, allow_nan=False)
    lines = table(document).splitlines()
    line = next(line for line in lines[lines.index("## 28 steps") :] if line.startswith("| growing mask of 11, corrected |"))
    assert line.split(" | ")[1:3] == ["11.0", "0.393"]
    assert line.split(" | ")[5] == "plain 11"
    assert line.endswith(" | +0.0 dB |")
    assert {"## 20 steps", "## 28 steps", "## 50 steps"} <= set(lines)


def test_first_block_requests_go_one_by_one(study: Any) -> None:
    study().draw()
    sizes = {(cache is not None and cache.probes): set() for _, cache, _ in study.calls}
    for _, cache, size in study.calls:
        sizes[cache is not None and cache.probes].add(size)
    assert sizes == {True: {1}, False: {4}}


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
            return {"rows": [], "names": 1, "guidance": 2.0}

        def pictures(self) -> tuple[list[str], list[tuple[str, Any]]]:
            return ["cat"], [("plain", np.ones((1, 12, 12, 3)))]

    monkeypatch.setattr(cache_study, "Study", Recorded)
    monkeypatch.setattr(cache_plots, "plot", lambda rows, steps, path: path.write_text(f"{rows} {steps}"))
    (tmp_path / "names.txt").write_text("cat\n\nred apple\n")
    words = ["caches", str(tmp_path / "art"), "--names", str(tmp_path / "names.txt"), "--cache", str(tmp_path / "cache")]
    words += ["--out", str(tmp_path / "out"), *(["--stage", stage] if stage else [])]
    assert CliRunner().invoke(bench, words, catch_exceptions=False).exit_code == 0
    assert called == done
    written = sorted(p.name for p in (tmp_path / "out").glob("*"))
    assert written == (
        [] if stage else ["figures.md", "pictures.png", "quality-20.png", "quality-28.png", "quality-50.png", "study.json"]
    )


def test_pictures(study: Any, tmp_path: Path) -> None:
    one = study()
    one.draw()
    one.time()
    names, rows = one.pictures()
    grid(names, rows, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (96 + 24 * len(names), 14 + 24 * len(rows))
        tile = np.asarray(sheet)[14 : 14 + 24, 96 : 96 + 24]
    assert np.array_equal(tile[::2, ::2], (rows[0][1][0] * 255).round().astype(np.uint8))
    pytest.importorskip("matplotlib", reason="the extra `study` is not installed")
    plot(one.document()["rows"], 28, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 500
