"""`vitrify generate` over the toy pipeline: files, names, metadata, what it prints, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.runtime.toy_flux import Toy, make_toy
from vitrify.engine.errors import RequestError
from vitrify.runtime import cli

Run = Callable[..., Result]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path / "art")


@pytest.fixture
def run(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Run:
    loaded: list[Any] = []

    def load(path: Path, **options: Any) -> Any:
        loaded.append((path, options))
        return toy.pipe

    monkeypatch.setattr(cli, "load", load)

    def call(*arguments: str, **kwargs: Any) -> Result:
        result = CliRunner().invoke(cli.generate, ["ART", *arguments], catch_exceptions=False, **kwargs)
        result.loaded = loaded  # type: ignore[attr-defined]
        return result

    return call


def text_of(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.text)  # type: ignore[attr-defined]


def test_one_picture(run: Run, toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "apple.png"
    result = run("red apple", "-o", str(path), "--steps", "2", "--seed", "5", "--height", "8")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{path}: seed 5; encode ")
    fresh = make_toy(tmp_path / "fresh").pipe("red apple", num_inference_steps=2, seed=5, height=8)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(fresh.images[0]))
    text = text_of(path)
    assert (text["prompt"], text["seed"]) == ("red apple", "5")
    assert json.loads(text["settings"]) == {**fresh.settings, "row": 0}
    options = {"keep": "none", "kernels": "auto", "threads": None, "verify": "load"}
    assert result.loaded == [(Path("ART"), options)]  # type: ignore[attr-defined]
    assert toy.backend.open_paths() == set()


def test_every_option_arrives(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    result = run(
        *(
            "cat",
            "dog",
            "-o",
            str(path),
            "--num-images",
            "2",
            "--true-cfg-scale",
            "2.5",
            "--negative-prompt",
            "",
            "--width",
            "12",
        ),
        *("--max-sequence-length", "7", "--guidance-scale", "1.5", "--steps", "1", "--keep", "all", "--kernels", "portable"),
        *("--threads", "2", "--verify", "full"),
    )
    assert result.exit_code == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["out-1.png", "out-2.png", "out-3.png", "out-4.png"]
    texts = [text_of(tmp_path / f"out-{i}.png") for i in (1, 2, 3, 4)]
    assert [text["prompt"] for text in texts] == ["cat", "cat", "dog", "dog"]
    assert len({text["seed"] for text in texts}) == 1
    settings = json.loads(texts[3]["settings"])
    expected = {
        "negative_prompt": ["", ""], "true_cfg_scale": 2.5, "num_images_per_prompt": 2, "width": 12, "max_sequence_length": 7,
        "num_inference_steps": 1, "row": 3,
    }  # fmt: skip
    assert {key: settings[key] for key in expected} == expected
    options = {"keep": "all", "kernels": "portable", "threads": 2, "verify": "full"}
    assert result.loaded[0][1] == options  # type: ignore[attr-defined]


def test_quiet(run: Run, tmp_path: Path) -> None:
    result = run("cat", "-q", "-o", str(tmp_path / "a.png"))
    assert (result.output, result.exit_code) == ("", 0)


def test_a_cut_prompt_is_said(run: Run, tmp_path: Path) -> None:
    result = run("red green blue apple cat dog house tree", "-o", str(tmp_path / "a.png"))
    assert result.exit_code == 0
    assert "warning: prompt too long for tokenizer: 10 tokens, 8 fit; dropped: 'house tree'" in result.stderr


def test_quiet_keeps_the_warnings(run: Run, tmp_path: Path) -> None:
    result = run("red green blue apple cat dog house tree", "-q", "-o", str(tmp_path / "a.png"))
    assert result.stdout == ""
    assert [line[:30] for line in result.stderr.splitlines()] == ["warning: prompt too long for t"] * 2


def test_quiet_keeps_the_caches_warning(run: Run, tmp_path: Path) -> None:
    result = run("cat", "-q", "-o", str(tmp_path / "a.png"), "--steps", "12", "--cache", "first-block:0")
    assert (result.stdout, result.stderr.count("warning: the cache never fired")) == ("", 1)


def test_without_a_prompt(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert "Missing argument 'PROMPT...'" in result.output


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_only_png(run: Run, tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"expected \.png"):
        run("cat", "-o", str(tmp_path / name))
    assert list(tmp_path.glob("a*g")) == []


def test_a_missing_folder_is_found_before_drawing(run: Run, toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="create it first"):
        run("cat", "-o", str(tmp_path / "absent" / "a.png"))
    assert toy.backend.runs == []


def test_a_bad_request_leaves_no_file(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="height=1000"):
        run("cat", "-o", str(tmp_path / "a.png"), "--height", "1000")
    assert list(tmp_path.glob("*.png")) == []


def test_a_cache(run: Run, tmp_path: Path) -> None:
    """By name, with another predictor and other guards; what it did is printed."""
    path = tmp_path / "apple.png"
    arguments = ("cat", "-o", str(path), "--steps", "12", "--seed", "5")
    result = run(
        *arguments, "--cache", "first-block:1000", "--cache-predict", "taylor1", "--cache-guard", "max_consecutive_skips=4"
    )
    guards = "Guards(warmup_steps=4, max_consecutive_skips=4, only_above_steps=8)"
    assert f"cache: FirstBlock(threshold=1000.0) + Taylor(order=1, along=step) + {guards}" in result.stdout
    assert "computed 5 of 12 steps, skipped 7: CCCC----C---" in result.stdout
    assert json.loads(text_of(path)["settings"])["cache"].startswith("FirstBlock(threshold=1000.0)")


def test_a_cache_that_never_fires(run: Run, tmp_path: Path) -> None:
    """Said once."""
    output = run("cat", "-o", str(tmp_path / "cat.png"), "--steps", "12", "--cache", "first-block:0").output
    assert output.count("warning: the cache never fired") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache-predict", "hold"), "cannot act without --cache"),
        (("--cache-guard", "max_skips=1"), "cannot act without --cache"),
        (("--cache", "none", "--cache-predict", "hold"), "predictor and guards cannot act"),
        (("--cache", "quick"), "cache 'quick' is unknown"),
        (("--cache", "interval", "--cache-guard", "skips=2"), "guard 'skips=2' cannot be read"),
        (("--cache", "interval", "--cache-guard", "max_skips=-2"), "guard 'max_skips=-2' cannot be read"),
    ],
)
def test_caches_that_cannot_act(run: Run, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run("cat", "-o", str(tmp_path / "cat.png"), *options)
