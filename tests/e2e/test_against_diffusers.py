"""Requests of every kind against diffusers.FluxPipeline in float32, from the same latents: every step, prediction and picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.compare import assert_close, relative_error
from tests.e2e.flux_sources import RandomFlux, write_random_flux
from vitrify.export.options import ExportOptions

if TYPE_CHECKING:
    from tests.e2e.conftest import Case

TOLERANCE = 1e-4
SAMPLE_CALL = {"height": 64, "width": 64, "num_inference_steps": 20, "max_sequence_length": 16}
RANDOM_CALL = {"height": 32, "width": 32, "num_inference_steps": 4, "max_sequence_length": 12}

SAMPLE_REQUESTS: dict[str, dict[str, Any]] = {
    "readme": {"prompt": "red apple", "negative_prompt": "", "true_cfg_scale": 2.0},
    "one step": {"prompt": "Hamburger", "num_inference_steps": 1},
    "28 steps, wide": {"prompt": "cat face", "height": 64, "width": 96, "num_inference_steps": 28},
    "two prompts, two images": {"prompt": ["rocket", "blue heart"], "num_images_per_prompt": 2, "num_inference_steps": 4},
    "two lanes": {
        "prompt": ["tiger face", "pizza"],
        "num_images_per_prompt": 2,
        "negative_prompt": ["", "red"],
        "true_cfg_scale": 3.0,
        "num_inference_steps": 4,
    },
    "sigmas": {"prompt": "penguin", "sigmas": [1.0, 0.7, 0.2], "num_inference_steps": 3},
    "long text": {"prompt": "a soccer ball " * 7, "max_sequence_length": 64, "num_inference_steps": 2},
}
RANDOM_REQUESTS: dict[str, dict[str, Any]] = {
    "one step": {"prompt": "red apple", "num_inference_steps": 1},
    "20 steps": {"prompt": "cat", "num_inference_steps": 20, "guidance_scale": 7.0},
    "28 steps": {"prompt": "dog", "num_inference_steps": 28, "height": 16, "width": 64, "guidance_scale": 1.5},
    "guided": {"prompt": "red apple", "negative_prompt": "blue", "true_cfg_scale": 2.5, "height": 48, "width": 32},
    "two lanes": {"prompt": ["a", "b", "c"], "negative_prompt": ["x", "", "z"], "true_cfg_scale": 1.5},
    "two prompts, two images": {"prompt": ["cat", "dog"], "prompt_2": ["big", "small"], "num_images_per_prompt": 2},
    "second negative": {"prompt": "cat", "negative_prompt": "dog", "negative_prompt_2": "tree", "true_cfg_scale": 2.0},
}


class Recorded:
    """A run of the reference: its noise, the latents after every step, every call's noise_pred, its picture."""

    def __init__(self, case: Case, call: dict[str, Any]) -> None:
        prompts = 1 if isinstance(call["prompt"], str) else len(call["prompt"])
        self.rows = prompts * int(call.get("num_images_per_prompt", 1))
        size = case.pipe.size(call["height"], call["width"])
        self.noise = case.pipe.noise(11, self.rows, size)
        self.latents: list[Any] = []
        self.predictions: list[Any] = []
        hook = case.reference.transformer.register_forward_hook(lambda *run: self.predictions.append(run[2][0].numpy().copy()))

        def record(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
            self.latents.append(values["latents"].numpy().copy())
            return {}

        try:
            self.images = case.reference(
                **call, latents=torch.from_numpy(self.noise.copy()), output_type="np", callback_on_step_end=record
            ).images
        finally:
            hook.remove()


def compare(case: Case, call: dict[str, Any]) -> None:
    reference = Recorded(case, call)
    ours: list[Any] = []

    def record(_: Any, __: int, ___: float, values: dict[str, Any]) -> None:
        ours.append(values["latents"])

    images: Any = case.pipe(**call, latents=reference.noise, output_type="np", callback_on_step_end=record).images
    assert len(ours) == len(reference.latents) == call["num_inference_steps"]
    for step, (got, expected) in enumerate(zip(ours, reference.latents, strict=True)):
        assert_close(got, expected, TOLERANCE, f"latents after step {step}")
    got, expected = ((pixels * 255).round().astype(int) for pixels in (images, reference.images))
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= 1).mean() >= 0.999
    assert expected.std() > 1
    compare_teacher_forced(case, call, reference)


def compare_teacher_forced(case: Case, call: dict[str, Any], reference: Recorded) -> None:
    """Each of the denoiser's calls is held against the reference's."""
    predictions = teacher_forced(case, call, reference)
    assert len(predictions) == len(reference.predictions)
    for index, (got, expected) in enumerate(zip(predictions, reference.predictions, strict=True)):
        assert_close(got, expected, TOLERANCE, f"noise_pred of call {index}")


