"""Where FLUX puts things: rotary tables, packed latents and noise, against diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from diffusers.utils.torch_utils import randn_tensor

from tests.runtime.toy_flux import Toy, make_toy, unpack
from vitrify.runtime.rotary import raster_ids, rotary_table


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


@pytest.mark.parametrize("axes", [[16, 56, 56], [8, 12, 12], [2, 4, 2]])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (64, 64), (3, 200)])
def test_rotary_tables_are_those_of_diffusers(axes: list[int], size: tuple[int, int]) -> None:
    ids = raster_ids(*size, 3)
    expected_ids = FluxPipeline._prepare_latent_image_ids(1, *size, "cpu", torch.float32)
    assert np.array_equal(ids, expected_ids.numpy())
    cosines, sines = FluxPosEmbed(10000, axes)(expected_ids)
    table = rotary_table(ids, axes, 10_000.0)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, torch.cat([cosines, sines], dim=1).numpy(), rtol=0, atol=6e-8)


def test_text_stands_at_zero() -> None:
    table = rotary_table(np.zeros((7, 3), np.float32), [8, 12, 12], 10_000.0)
    assert (table[:, :32] == 1).all()
    assert (table[:, 32:] == 0).all()


@pytest.mark.parametrize("size", [(16, 16), (8, 28)])
def test_noise_is_drawn_and_packed_as_in_diffusers(toy: Toy, size: tuple[int, int]) -> None:
    layout = toy.pipe.size(*size)
    shape = (3, 3, layout.latent_h, layout.latent_w)
    drawn = randn_tensor(shape, generator=torch.Generator("cpu").manual_seed(11), dtype=torch.float32)
    expected = FluxPipeline._pack_latents(drawn, *shape)
    np.testing.assert_allclose(toy.pipe.noise(11, 3, layout), expected.numpy(), rtol=0, atol=1e-6)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (4, 5, 4)]
    expected = FluxPipeline._pack_latents(randn_tensor(shape, generator=generators, dtype=torch.float32), *shape)
    rows = toy.pipe.noise([4, 5, 4], 3, layout)
    np.testing.assert_allclose(rows, expected.numpy(), rtol=0, atol=1e-6)
    assert np.array_equal(rows[0], rows[2])


def test_unpacking_is_that_of_diffusers(toy: Toy) -> None:
    """The toy's decoder is elementwise: what reaches it can be read off its picture."""
    latents = np.random.default_rng(0).standard_normal((2, 4 * 7, 12)).astype(np.float32)
    expected = FluxPipeline._unpack_latents(torch.from_numpy(latents), 16, 28, 2)
    assert np.array_equal(unpack(latents, (16, 28)), expected.numpy())
    pixels = toy.pipe.decode(latents, toy.pipe.size(16, 28))
    np.testing.assert_allclose(
        pixels[:, ::2, ::2], (torch.tanh(expected) / 2 + 0.5).permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6
    )


def test_a_clip_tokenizer_shorter_than_its_encoder_is_padded(toy: Toy) -> None:
    toy.pipe.tokenizers["tokenizer"].max_length = 5
    context = type("Context", (), {"prompt": "cat", "num_images_per_prompt": 1})()
    ids = toy.pipe.prepare_inputs(context).text.branches[0].tokens["tokenizer"]
    assert ids.tolist() == [[1, 8, 2, 0, 0, 0, 0, 0]]
