"""What OpenVINO is given of diffusers' transformer: the same model, with sinusoids in place of timestep and guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.bench.fake_peers import TINY
from vitrify.bench.inputs import draw_inputs
from vitrify.bench.peers.eager import tensors
from vitrify.bench.peers.openvino import named_inputs, named_transformer, with_sinusoids
from vitrify.engine.errors import BackendError


@pytest.mark.parametrize("guidance", [True, False])
def test_the_transformer_with_sinusoids_is_diffusers(guidance: bool) -> None:
    case = replace(TINY, shape=replace(TINY.shape, guidance=guidance))
    torch.manual_seed(0)
    flux: Any = FluxTransformer2DModel
    model = flux.from_config(case.shape.config()).eval()
    inputs = draw_inputs(case, seed=3)
    steps = [tensors(inputs, step, torch.float32) for step in (0, case.steps - 1)]
    with torch.no_grad():
        expected = [model(**step, return_dict=False)[0] for step in steps]
        assert not torch.equal(*expected)
        named = named_transformer(model, steps[0].pop("img_ids"), steps[0].pop("txt_ids"))
        del steps[1]["img_ids"], steps[1]["txt_ids"]
        found = [named(**with_sinusoids(step)) for step in steps]
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)


def test_sinusoids_stay_float32_and_the_rest_as_it_was() -> None:
    step = tensors(draw_inputs(TINY, seed=3), 1, torch.float32)
    made = with_sinusoids(step)
    assert made.keys() == step.keys()
    for name, value in made.items():
        if name in ("timestep", "guidance"):
            assert (value.shape, value.dtype) == ((TINY.batch, 256), torch.float32)
        else:
            assert value is step[name]


def test_each_input_is_given_by_the_one_of_its_names_that_is_known() -> None:
    given = {name: np.zeros(1, np.float32) for name in ("ids", "hidden", "spoken but not taken")}
    taken = named_inputs([{"26", "ids", "ids_1"}, {"hidden"}], given)
    assert taken.keys() == {"ids", "hidden"}
    assert all(taken[name] is given[name] for name in taken)
    for ports in ({"26", "ids_1"}, {"ids", "hidden"}):
        with pytest.raises(BackendError, match=r"goes by \['.*\]; of \['hidden', 'ids', 'spoken but not taken'\] expected"):
            named_inputs([ports], given)