def teacher_forced(case: Case, call: dict[str, Any], reference: Recorded) -> list[Any]:
    """What our denoiser predicts in each of the reference's calls: each step starts from the reference's latents."""
    predictions: list[Any] = []
    step = type(case.pipe).run_transformer

    def spy(*args: Any, **kwargs: Any) -> Any:
        outputs = step(case.pipe, *args, **kwargs)
        predictions.extend(outputs[0].copy().reshape(-1, reference.rows, *outputs[0].shape[1:]))
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case.pipe, "run_transformer", spy)
        case.pipe(
            **call,
            latents=reference.noise,
            output_type="latent",
            callback_on_step_end=lambda *now: {"latents": reference.latents[now[1]]},
        )
    return predictions


@pytest.mark.parametrize("request_", SAMPLE_REQUESTS.values(), ids=SAMPLE_REQUESTS)
def test_sample(sample: Case, request_: dict[str, Any]) -> None:
    call = {**SAMPLE_CALL, "true_cfg_scale": 1.0, **request_}
    compare(sample, call)


@pytest.mark.parametrize("request_", RANDOM_REQUESTS.values(), ids=RANDOM_REQUESTS)
def test_random_with_guidance_embedding(dev_like: Case, request_: dict[str, Any]) -> None:
    compare(dev_like, {**RANDOM_CALL, **request_})


@pytest.mark.parametrize("request_", RANDOM_REQUESTS.values(), ids=RANDOM_REQUESTS)
def test_random_without_guidance_embedding(schnell_like: Case, request_: dict[str, Any]) -> None:
    compare(schnell_like, {**RANDOM_CALL, **request_})


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        RandomFlux(seed=2, scheduler={"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.1}),
        RandomFlux(seed=3, axes=(2, 8, 8), layers=(1, 1), latent_channels=16, joint=40, pooled=16),
        RandomFlux(seed=4, guidance_embeds=False, layers=(3, 0), heads=1),
        RandomFlux(seed=5, layers=(0, 4), heads=5, scheduler={"shift": 3.0}),
    ],
    ids=lambda made: f"seed {made.seed}",
)
def test_more_random_configurations(
    make_case: Callable[[Path, ExportOptions], Case], random_options: ExportOptions, tmp_path: Path, made: RandomFlux
) -> None:
    case = make_case(write_random_flux(tmp_path, made), replace(random_options, parity=True))
    assert_sensitive(case, RANDOM_CALL)
    for request_ in RANDOM_REQUESTS.values():
        steps = request_.get("num_inference_steps", RANDOM_CALL["num_inference_steps"])
        if not (steps == 1 and made.scheduler.get("shift_terminal")):
            compare(case, {**RANDOM_CALL, **request_})
    case.pipe.close()


@pytest.mark.parametrize("name", ["sample", "dev_like", "schnell_like"])
def test_the_comparison_can_fail(name: str, request: pytest.FixtureRequest) -> None:
    """The reference's noise_pred depends on everything that a request sets."""
    assert_sensitive(request.getfixturevalue(name), SAMPLE_CALL if name == "sample" else RANDOM_CALL)


def assert_sensitive(case: Case, call: dict[str, Any]) -> None:
    transformer = case.reference.transformer
    size = case.pipe.size(call["height"], call["width"])
    rows, columns = (extent // (case.pipe.vae_scale * case.pipe.pack) for extent in (size.height, size.width))  # type: ignore[attr-defined]
    texts = [
        case.reference.encode_prompt(prompt, max_sequence_length=call["max_sequence_length"]) for prompt in ("cat", "red apple")
    ]
    base = {
        "hidden_states": torch.from_numpy(case.pipe.noise(11, 1, size)),
        "encoder_hidden_states": texts[0][0],
        "pooled_projections": texts[0][1],
        "txt_ids": texts[0][2],
        "timestep": torch.tensor([0.8]),
        "img_ids": case.reference._prepare_latent_image_ids(1, rows, columns, "cpu", torch.float32),
    }
    changes: dict[str, Any] = {
        "encoder_hidden_states": texts[1][0],
        "pooled_projections": texts[1][1],
        "timestep": torch.tensor([0.3]),
        "txt_ids": texts[0][2] + 5,
        "img_ids": base["img_ids"].flip(0),
    }
    if transformer.config.guidance_embeds:
        base["guidance"] = torch.tensor([3.5])
        changes["guidance"] = torch.tensor([1.0])
    with torch.no_grad():
        plain = transformer(**base, return_dict=False)[0].numpy()
        for name, value in changes.items():
            moved = transformer(**{**base, name: value}, return_dict=False)[0].numpy()
            assert relative_error(moved, plain) >= 1e-2, name
