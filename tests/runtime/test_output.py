"""Arrays, pictures and files that a request ends in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.engine.artifact import disk
from vitrify.engine.errors import RequestError, SpecError
from vitrify.runtime.context import DOCUMENTED_DEFAULTS, PixelGenerationContext, resolve
from vitrify.runtime.output import DiffusionPipelineOutput, Result, pictures, to_uint8

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
SETTINGS: dict[str, Any] = {"prompt": ["red apple", "Äpfel 🍎"], "num_images_per_prompt": 2, "height": 6, "width": 5, "seed": 9}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), "got float32[4, 6, 5, 3], expected uint8[batch, height, width, 3]"),
        (IMAGES[0], "got uint8[6, 5, 3]"),
        (IMAGES.transpose(0, 3, 1, 2), "got uint8[4, 3, 6, 5]"),
        ([1], "got list"),
        (None, "got NoneType"),
    ],
)
def test_another_form_of_output_is_named(images: Any, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        DiffusionPipelineOutput(images)


def test_rounding_is_that_of_diffusers() -> None:
    from diffusers.image_processor import VaeImageProcessor

    pixels = np.concatenate([np.linspace(0, 1, 3001), (np.arange(256) + 0.5) / 255]).clip(0, 1).astype(np.float32)
    pixels = np.resize(pixels, (1, 31, 35, 3))
    expected = np.asarray(VaeImageProcessor.numpy_to_pil(pixels)[0])
    assert np.array_equal(to_uint8(pixels)[0], expected)


def test_one_file_has_the_name_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "apple.png"
    result = Result(pictures(IMAGES[:1]), 9, SETTINGS)
    assert result.save(path) == [path]
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), IMAGES[0])
        text = dict(image.text)  # type: ignore[attr-defined]
    assert (text["prompt"], text["seed"]) == ("red apple", "9")
    assert json.loads(text["settings"]) == {**SETTINGS, "row": 0}


@pytest.mark.parametrize("as_array", [True, False])
def test_several_files_are_numbered(tmp_path: Path, as_array: bool) -> None:
    images: Any = IMAGES if as_array else pictures(IMAGES)
    paths = Result(images, [5, 6, 7, 8], SETTINGS).save(str(tmp_path / "out.png"))
    assert [path.name for path in paths] == ["out-1.png", "out-2.png", "out-3.png", "out-4.png"]
    said = []
    for path, expected in zip(paths, IMAGES, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), expected)
            said.append((image.text["prompt"], image.text["seed"]))  # type: ignore[attr-defined]
    assert said == [("red apple", "5"), ("red apple", "6"), ("Äpfel 🍎", "7"), ("Äpfel 🍎", "8")]
    assert sorted(tmp_path.iterdir()) == paths


def test_given_latents_and_embeddings_leave_no_prompt_and_no_seed() -> None:
    assert set(Result(pictures(IMAGES), None, {"prompt": None}).metadata(0)) == {"settings"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "apple.png"
    path.write_bytes(b"old")
    result = Result(pictures(IMAGES[:1]), 9, SETTINGS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(RequestError, match="cannot be written: No space left on device"):
            result.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    result.save(path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["apple.jpg", "apple", "apple.png.txt"])
def test_only_png(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"expected \.png"):
        Result(pictures(IMAGES), 9, SETTINGS).save(tmp_path / name)


def test_floats_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="files need output_type 'pil' or 'uint8'"):
        Result(IMAGES.astype(np.float32), 9, SETTINGS).save(tmp_path / "a.png")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be written: No such file"):
        Result(pictures(IMAGES[:1]), 9, SETTINGS).save(tmp_path / "absent" / "a.png")


def test_who_fills_an_unset_field() -> None:
    """The request, else the artifact, else the pipeline class, else the documented value."""
    context = PixelGenerationContext(height=1)
    artifact, pipeline = {"height": 2, "width": 2, "num_inference_steps": None}, {"width": 3, "num_inference_steps": 3}
    filled = [resolve(name, context, artifact, pipeline) for name in ("height", "width", "num_inference_steps", "guidance_scale")]
    assert filled == [1, 2, 3, 3.5]
    assert resolve("seed", context, artifact, pipeline) is None
    assert resolve("height", object(), {}, {}) == 1024
    assert dict(DOCUMENTED_DEFAULTS) == {
        "height": 1024, "width": 1024, "num_inference_steps": 50, "guidance_scale": 3.5, "true_cfg_scale": 1.0,
        "num_images_per_prompt": 1, "strength": 0.6, "output_format": "jpeg",
    }  # fmt: skip
