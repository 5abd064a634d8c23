"""`bench components`: what it says reads back, FLUX.1-dev's encoders stand in its case, and a wrong one gives no number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vitrify.bench.cases import COMPONENT_CASES
from vitrify.bench.components import (
    COMPONENTS,
    PRECISIONS,
    ComponentResult,
    _component,
    component_builds,
    measure_components,
)
from vitrify.bench.flux_configs import CLIP_TOKENS, flux_dev_configs, short_flux_dev_configs
from vitrify.bench.jobs import available_cpus
from vitrify.bench.measure import summarise
from vitrify.bench.prepare import prepare
from vitrify.bench.report import components_table
from vitrify.engine.errors import ParityError

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "emoji_flux"


def test_it_reads_back() -> None:
    seconds = summarise([1.0, 2.0])
    one = ComponentResult("vae", (1, 3, 64, 64), 1e-6, 2e-6, seconds, seconds, seconds)
    assert ComponentResult.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert components_table(COMPONENT_CASES["sample"], "fp32", [one]).row_count == 1


def test_encoders_are_those_of_flux_dev_but_for_vocabulary_and_depth() -> None:
    shape = COMPONENT_CASES["flux-dev"].shape
    clip, t5 = (json.loads((SAMPLE / name / "config.json").read_text()) for name in ("text_encoder", "text_encoder_2"))
    ours, theirs = short_flux_dev_configs(shape, clip=clip, t5=t5), flux_dev_configs(shape)
    assert ours.vae == theirs.vae
    assert {k for k in theirs.text_encoder if ours.text_encoder[k] != theirs.text_encoder[k]} == {"eos_token_id", "vocab_size"}
    assert {k for k in theirs.text_encoder_2 if ours.text_encoder_2[k] != theirs.text_encoder_2[k]} == {
        "num_layers",
        "vocab_size",
    }
    assert ours.text_encoder["max_position_embeddings"] == CLIP_TOKENS


def test_a_wrong_component_gives_no_number() -> None:
    right = np.ones((1, 4), np.float32)
    calls = {"vitrify": lambda: right * np.float32(1.001), "openvino": lambda: right}
    with pytest.raises(ParityError, match=r"vae: vitrify is off by 1\.0e-03, allowed 1e-04"):
        _component("vae", calls, dict.fromkeys(calls, right), 1e-4, rounds=2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_sample(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("openvino", reason="the extra bench-peers is not installed")
    one, threads = COMPONENT_CASES["sample"], available_cpus()
    prepared = prepare(one, tmp_path, SAMPLE, builds=component_builds(precision), threads=threads)
    found = measure_components(one, prepared, precision=precision, rounds=2, threads=threads)
    assert [result.name for result in found] == list(COMPONENTS)
    assert found[-1].shape == (1, 64, 64, 3)
