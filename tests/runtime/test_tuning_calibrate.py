"""MagCache's table against its definition over the toy's own functions, and the commands and names around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.runtime import toy_flux
from tests.runtime.toy_flux import Toy, make_toy
from vitrify.engine.artifact.presets import Calibration, Presets, Tuned, presets_path, read_presets, write_presets
from vitrify.engine.cache_policy import Cache, Interval, Magnitude, Mask
from vitrify.engine.errors import ArtifactError, RequestError
from vitrify.runtime.rotary import raster_ids, rotary_table
from vitrify.runtime.tuning import cli
from vitrify.runtime.tuning.calibrate import calibrate
from vitrify.runtime.tuning.requests import Requests, read_prompts

PROMPTS = ["red apple", "big cat", "house"]
STEPS = 5


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path / "art", defaults={"true_cfg_scale": 2.0, "negative_prompt": "green tree"})


def table_by_hand(toy: Toy, seed: int) -> list[float]:
    """γ from the reference pipeline's latents, the toy's functions, and loops over rows and tokens."""
    rotaries = [np.zeros((6, 3), np.float32), raster_ids(4, 4, 3)]
    text_rotary, image_rotary = (rotary_table(ids, toy_flux.AXES, 10_000.0) for ids in rotaries)
    ratios: list[list[float]] = [[] for _ in range(STEPS)]
    for i, prompt in enumerate(PROMPTS):
        noise = toy.pipe.noise(seed + i, 1, toy.pipe.size(16, 16))
        after = toy.reference([prompt], noise, negative=["green tree"], true_cfg_scale=2.0, steps=STEPS)
        times = toy.pipe.schedule(STEPS, toy.pipe.size(16, 16), None).timesteps
        for text in (prompt, "green tree"):
            pooled = toy_flux.clip(toy.pipe.tokenizers["tokenizer"].encode([text]))
            context = toy_flux.t5(toy.pipe.tokenizers["tokenizer_2"].encode([text], 6)) @ toy_flux._TEXT_IN
            norms = []
            for latents, time in zip([noise, *after[:-1]], times, strict=True):
                first = toy_flux.modulation(np.float32([time]) / np.float32(1000), pooled, None, 0.0)
                h0 = latents * np.float32(0.5)
                hn = toy_flux.rest(toy_flux.first(h0, context, text_rotary, image_rotary, first), text_rotary, image_rotary)
                norms.append([np.sqrt(sum(float(v) ** 2 for v in token)) for token in (hn - h0)[0].astype(np.float64)])
            for step in range(1, STEPS):
                ratios[step] += [now / (then + 1e-8) for now, then in zip(norms[step], norms[step - 1], strict=True)]
    return [1.0, *(sum(found) / len(found) for found in ratios[1:])]


@pytest.mark.parametrize("batch", [None, toy_flux.Dim("batch", 1, 1, 1)], ids=["one lane", "two lanes"])
def test_the_table_against_its_definition(tmp_path: Path, batch: Any) -> None:
    defaults = {"true_cfg_scale": 2.0, "negative_prompt": "green tree"}
    toy = make_toy(tmp_path / "art", batch=batch, defaults=defaults)
    done: list[int] = []
    found = calibrate(Requests(toy.pipe, PROMPTS, STEPS, 7), done.append)
    assert found.ratios == pytest.approx(table_by_hand(toy, 7), rel=1e-5)
    assert found.requests == 3
    assert done == [1, 2, 3]
    assert len(set(np.round(found.ratios, 3))) == STEPS  # or the comparison would show little


def run(toy: Toy, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The command closes the pipeline that it loads: the toy's own stays open."""
    monkeypatch.setattr(cli, "load", lambda *_, **__: make_toy(toy.artifact.root, defaults=toy.artifact.manifest.defaults).pipe)
    return CliRunner().invoke(cli.calibrate, ["ART", *words], catch_exceptions=False)


def test_the_command_writes_what_magcache_reads(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuned(Cache(Interval(3, 3)), 12)
    write_presets(toy.artifact, Presets(Calibration((9.0,), 1), tuned))
    file = tmp_path / "prompts.txt"
    file.write_text("red apple\n\n big cat\nred apple\nhouse\n")
    result = run(toy, monkeypatch, "--prompts", str(file), "--steps", "12", "--seed", "7")
    expected = calibrate(Requests(toy.pipe, PROMPTS, 12, 7))
    assert result.exit_code == 0
    assert f"{presets_path(toy.artifact.root)}: 12 steps, 3 prompts" in result.stdout
    assert read_presets(toy.artifact) == Presets(expected, tuned)
    drawn = toy.pipe("cat", seed=1, num_inference_steps=12, cache="magcache:0.5")
    by_hand = Cache(Magnitude(expected.ratios, 0.5), guards=drawn.cache.cache.guards)
    assert drawn.cache.cache == by_hand
    assert 0 < len(drawn.cache.computed[0]) < 12


def test_the_steps_are_the_artifacts_if_not_given(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("cat")
    assert run(toy, monkeypatch, "--prompts", str(file)).exit_code == 0
    found = read_presets(toy.artifact).calibration
    assert found is not None
    assert len(found.ratios) == toy_flux.DEFAULTS["num_inference_steps"]


def test_names_before_anything_was_measured(toy: Toy) -> None:
    root = toy.artifact.root
    with pytest.raises(RequestError, match=f"cache 'magcache:0.1': it needs a measured table; run `vitrify calibrate {root} "):
        toy.pipe("cat", cache="magcache:0.1")
    with pytest.raises(RequestError, match=f"cache 'tuned': nothing was tuned yet; run `vitrify tune {root} "):
        toy.pipe("cat", cache="tuned")
    assert toy.backend.runs == []


def test_tuned_serves_its_own_number_of_steps(toy: Toy) -> None:
    cache = Cache(Mask(tuple(s % 3 == 0 for s in range(12))))
    write_presets(toy.artifact, Presets(None, Tuned(cache, 12)))
    assert toy.pipe("cat", seed=1, num_inference_steps=12, cache="tuned").cache.cache == cache
    with pytest.raises(RequestError, match="it was tuned on requests of 12 steps, this one has 9; ask for 12, or run"):
        toy.pipe("cat", num_inference_steps=9, cache="tuned")


@pytest.mark.parametrize("name", ["magcache:x", "magcache:0.1:2", "tuned:1"])
def test_names_that_cannot_be_read(toy: Toy, name: str) -> None:
    write_presets(toy.artifact, Presets(Calibration((1.0, 1.0), 1), Tuned(Cache(Interval(3, 3)), 3)))
    with pytest.raises(RequestError, match=r"cannot be read; forms: .*magcache\[:threshold\]; tuned"):
        toy.pipe("cat", cache=name)


def test_another_artifacts_presets_stop_the_request_and_the_command(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_presets(toy.artifact, Presets(Calibration((1.0,), 1)))
    path.write_text(json.dumps({**json.loads(path.read_text()), "artifact": "f" * 64}))
    with pytest.raises(ArtifactError, match="measured on artifact ffff"):
        toy.pipe("cat", cache="magcache")
    file = tmp_path / "prompts.txt"
    file.write_text("cat")
    with pytest.raises(ArtifactError, match="measured on artifact ffff"):
        run(toy, monkeypatch, "--prompts", str(file))
    assert toy.backend.runs == []
    toy.pipe("cat", seed=1)  # who does not ask for it is not touched


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b" \n\n", "no prompts, expected one a line"), (b"cat\xff", "not UTF-8 text")],
)
def test_prompts_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_prompts(file)
