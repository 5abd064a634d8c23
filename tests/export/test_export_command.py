"""`vitrify export` on the command line, and the options it turns into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.export.tiny_flux import CONFIG, flux_recipe
from vitrify.engine.artifact import Artifact
from vitrify.engine.errors import CompileError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.specs import Dim
from vitrify.export.cli import export
from vitrify.export.options import ExportOptions, Range
from vitrify.export.verify import kernels_that_run

# ---- ranges


@pytest.mark.parametrize(
    ("text", "expected"), [("64", (64, 64, 64)), ("32:64", (32, 64, 64)), ("1:2:8", (1, 2, 8)), ("5:5:5", (5, 5, 5))]
)
def test_ranges(text: str, expected: tuple[int, int, int]) -> None:
    got = Range.parse(text, "height")
    assert (got.min, got.opt, got.max) == expected


@pytest.mark.parametrize(
    "text", ["", ":", "a", "1:b", "0", "0:4", "-1", "4:2", "1:9:8", "3:2:8", "1:2:3:4", "1.5", "64px", "1::2"]
)
def test_what_is_no_range_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(CompileError, match=r"--height .*: expected N, MIN:MAX or MIN:OPT:MAX"):
        Range.parse(text, "height")


def test_a_range_becomes_a_dimension_on_its_raster() -> None:
    assert Range(16, 32, 64).dim("height", 16) == Dim("height", 16, 32, 64, 16)
    with pytest.raises(CompileError, match="--text-tokens: 33 is not a multiple of 16; nearest are 32 and 48"):
        Range(16, 33, 64).dim("text_tokens", 16)


# ---- FLUX: what follows from options and configurations


def test_flux_dimensions_follow_from_the_sizes() -> None:
    options = ExportOptions(
        height=Range(16, 32, 64), width=Range(8, 8, 16), batch=Range(1, 3, 9), max_sequence_length=Range(4, 8, 16)
    )
    got = flux_recipe(CONFIG, options).dims
    # The vae of two levels halves once; two latent positions make a token.
    assert {name: (d.min, d.opt, d.max, d.step) for name, d in got.items()} == {
        "height": (16, 32, 64, 4),
        "width": (8, 8, 16, 4),
        "latent_h": (8, 16, 32, 2),
        "latent_w": (4, 4, 8, 2),
        "image_tokens": (8, 16, 64, 1),
        "batch": (1, 3, 9, 1),
        "text_tokens": (4, 8, 16, 1),
        "prompts": (1, 1, 9, 1),
        "images": (1, 1, 9, 1),
        "condition_rows": (1, 64, 64, 1),
    }


@pytest.mark.parametrize(("guided", "tokens", "steps"), [(True, 512, 28), (False, 256, 4)])
def test_flux_defaults_are_those_of_dev_and_schnell(guided: bool, tokens: int, steps: int) -> None:
    recipe = flux_recipe({**CONFIG, "guidance_embeds": guided})
    assert recipe.dims["text_tokens"] == Dim("text_tokens", tokens, tokens, tokens)
    assert recipe.defaults["num_inference_steps"] == steps
    assert recipe.defaults["height"] == recipe.dims["height"].opt == 256
    assert recipe.tokenizers == {"tokenizer": 12, "tokenizer_2": tokens}
    transformer = recipe.components[2]
    assert ("guidance" in [i.name for i in transformer.inputs]) is guided


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer": {"patch_size": 2}}, r"transformer: patch_size is 2, expected 1"),
        ({"transformer": {"in_channels": 16}}, r"transformer: in_channels is 16, expected 8, the vae's latent_channels × 4"),
        ({"text_encoder": {"hidden_size": 24}}, r"pooled_projection_dim is 20, expected 24, text_encoder's hidden_size"),
        ({"text_encoder_2": {"d_model": 32}}, r"joint_attention_dim is 24, expected 32, text_encoder_2's d_model"),
        ({"transformer": {"num_layers": 0, "num_single_layers": 1}}, r"transformer: got 1 blocks, expected at least 2"),
        (
            {"transformer": {"_class_name": "SD3Transformer2DModel"}},
            r"transformer: got SD3Transformer2DModel, expected FluxTransf",
        ),
        ({"text_encoder": {"_class_name": "CLIPTextModelWithProjection"}}, r"text_encoder: got CLIPTextModelWithProjection, exp"),
        ({"transformer": {"attention_head_dim": None}}, r"transformer: its config.json has no 'attention_head_dim'"),
        ({"vae": {"block_out_channels": None}}, r"vae: its config.json has no 'block_out_channels'"),
        ({"text_encoder_2": {"vocab_size": None}}, r"text_encoder_2: its config.json has no 'vocab_size'"),
        ({"transformer": {"num_layers": "a"}}, r"transformer: num_layers is 'a' .*expected a whole number of at least 0"),
        ({"transformer": {"num_layers": -1}}, r"transformer: num_layers is -1 .*expected a whole number of at least 0"),
        ({"transformer": {"attention_head_dim": True}}, r"transformer: attention_head_dim is True .*of at least 1"),
        ({"transformer": {"axes_dims_rope": [4, 4, 4]}}, r"axes_dims_rope is \[4, 4, 4\], expected even numbers with the sum 16"),
        ({"transformer": {"axes_dims_rope": [5, 5, 6]}}, r"axes_dims_rope is \[5, 5, 6\], expected even numbers"),
        ({"transformer": {"axes_dims_rope": 16}}, r"axes_dims_rope is 16, expected even numbers"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        flux_recipe(CONFIG, **changes)


def test_flux_roles() -> None:
    transformer = flux_recipe(CONFIG).components[2]
    roles = {i.name: i.role for i in transformer.inputs}
    assert {n for n, r in roles.items() if r == "latents"} == {"latents"}
    assert {n for n, r in roles.items() if r == "step"} == {"timestep"}


# ---- the command


def invoke(*words: object) -> Result:
    return CliRunner().invoke(export, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.usefixtures("quick")
def test_every_option_reaches_the_artifact(toy_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "art"
    words = ["--height", "8:16", "--width", "16", "--batch", "1:2:3", "--max-sequence-length", "2:4", "--no-parity"]
    words += ["--default-height", "16", "--default-width", "16", "--default-num-inference-steps", "5"]
    words += ["--default-guidance-scale", "2.5", "--default-true-cfg-scale", "1.5", "--default-negative-prompt", ""]
    words += ["--default-max-sequence-length", "3"]
    result = invoke(toy_source, out, *words)
    assert result.exit_code == 0
    opened = Artifact.open(out)
    assert result.output.splitlines()[-1] == f"{out}  {opened.id}"
    assert dict(opened.manifest.defaults) == {
        "height": 16,
        "width": 16,
        "num_inference_steps": 5,
        "guidance_scale": 2.5,
        "true_cfg_scale": 1.5,
        "negative_prompt": "",
        "max_sequence_length": 3,
    }
    dims = opened.manifest.dims
    assert dims["height"] == Dim("height", 8, 16, 16, 8)
    assert dims["width"] == Dim("width", 16, 16, 16, 8)
    assert dims["batch"] == Dim("batch", 1, 2, 3)
    assert dims["text_tokens"] == Dim("text_tokens", 2, 4, 4)
    assert "denoiser: weights" in result.stderr
    assert "parity" not in result.stderr, "neither measured nor said to be"
    again = invoke(toy_source, out, "--force")
    assert again.exit_code == 0
    assert "denoiser: parity: whole" in again.stderr
    assert f"parity was measured with {kernels_that_run(OrtCpuBackend())}" in again.stderr


@pytest.mark.usefixtures("quick")
def test_a_plan_is_printed_and_nothing_written(toy_source: Path, tmp_path: Path) -> None:
    result = invoke(toy_source, "--plan", "--batch", "1:2:3")
    assert result.exit_code == 0
    assert not list(tmp_path.iterdir())
    for word in ("encoder", "denoiser", "condition", "batch"):
        assert word in result.stdout
    plan = json.loads(invoke(toy_source, "--plan", "--json").stdout)
    assert plan["component_order"] == ["encoder", "denoiser"]
    assert plan["files"] == {}


def test_without_an_output_there_is_a_usage_error(toy_source: Path) -> None:
    result = invoke(toy_source)
    assert result.exit_code == 2
    assert "OUT" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["art", "--plan"], "OUT and --force have no effect"),
        (["--plan", "--force"], "OUT and --force have no effect"),
        (["art", "--json"], "--json prints a plan; add --plan"),
    ],
)
def test_an_option_without_effect_is_a_usage_error(toy_source: Path, words: list[str], message: str) -> None:
    result = invoke(toy_source, *words)
    assert result.exit_code == 2
    assert message in result.output
