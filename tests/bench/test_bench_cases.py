"""The cases are what they claim to be: parameter counts against diffusers' own modules, configurations against the sample's."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from vitrify.bench.cases import CASES, EMOJI, FLUX_146M, FLUX_DEV, Kind, case, from_json, to_json
from vitrify.bench.export_growth import GROWTH_CASES
from vitrify.bench.flux_configs import flux_dev_configs
from vitrify.bench.peers.registry import ANCHORS, OURS, PEERS, REFERENCE, PeerSpec, absence, peer_specs
from vitrify.bench.prepare import BUILDS
from vitrify.bench.sources import parameter_shapes
from vitrify.engine.errors import RequestError

SAMPLE = Path(__file__).parents[2] / "examples" / "emoji_flux"


def counted(shape: object) -> int:
    import torch
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(shape.config())  # type: ignore[attr-defined]
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_stated_sizes() -> None:
    assert FLUX_146M.parameters == 146_264_128
    assert EMOJI.parameters == 7_360_544
    assert FLUX_DEV.parameters == 11_901_408_320
    assert GROWTH_CASES["wide-whole"].shape.parameters == pytest.approx(1.94e9, rel=0.01)


@pytest.mark.parametrize("shape", [EMOJI, FLUX_146M, GROWTH_CASES["wide-quarter"].shape, replace(FLUX_146M, guidance=False)])
def test_parameters_are_those_of_diffusers(shape: object) -> None:
    assert shape.parameters == counted(shape)  # type: ignore[attr-defined]


def test_growth_is_at_a_quarter_half_and_the_whole() -> None:
    for kind in ("plan", "wide"):
        whole = GROWTH_CASES["plan" if kind == "plan" else "wide-whole"].shape
        around = replace(whole, double_blocks=0, single_blocks=0).parameters
        for name, share in (("quarter", 0.25), ("half", 0.5)):
            part = GROWTH_CASES[f"{kind}-{name}"].shape
            assert (part.parameters - around) / (whole.parameters - around) == pytest.approx(share, abs=0.03)


def test_the_sample_case_is_the_sample() -> None:
    config = json.loads((SAMPLE / "transformer" / "config.json").read_text())
    assert {key: config[key] for key in EMOJI.config()} == EMOJI.config()


def test_the_146m_case_has_its_tokens() -> None:
    big = CASES["flux-146m"]
    assert (big.image_tokens, big.text_tokens, big.batch) == (1024, 128, 1)
    assert (big.height_px, big.width_px) == (512, 512)


def test_flops_of_a_step_are_those_of_its_matrix_products() -> None:
    # Counted by PyTorch over an eager step, less what is done once per row (embedders, modulation).
    import torch
    from diffusers import FluxTransformer2DModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = replace(EMOJI, heads=2, head_dim=16, rope_axes=(4, 6, 6), double_blocks=1, single_blocks=1)
    model = FluxTransformer2DModel.from_config(shape.config()).eval()
    # The fused CPU attention is unknown to PyTorch's counter; its plain form is two products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(
            hidden_states=torch.zeros(1, 200, shape.in_channels),
            encoder_hidden_states=torch.zeros(1, 100, shape.joint_dim),
            pooled_projections=torch.zeros(1, shape.pooled_dim),
            timestep=torch.zeros(1),
            img_ids=torch.zeros(200, 3),
            txt_ids=torch.zeros(100, 3),
        )
    assert shape.flops(1, 200, 100) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert shape.flops(1, 200, 100) <= counter.get_total_flops()


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(RequestError, match="sample, flux-146m"):
        case("nothing")
    with pytest.raises(RequestError, match="vitrify, vitrify-bf16, vitrify-int8, plain-ort"):
        peer_specs("step", ("nothing",))


@pytest.mark.parametrize("kind", ["step", "picture"])
def test_ours_the_reference_and_the_anchor_always_take_part(kind: Kind) -> None:
    found = peer_specs(kind, ())
    assert set(found) == {OURS, REFERENCE, ANCHORS[kind]}
    assert next(iter(found)) == OURS


def test_caches_are_peers_of_whole_pictures_alone() -> None:
    assert list(peer_specs("picture", ("eager-bf16",), ("taylorseer",))) == [OURS, "vitrify+taylorseer", REFERENCE, "eager-bf16"]
    assert "vitrify+taylorseer" not in peer_specs("step", (), ("taylorseer",))


def test_a_peer_that_cannot_run_says_what_is_missing() -> None:
    spec = PeerSpec("far", "for tests", "far:Far", "fp32", 1e-4, {}, packages=("no_such_package_here",))
    assert absence(spec) == "no_such_package_here is not installed; pip install -c constraints.txt '.[bench-peers]'"
    assert "no-such-program" in str(absence(replace(spec, packages=(), programs=("no-such-program",))))
    assert absence(replace(spec, packages=("numpy",), programs=("sh",))) is None


def test_every_build_that_a_peer_needs_is_known() -> None:
    assert {build for peers in PEERS.values() for spec in peers.values() for build in spec.builds} <= set(BUILDS)


@pytest.mark.parametrize("name", list(CASES))
def test_cases_survive_json(name: str) -> None:
    assert from_json(json.loads(json.dumps(to_json(CASES[name])))) == CASES[name]


def test_flux_dev_configurations_make_flux_dev() -> None:
    shapes = parameter_shapes(flux_dev_configs(FLUX_DEV))
    sizes = {name: sum(math.prod(shape) for shape in found.values()) for name, found in shapes.items()}
    assert sizes["transformer"] == FLUX_DEV.parameters
    # As published: CLIP-L's text model 123 M, T5 v1.1 XXL's encoder 4.76 B, the VAE 84 M.
    assert sizes["text_encoder"] == pytest.approx(123.06e6, rel=1e-3)
    assert sizes["text_encoder_2"] == pytest.approx(4.762e9, rel=1e-3)
    assert sizes["vae"] == pytest.approx(83.8e6, rel=2e-3)


def test_configurations_alone_are_a_pipeline_folder(tmp_path: Path) -> None:
    from vitrify.export.families import recipe_for
    from vitrify.export.options import ExportOptions
    from vitrify.export.source import DiffusersFolder

    flux_dev_configs(FLUX_DEV).write(tmp_path)
    recipe = recipe_for(DiffusersFolder.open(tmp_path), ExportOptions())
    assert [component.name for component in recipe.components] == ["text_encoder", "text_encoder_2", "transformer", "vae"]
    assert recipe.dims["height"].opt == 1024
    assert recipe.dims["text_tokens"].opt == 512
