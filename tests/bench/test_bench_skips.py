"""`bench skips`: every kind runs what it says and nothing else, and its numbers read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vitrify.bench.measure import summarise
from vitrify.bench.report import skips_table
from vitrify.bench.skips import KINDS, Skip, measure_skips
from vitrify.export.compile import compile_pipeline
from vitrify.export.options import ExportOptions, Range

ROOT = Path(__file__).parents[2]


def test_the_limits_read_back_and_judge() -> None:
    one = Skip("first block, hold", ("embed",), *(summarise([x]) for x in (1.0, 0.1, 0.009, 0.009, 0.5)), 0.01)
    assert Skip.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.kept
    assert not replace(one, probe=summarise([0.011])).kept
    assert not replace(one, beside=summarise([0.011])).kept
    assert skips_table("sample", [one]).row_count == 1


@pytest.mark.slow
def test_what_runs_in_each_kind(tmp_path: Path) -> None:
    """On the sample; whether it stays within the limits is said of flux-146m."""
    (size, text) = (Range(64, 64, 64), Range(16, 16, 16))
    options = ExportOptions(height=size, width=size, batch=Range(1, 1, 2), max_sequence_length=text, parity=False)
    compile_pipeline(ROOT / "examples" / "emoji_flux", tmp_path / "artifact", options)
    found = measure_skips(tmp_path / "artifact", rounds=1, threads=1)
    assert [one.kind for one in found] == [kind.name for kind in KINDS]
    ran = {"output": (), "total residual": ("embed", "finish"), "first block": ("embed", "first", "finish")}
    for one in found:
        assert one.segments == ran[one.kind.split(",")[0]]
        assert (one.probe is not None) == one.kind.startswith("first block")
        assert 0 < one.beside.median < one.skipped.median / one.computed.median + 1e-9
        assert one.skipped.median < one.computed.median
