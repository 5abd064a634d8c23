"""Every bad value has a RequestError that names it, raised before anything runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.runtime.toy_flux import Toy, make_toy
from vitrify.engine.artifact import Artifact, Manifest
from vitrify.engine.errors import ArtifactError, BackendError, RequestError, SpecError
from vitrify.engine.specs import Dim
from vitrify.runtime import PixelGenerationContext
from vitrify.runtime.families.registry import FAMILIES, family
from vitrify.runtime.values import check_dim

EMBEDS, POOLED = np.zeros((1, 6, 5), np.float32), np.zeros((1, 4), np.float32)
LATENTS = np.zeros((1, 16, 12), np.float32)
CLIP_IDS, T5_IDS = np.zeros((1, 8), np.int64), np.zeros((1, 6), np.int64)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


def with_nan(array: Any) -> Any:
    copy = array.copy()
    copy.flat[3] = np.nan
    return copy


CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt: got none"),
    ({"prompt": 3}, "prompt: got int, expected a text or a list of texts"),
    ({"prompt": []}, "prompt: got an empty list"),
    ({"prompt": ["cat", None]}, "prompt: got ['NoneType', 'str']"),
    ({"prompt": b"cat"}, "prompt: got bytes"),
    ({"prompt": "lone \ud800"}, "not valid Unicode"),
    ({"prompt": ["cat", "dog"], "prompt_2": ["a", "b", "c"]}, "prompt_2: got 3 texts for 2 prompts"),
    ({"prompt": ["cat", "dog"], "negative_prompt": ["a"], "true_cfg_scale": 2.0}, "negative_prompt: got 1 texts for 2 prompts"),
    ({"prompt": "cat", "prompt_embeds": EMBEDS, "pooled_prompt_embeds": POOLED}, "prompt and prompt_embeds"),
    ({"prompt_2": "cat", "prompt_embeds": EMBEDS, "pooled_prompt_embeds": POOLED}, "prompt_2 and prompt_embeds"),
    ({"prompt_embeds": EMBEDS}, "prompt_embeds without pooled_prompt_embeds"),
    (
        {"prompt": "cat", "true_cfg_scale": 2.0, "negative_prompt_embeds": EMBEDS},
        "negative_prompt_embeds without negative_pooled_prompt_embeds",
    ),
    ({"prompt_embeds": EMBEDS.astype(np.float64), "pooled_prompt_embeds": POOLED}, "prompt_embeds: got float64[1, 6, 5]"),
    ({"prompt_embeds": with_nan(EMBEDS), "pooled_prompt_embeds": POOLED}, "prompt_embeds: 1 of its 30 values are NaN"),
    ({"prompt_embeds": EMBEDS[..., :4], "pooled_prompt_embeds": POOLED}, "expected float32[prompts, text_tokens=6, dim=5]"),
    ({"prompt_embeds": EMBEDS[0], "pooled_prompt_embeds": POOLED}, "got float32[6, 5]"),
    ({"prompt_embeds": EMBEDS, "pooled_prompt_embeds": np.zeros((2, 4), np.float32)}, "pooled_prompt_embeds: got float32[2, 4]"),
    (
        {"prompt_embeds": EMBEDS, "pooled_prompt_embeds": POOLED, "max_sequence_length": 7},
        "max_sequence_length=7, but prompt_embeds have 6 text tokens",
    ),
    (
        {"prompt_embeds": np.zeros((1, 13, 5), np.float32), "pooled_prompt_embeds": POOLED},
        "text tokens of prompt_embeds=13 is outside what this artifact was compiled for: 4..12; "
        "re-export with --max-sequence-length 4:13 or ask for 12",
    ),
    ({"prompt": "cat", "height": 18}, "height=18 is outside what this artifact was compiled for: 8..32 in steps of 4"),
    ({"prompt": "cat", "height": 18}, "re-export with --height 8:32 or ask for 16 or 20"),
    ({"prompt": "cat", "height": 64}, "re-export with --height 8:64 or ask for 32"),
    ({"prompt": "cat", "width": 4}, "width=4 is outside what this artifact was compiled for: 8..32 in steps of 4"),
    ({"prompt": "cat", "width": 0}, "width=0: expected a whole number of at least 1"),
    ({"prompt": "cat", "height": 16.0}, "height=16.0: expected a whole number"),
    ({"prompt": "cat", "height": True}, "height=True: expected a whole number"),
    ({"prompt": "cat", "num_inference_steps": 0}, "num_inference_steps=0: expected a whole number of at least 1"),
    ({"prompt": "cat", "num_inference_steps": -3}, "num_inference_steps=-3"),
    ({"prompt": "cat", "num_inference_steps": "4"}, "num_inference_steps='4'"),
    (
        {"prompt": "cat", "num_inference_steps": 4, "sigmas": [1.0, 0.5]},
        "num_inference_steps=4 and 2 sigmas contradict each other",
    ),
    ({"prompt": "cat", "sigmas": []}, "num_inference_steps=0"),
    ({"prompt": "cat", "num_inference_steps": 10**9}, "num_inference_steps=1000000000: expected at most 10000"),
    ({"prompt": "cat", "sigmas": [1.0, float("nan")]}, "sigmas: got"),
    ({"prompt": "cat", "sigmas": [2.0, 1.0]}, "expected numbers from 0 to 1"),
    ({"prompt": "cat", "sigmas": [[1.0], [1.0, 0.5]]}, "sigmas: got [[1.0], [1.0, 0.5]], expected a list of numbers"),
    ({"prompt": "cat", "sigmas": 0.5}, "sigmas: got 0.5, expected a list of numbers from 0 to 1"),
    ({"prompt": "cat", "sigmas": np.array(0.5)}, "sigmas: got array(0.5), expected a list of numbers from 0 to 1"),
    ({"prompt": ["cat", "dog"], "prompt_2": np.array(["a", "b"])}, "prompt_2: got ndarray, expected a text or a list of texts"),
    ({"prompt": "cat", "pooled_prompt_embeds": "any"}, "pooled_prompt_embeds without prompt_embeds: the transformer needs both"),
    ({"prompt": "cat", "negative_prompt": 12}, "negative_prompt: got int, expected a text or a list of texts"),
    ({"prompt": "cat", "negative_prompt": "dog", "negative_prompt_2": [3]}, "negative_prompt_2: got ['int']"),
    ({"prompt": "cat", "negative_prompt_2": "dog", "true_cfg_scale": 2.0}, "negative_prompt_2 without negative_prompt"),
    ({"prompt": "cat", "negative_prompt_embeds": EMBEDS}, "negative_prompt_embeds without negative_pooled_prompt_embeds"),
    (
        {"prompt": "cat", "negative_prompt_embeds": EMBEDS.astype(np.float64), "negative_pooled_prompt_embeds": POOLED},
        "negative_prompt_embeds: got float64[1, 6, 5]",
    ),
    ({"prompt": "cat", "guidance_scale": float("inf")}, "guidance_scale=inf: expected a finite number"),
    ({"prompt": "cat", "true_cfg_scale": "2"}, "true_cfg_scale='2': expected a finite number"),
    ({"prompt": "cat", "num_images_per_prompt": 0}, "num_images_per_prompt=0"),
    (
        {"prompt": ["cat"] * 3, "num_images_per_prompt": 2},
        "rows=6 (3 prompts × 2 images) is outside what this artifact was compiled",
    ),
    ({"prompt": ["cat"] * 5}, "re-export with --batch 1:5 or ask for 4"),
    (
        {"prompt": "cat", "max_sequence_length": 512},
        "max_sequence_length=512 is outside what this artifact was compiled for: 4..12",
    ),
    ({"prompt": "cat", "latents": LATENTS.astype(np.float64)}, "latents: got float64[1, 16, 12], expected float32"),
    ({"prompt": "cat", "latents": LATENTS.astype(np.float64)}, "convert it with .astype('float32')"),
    (
        {"prompt": "cat", "latents": LATENTS[:, :8]},
        "latents: got float32[1, 8, 12], expected float32[rows=1, image_tokens=16, channels=12]",
    ),
    ({"prompt": "cat", "latents": np.zeros((1, 3, 8, 8), np.float32)}, "latents: got float32[1, 3, 8, 8]"),
    ({"prompt": ["cat", "dog"], "latents": LATENTS}, "expected float32[rows=2"),
    ({"prompt": "cat", "latents": with_nan(LATENTS)}, "latents: 1 of its 192 values are NaN or infinite"),
    ({"prompt": "cat", "latents": "noise"}, "latents: got <U5[]"),
    ({"prompt": "cat", "latents": [[1.0], [1.0, 2.0]]}, "latents: got a list that numpy does not take"),
    (
        {"prompt": "cat", "latents": torch.zeros(1, 16, 12, dtype=torch.bfloat16)},
        "latents: got a Tensor that numpy does not take",
    ),
    ({"prompt": "cat", "latents": LATENTS, "seed": 3}, "seed and latents both say where to start"),
    ({"prompt": "cat", "seed": 1.5}, "seed=1.5: expected a whole number"),
    ({"prompt": "cat", "seed": np.array(1)}, "seed=array(1): expected a whole number"),
    ({"prompt": "cat", "seed": "1"}, "seed='1'"),
    ({"prompt": "cat", "seed": 2**64}, "seed: got 18446744073709551616"),
    ({"prompt": "cat", "seed": [1, 2]}, "seed: got 2 seeds for 1 images"),
    ({"prompt": "cat", "seed": [None]}, "seed: got None"),
    ({"prompt": "cat", "output_type": "jpeg"}, "output_type='jpeg' is unknown; known: pil, np, uint8, latent"),
    ({"prompt": "cat", "output_type": None}, "output_type=None is unknown"),
    ({"prompt": "cat", "callback_on_step_end": 3}, "callback_on_step_end=3: expected a function"),
]


@pytest.mark.parametrize(("request_", "message"), CASES, ids=[message[:50] for _, message in CASES])
def test_bad_request(toy: Toy, request_: dict[str, Any], message: str) -> None:
    toy.backend.runs.clear()
    with pytest.raises(RequestError, match=re.escape(message)):
        toy.pipe(**request_)
    assert toy.backend.runs == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_image": object()}, "input_image: drawing from an image is not supported"),
        ({"timesteps": [1000.0]}, "timesteps: schedules are given as sigmas"),
        ({"mask": np.ones((1, 6), bool)}, "mask: this pipeline attends to every text token"),
        ({"negative_mask": 5}, "negative_mask: this pipeline attends to every text token"),
        ({"strength": 0.8}, "strength: it acts on an input_image alone"),
        ({"tokens_2": np.zeros((1, 6), np.int64)}, "tokens_2 without tokens: both encoders need theirs"),
        ({"residual_threshold": 0.1}, "residual_threshold: it acts with a first-block cache alone"),
        ({"text_ids": np.zeros((5, 3), np.float32)}, "text_ids: got float32[5, 3], expected float32[tokens=6, axes=3]"),
        ({"latent_image_ids": np.zeros((16, 2), np.float32)}, "latent_image_ids: got float32[16, 2]"),
        ({"tokens": np.zeros((1, 8), np.int64)}, "tokens without tokens_2"),
        ({"tokens": np.zeros((1, 7), np.int64), "tokens_2": np.zeros((1, 6), np.int64)}, "expected int64[prompts, tokens=8]"),
        ({"tokens": np.zeros((1, 8), np.int64), "tokens_2": np.zeros((2, 6), np.int64)}, "tokens_2: got int64[2, 6]"),
        (
            {"tokens": CLIP_IDS, "tokens_2": T5_IDS + 14},
            "tokens_2: got the id 14, expected ids from 0 to 13, the vocabulary of text_e",
        ),
        ({"tokens": CLIP_IDS - 5, "tokens_2": T5_IDS}, "tokens: got the id -5, expected ids from 0 to 13"),
        ({"tokens": CLIP_IDS, "tokens_2": T5_IDS, "negative_tokens": CLIP_IDS, "negative_tokens_2": T5_IDS - 1}, "got the id -1"),
        ({"tokens": np.zeros((1, 8)), "tokens_2": np.zeros((1, 6), np.int64)}, "tokens: got float64[1, 8]"),
        ({"tokens": np.zeros((1, 8), np.int64), "prompt_embeds": EMBEDS}, "tokens and prompt_embeds"),
    ],
)
def test_bad_context(toy: Toy, fields: dict[str, Any], message: str) -> None:
    prompt = None if "tokens" in fields else ["cat"]
    with pytest.raises(RequestError, match=re.escape(message)):
        toy.pipe.prepare_inputs(PixelGenerationContext(prompt=prompt, **fields))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"prompt_embeds": EMBEDS}, "returned ['prompt_embeds']; known: cancel, latents"),
        (5, "callback_on_step_end returned 5; expected a dictionary"),
        ([1], "callback_on_step_end returned [1]; expected a dictionary"),
        ({"latents": LATENTS[:, :3]}, "the callback's latents: got float32[1, 3, 12]"),
        ({"latents": with_nan(LATENTS)}, "NaN"),
    ],
)
def test_bad_answer_of_a_callback(toy: Toy, answer: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        toy.pipe("cat", callback_on_step_end=lambda *_: answer)
    assert toy.pipe("cat", seed=1, output_type="uint8").images.shape == (1, 16, 16, 3)


def test_pictures_that_overflow_are_an_error(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = toy.pipe.decode
    monkeypatch.setattr(toy.pipe, "decode", lambda latents, size: np.full_like(decode(latents, size), np.nan))
    with pytest.raises(BackendError, match="images are not finite though the latents are"):
        toy.pipe("cat", seed=1)


def test_an_error_in_a_callback_ends_its_request_alone(toy: Toy) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        toy.pipe("cat", callback_on_step_end=fail)
    toy.pipe("cat")


def test_idle_fields_that_are_sound_are_accepted(toy: Toy) -> None:
    """As in diffusers: a negative prompt where guidance is off; and what stands at its documented value asks for nothing."""
    plain = toy.pipe("cat", seed=1, output_type="latent").images
    idle: dict[str, Any]
    for idle in (
        {"negative_prompt": ["dog", "tree"], "negative_prompt_2": ""},
        {
            "negative_prompt_embeds": np.zeros((2, 9, 5), np.float32),
            "negative_pooled_prompt_embeds": np.zeros((2, 4), np.float32),
        },
    ):
        assert np.array_equal(toy.pipe("cat", seed=1, output_type="latent", **idle).images, plain)
    toy.pipe.prepare_inputs(PixelGenerationContext(prompt=["cat"], strength=0.6, output_format="jpeg"))


def test_an_artifact_that_does_not_say_its_vocabulary(tmp_path: Path) -> None:
    toy = make_toy(tmp_path)
    del toy.artifact.manifest.components["text_encoder"].config["vocab_size"]  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match="text_encoder: its config has no 'vocab_size'"):
        toy.pipe.prepare_inputs(PixelGenerationContext(tokens=CLIP_IDS, tokens_2=T5_IDS))


def test_fluxpipeline_arguments_that_do_not_exist_here(toy: Toy) -> None:
    for name in ("generator", "joint_attention_kwargs", "ip_adapter_image", "steps"):
        with pytest.raises(TypeError, match=name):
            toy.pipe("cat", **{name: None})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unknown"):
        toy.pipe.execute(toy.pipe.prepare_inputs(PixelGenerationContext(prompt=["cat"])), unknown=1)


def test_a_single_allowed_size_is_named_alone() -> None:
    fixed = Dim("height", 64, 64, 64, 8)
    with pytest.raises(RequestError, match=r"compiled for: 64; re-export with --height 64:72 or ask for 64"):
        check_dim(72, fixed, "height", "--height")
    with pytest.raises(RequestError, match=r"re-export with --height 56:64 or ask for 64"):
        check_dim(56, fixed, "height", "--height")


def test_keep(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="keep='some' is unknown; known: all, denoiser, none"):
        make_toy(tmp_path, keep="some")


def test_family() -> None:
    assert family("flux").__name__ == "FluxPipeline"
    with pytest.raises(ArtifactError, match=f"family 'sdxl' is unknown; this vitrify runs: {', '.join(FAMILIES)}"):
        family("sdxl")


def changed_toy(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Manifest], object]) -> Toy:
    """A toy whose manifest was changed before the pipeline is made."""
    from tests.runtime import toy_flux

    original = toy_flux.make_artifact

    def changed(*args: Any, **kwargs: Any) -> Artifact:
        artifact = original(*args, **kwargs)
        change(artifact.manifest)
        return artifact

    monkeypatch.setattr(toy_flux, "make_artifact", changed)
    return make_toy(folder)


def config(component: str, **fields: Any) -> Callable[[Any], object]:
    return lambda manifest: manifest.components[component].config.update(fields)


def without(component: str, field: str) -> Callable[[Any], object]:
    return lambda manifest: manifest.components[component].config.pop(field)


def of_any_length(manifest: Any) -> None:
    """The first encoder in the place where the second belongs."""
    manifest.components["text_encoder"].graphs["model"] = manifest.components["text_encoder_2"].graphs["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (config("vae", latent_channels=5), "transformer takes 12 channels, expected a square number of times the VAE's 5"),
        (config("vae", latent_channels=0), "vae: latent_channels is '0' in its config, expected a whole number of at least 1"),
        (config("vae", block_out_channels=4), "vae: block_out_channels is '4' in its config, expected a list"),
        (config("transformer", axes_dims_rope="ab"), "transformer: axes_dims_rope is 'ab' in its config, expected a list"),
        (config("transformer", axes_dims_rope=[2, True]), "transformer: axes_dims_rope is '[2, True]' in its config"),
        (without("transformer", "joint_attention_dim"), "transformer: its config has no 'joint_attention_dim'"),
        (without("transformer", "in_channels"), "transformer: its config has no 'in_channels'"),
        (lambda m: m.tokenizers.pop("tokenizer"), "the manifest's tokenizers lack tokenizer; it has: tokenizer_2"),
        (lambda m: m.dims.pop("height"), "the manifest's dims lack height; it has: width, "),
        (of_any_length, "expected one input of a fixed number of tokens"),
    ],
)
def test_a_manifest_that_the_family_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object], message: str
) -> None:
    """Found when the pipeline is made, not in a request, and by name."""
    with pytest.raises(ArtifactError, match=rf"{re.escape(message)}.*export the artifact again"):
        changed_toy(tmp_path, monkeypatch, change)


def test_axes_that_the_source_leaves_out_are_those_of_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.1-dev's own config.json has none."""
    toy = changed_toy(tmp_path, monkeypatch, without("transformer", "axes_dims_rope"))
    assert toy.pipe.axes_dims == tuple(inspect.signature(FluxTransformer2DModel).parameters["axes_dims_rope"].default)
