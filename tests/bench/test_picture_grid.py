"""Pictures of a run side by side, by the command; and a run that only prepares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.bench.test_bench_compare import BASE, PICTURE
from vitrify.bench import run as run_module
from vitrify.bench.cli import bench
from vitrify.bench.document import write_document
from vitrify.bench.peers.registry import PEERS, absence
from vitrify.engine.errors import RequestError

SAMPLE = Path(__file__).parents[2] / "examples" / "emoji_flux"


def test_rows_are_the_peers_asked_for(tmp_path: Path) -> None:
    write_document(tmp_path / "run.json", BASE)
    out = tmp_path / "new" / "grid.png"
    asked = ["report", str(tmp_path / "run.json"), "--pictures", str(out), "--peer", "vitrify+cache", "--peer", "eager-fp32"]
    assert CliRunner().invoke(bench, asked, catch_exceptions=False).exit_code == 0
    sheet = np.asarray(Image.open(out))
    height, width = PICTURE.shape[:2]
    rows = [sheet[at - 2 * height : at, -2 * width :][::2, ::2] for at in (len(sheet) - 2 * height, len(sheet))]
    assert np.array_equal(rows[0], PICTURE + 9)
    assert np.array_equal(rows[1], PICTURE)


def test_a_peer_without_pictures_is_named(tmp_path: Path) -> None:
    write_document(tmp_path / "run.json", BASE)
    asked = ["report", str(tmp_path / "run.json"), "--pictures", str(tmp_path / "grid.png"), "--peer", "other"]
    with pytest.raises(RequestError, match=r"no pictures of 'other'; it has those of eager-fp32, vitrify, vitrify\+cache"):
        CliRunner().invoke(bench, asked, catch_exceptions=False)


def test_prepare_only_builds_what_the_peers_need_and_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(run_module, "prepare", lambda one, *_, builds, **__: built.append((one.name, builds)))
    monkeypatch.setattr(run_module, "measure_limits", lambda _: pytest.fail("measured"))
    asked = ["run", "--case", "sample", "--case", "sample-pictures", "--prepare-only", "--sample", str(SAMPLE)]
    assert CliRunner().invoke(bench, [*asked, "--cache", str(tmp_path)], catch_exceptions=False).exit_code == 0
    needed = {
        kind: [build for spec in PEERS[kind].values() if absence(spec) is None for build in spec.builds]
        for kind in ("step", "picture")
    }
    assert built == [("sample", needed["step"]), ("sample-pictures", needed["picture"])]
