"""A real artifact, used as its owner would: loaded, moved, read-only, from the command line, from threads, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from vitrify.engine.cli import main
from vitrify.engine.errors import RequestError
from vitrify.runtime import load

if TYPE_CHECKING:
    from tests.e2e.conftest import Case

CALL: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "output_type": "uint8"}


@pytest.fixture
def moved(sample: Case, tmp_path: Path) -> Iterator[Path]:
    """The sample's artifact elsewhere, without permission to write."""
    folder = tmp_path / "elsewhere" / "moved"
    shutil.copytree(sample.artifact, folder)
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in paths:
        path.chmod(0o755)


@pytest.mark.parametrize("keep", ["all", "denoiser", "none"])
def test_a_moved_read_only_artifact(sample: Case, moved: Path, keep: Any) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in moved.rglob("*"))
    with load(moved, keep=keep, verify="full") as pipe:
        for _ in range(2):
            assert np.array_equal(pipe("red apple", **CALL).images, sample.pipe("red apple", **CALL).images)
        kept = {"all": 5, "denoiser": 4, "none": 0}[keep]
        assert len(pipe.transformer.model.open_segments) == kept
    assert sorted((path, path.stat().st_mtime_ns) for path in moved.rglob("*")) == before


def test_seed_draws_the_picture_of_diffusers(sample: Case) -> None:
    """No latents are handed over: the noise itself is drawn twice."""
    import torch

    for seed in (5, [5, 6]):
        generators = [torch.Generator("cpu").manual_seed(s) for s in (seed if isinstance(seed, list) else [seed])]
        call: dict[str, Any] = {"num_inference_steps": 4, "num_images_per_prompt": 2, "true_cfg_scale": 1.0}
        expected = sample.reference(
            "red apple", **call, height=64, width=64, max_sequence_length=16, output_type="np",
            generator=generators if isinstance(seed, list) else generators[0],
        ).images  # fmt: skip
        got: Any = sample.pipe("red apple", **call, seed=seed, output_type="np").images
        assert (np.abs(np.round(got * 255) - np.round(expected * 255)) <= 1).mean() >= 0.999


def test_the_command_line(sample: Case, tmp_path: Path) -> None:
    path = tmp_path / "apple.png"
    assert main(["generate", str(sample.artifact), "red apple", "-o", str(path), "--steps", "2", "--seed", "3", "-q"]) == 0
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(sample.pipe("red apple", **CALL).images[0]))
        assert image.text["prompt"] == "red apple"  # type: ignore[attr-defined]
    assert main(["generate", str(sample.artifact), "red apple", "-o", str(path), "--height", "1000"]) == 5
    assert main(["generate", str(tmp_path), "red apple", "-o", str(path)]) == 3


def test_a_size_outside_names_the_nearest(sample: Case) -> None:
    with pytest.raises(RequestError, match=r"height=60 is outside .*: 32\.\.128 in steps of 8; .* or ask for 56 or 64"):
        sample.pipe("cat", height=60)


def test_threads(sample: Case) -> None:
    """Two requests of other dims and two of the same, at once, over one loaded pipeline."""
    requests: list[dict[str, Any]] = [
        {"prompt": "red apple", **CALL},
        {"prompt": "pizza", **CALL},
        {"prompt": "rocket", **CALL, "true_cfg_scale": 1.0},
        {"prompt": "penguin", **CALL, "height": 96},
    ]
    expected = [sample.pipe(**request).images for request in requests]
    got: dict[int, Any] = {}
    barrier = threading.Barrier(len(requests), timeout=60)

    def meet(*_: Any) -> None:
        barrier.wait()

    def run(i: int) -> None:
        got[i] = sample.pipe(**requests[i], callback_on_step_end=meet).images

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for i, images in enumerate(expected):
        assert np.array_equal(got[i], images), requests[i]


def test_without_the_compilers_libraries(sample: Case, tmp_path: Path) -> None:
    """torch and its company are made unimportable; a request still runs from load to file."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "torch onnx onnxscript onnx_ir triton diffusers transformers safetensors".split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from vitrify.runtime import load
load(sys.argv[1])("red apple", num_inference_steps=1, seed=1).save(sys.argv[2])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, str(sample.artifact), str(tmp_path / "a.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
