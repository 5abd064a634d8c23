"""Random pipeline folders: whole for diffusers, the same every time, sane in scale, sharded without a trace in the values."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.bench.fake_peers import TINY
from vitrify.bench.random_weights import write_random_weights
from vitrify.bench.sources import check_sample, source_key, weight_bytes, write_source
from vitrify.engine.errors import RequestError

SAMPLE = Path(__file__).parents[2] / "examples" / "emoji_flux"
SHAPES = {"a.weight": (64, 256), "a.bias": (64,), "norm.weight": (300,), "b.weight": (32, 8, 3, 3), "shared.weight": (100, 16)}


def read(path: Path) -> dict[str, np.ndarray]:
    import torch

    with safe_open(path, framework="pt") as stored:
        return {name: stored.get_tensor(name).to(torch.float32).numpy() for name in stored.keys()}  # noqa: SIM118 - no mapping


def test_a_source_is_whole_for_diffusers(tmp_path: Path) -> None:
    import torch
    from diffusers import FluxPipeline

    folder = tmp_path / "source"
    written = write_source(folder, TINY.shape, SAMPLE, downsampling=4)
    assert written == pytest.approx(weight_bytes(folder), rel=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae_scale_factor == 4
    with torch.no_grad():
        image = pipeline(
            "red apple", height=32, width=32, num_inference_steps=2, max_sequence_length=8, output_type="np", guidance_scale=3.5
        ).images
    assert image.shape == (1, 32, 32, 3)
    assert image.std() > 0.01


def test_every_stored_tensor_is_one_that_diffusers_takes(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    folder = tmp_path / "source"
    write_source(folder, TINY.shape, SAMPLE, downsampling=4)
    for name, cls in (("transformer", FluxTransformer2DModel), ("vae", AutoencoderKL)):
        model, info = cls.from_pretrained(folder, subfolder=name, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert sum(p.numel() for p in model.parameters()) == sum(
            v.size for v in read(folder / name / "diffusion_pytorch_model.safetensors").values()
        )


def test_values_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    write_random_weights(tmp_path / "one", "model", SHAPES, seed=1)
    write_random_weights(tmp_path / "again", "model", dict(reversed(SHAPES.items())), seed=1)
    write_random_weights(tmp_path / "other", "model", SHAPES, seed=2)
    one, again, other = (tmp_path / name / "model.safetensors" for name in ("one", "again", "other"))
    assert one.read_bytes() == again.read_bytes()
    assert one.read_bytes() != other.read_bytes()


def test_outliers_are_whole_output_channels_of_matrices(tmp_path: Path) -> None:
    shapes = {"a.weight": (3000, 40), "a.bias": (3000,), "norm.weight": (300,)}
    write_random_weights(tmp_path / "plain", "model", shapes, seed=1)
    write_random_weights(tmp_path / "large", "model", shapes, seed=1, outliers=0.01)
    plain, large = (read(tmp_path / name / "model.safetensors") for name in ("plain", "large"))
    factors = large["a.weight"] / plain["a.weight"]
    channels = np.abs(factors - 20).max(axis=1) < 0.2  # both are rounded to bfloat16
    assert 10 < channels.sum() < 60
    assert (factors[~channels] == 1).all()
    for name in ("a.bias", "norm.weight"):
        assert (large[name] == plain[name]).all()


def test_shards_hold_the_same_values(tmp_path: Path) -> None:
    total = write_random_weights(tmp_path / "whole", "model", SHAPES, seed=1)
    assert write_random_weights(tmp_path / "shards", "model", SHAPES, seed=1, shard_bytes=20_000) == total
    whole = read(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"]) == set(SHAPES)
    assert len(set(index["weight_map"].values())) > 1
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(read(tmp_path / "shards" / file)[name], whole[name])


def test_scales_keep_activations_at_their_size(tmp_path: Path) -> None:
    write_random_weights(tmp_path, "model", SHAPES, seed=1)
    values = read(tmp_path / "model.safetensors")
    assert values["a.weight"].std() == pytest.approx(256**-0.5, rel=0.05)
    assert values["b.weight"].std() == pytest.approx(72**-0.5, rel=0.05)
    assert values["norm.weight"].mean() == pytest.approx(1.0, abs=0.03)
    assert abs(values["a.bias"]).max() < 0.1


def test_the_key_follows_the_shape() -> None:
    assert source_key(TINY.shape, 4) == source_key(TINY.shape, 4)
    assert source_key(TINY.shape, 4) != source_key(TINY.shape, 8)


def test_a_folder_that_is_no_sample_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--sample"):
        check_sample(tmp_path)
