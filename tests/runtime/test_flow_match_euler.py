"""Equal to diffusers to the bit: schedules over a grid of configs and lengths, and whole runs of steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from vitrify.engine.errors import RequestError, SpecError
from vitrify.engine.scheduler_config import FLOW_MATCH_EULER_DEFAULTS, check_flow_match_euler
from vitrify.runtime.schedulers.flow_match_euler import FlowMatchEuler
from vitrify.runtime.schedulers.registry import SCHEDULERS, open_scheduler

DEFAULT: Any = FlowMatchEulerDiscreteScheduler()
DYNAMIC = {"use_dynamic_shifting": True}
CONFIGS: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},
    {"shift": 1},
    {"shift": 3, "shift_terminal": 0.1},
    {"shift_terminal": 0.0},
    {"num_train_timesteps": 777},
    {**DYNAMIC, "shift": 3.0},
    {**DYNAMIC, "time_shift_type": "linear"},
    {**DYNAMIC, "shift_terminal": 0.02},
    {**DYNAMIC, "time_shift_type": "linear", "shift_terminal": 0.1, "base_shift": 0.9, "max_shift": 2.3},
    {**DYNAMIC, "base_image_seq_len": 100, "max_image_seq_len": 8192, "base_shift": 0.25, "max_shift": 0.9},
]


def reference(config: dict[str, Any], steps: int, tokens: int, sigmas: list[float] | None) -> Any:
    """The lines of FluxPipeline.__call__ between latents and loop."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**config)
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config.get(key) for key in keys))
    given: Any = np.linspace(1.0, 1 / steps, steps) if sigmas is None else sigmas
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=given, mu=mu)
    scheduler.set_begin_index(0)
    return scheduler


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_schedule_is_bit_equal(config: dict[str, Any]) -> None:
    ours = FlowMatchEuler.from_config(config)
    for steps, tokens in itertools.product([1, 2, 3, 4, 7, 20, 28, 50, 113], [1, 64, 256, 1024, 4096, 5000]):
        if steps == 1 and config.get("shift_terminal"):
            continue
        theirs = reference(config, steps, tokens, None)
        schedule = ours.schedule(steps, tokens)
        assert schedule.timesteps.dtype == schedule.sigmas.dtype == np.float32
        np.testing.assert_array_equal(schedule.sigmas, theirs.sigmas.numpy())
        np.testing.assert_array_equal(schedule.timesteps, theirs.timesteps.numpy())
        np.testing.assert_array_equal(schedule.timesteps / np.float32(1000), (theirs.timesteps / 1000).numpy())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.25], [0.9, 0.8, 0.7, 0.1], [1.0, 0.33, 0.0], [0.6, 0.4]], ids=str)
def test_sigmas_of_the_user(config: dict[str, Any], sigmas: list[float]) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = reference(config, len(sigmas), 333, sigmas)
    schedule = FlowMatchEuler.from_config(config).schedule(len(sigmas), 333, sigmas)
    np.testing.assert_array_equal(schedule.sigmas, theirs.sigmas.numpy())
    np.testing.assert_array_equal(schedule.timesteps, theirs.timesteps.numpy())


def test_configs_differ() -> None:
    """The comparison can fail: no two of the configs (but the two that say the same) share a schedule."""
    tables = [FlowMatchEuler.from_config(config).schedule(5, 1024).timesteps.tobytes() for config in CONFIGS]
    same = {0: 2, 4: 2}
    assert len(set(tables)) == len(CONFIGS) - len(same)


@pytest.mark.parametrize("in_place", [True, False])
def test_steps_are_bit_equal(in_place: bool) -> None:
    theirs = reference({**DYNAMIC}, 20, 1024, None)
    ours = FlowMatchEuler.from_config(DYNAMIC)
    schedule = ours.schedule(20, 1024)
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((2, 16, 8)).astype(np.float32)
    expected = torch.from_numpy(latents.copy())
    other = np.empty_like(latents)
    for i, timestep in enumerate(theirs.timesteps):
        noise_pred = rng.standard_normal(latents.shape).astype(np.float32)
        expected = theirs.step(torch.from_numpy(noise_pred), timestep, expected, return_dict=False)[0]
        before = latents.copy()
        got = ours.step(latents, noise_pred, schedule.sigmas[i], schedule.sigmas[i + 1], out=latents if in_place else other)
        assert got is (latents if in_place else other)
        assert in_place or np.array_equal(latents, before)
        np.testing.assert_array_equal(got, expected.numpy())
        latents, other = got, before


def test_step_allocates_when_no_output_is_given() -> None:
    latents, noise_pred = np.ones((1, 4, 2), np.float32), np.full((1, 4, 2), 2.0, np.float32)
    moved = FlowMatchEuler().step(latents, noise_pred, 1.0, 0.5)
    assert np.array_equal(moved, np.zeros_like(latents))
    assert (latents == 1).all()
    assert (noise_pred == 2).all()


def test_defaults_are_those_of_diffusers() -> None:
    theirs = dict(DEFAULT.config)
    assert {key: theirs[key] for key in FLOW_MATCH_EULER_DEFAULTS} == dict(FLOW_MATCH_EULER_DEFAULTS)


def test_every_option_of_diffusers_is_decided() -> None:
    """An option that a new diffusers adds must be refused until it is obeyed; all of today's are known."""
    check_flow_match_euler(dict(DEFAULT.config))


@pytest.mark.parametrize(
    "option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling", "invert_sigmas"]
)
def test_unsupported_options_are_named(option: str) -> None:
    check_flow_match_euler({option: False})
    with pytest.raises(SpecError, match=f"{option}=True is not supported"):
        FlowMatchEuler.from_config({option: True})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True is unknown"),
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ({"time_shift_type": "cosine"}, "time_shift_type='cosine'"),
        ({"shift": None}, "shift=None"),
        ({"shift": -1.0}, "shift=-1.0"),
        ({"shift": float("nan")}, "shift=nan"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"use_dynamic_shifting": 1}, "use_dynamic_shifting=1"),
        ({"use_dynamic_shifting": True, "base_shift": None}, "base_shift=None"),
        ({"use_dynamic_shifting": True, "base_image_seq_len": 4096}, "base_image_seq_len and max_image_seq_len"),
        ({"shift_terminal": 1.0}, "shift_terminal=1.0"),
        ({"shift_terminal": "0.1"}, "shift_terminal='0.1'"),
    ],
)
def test_bad_configs_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        FlowMatchEuler.from_config(config)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None])
def test_bad_steps(steps: Any) -> None:
    with pytest.raises(RequestError, match="num_inference_steps"):
        FlowMatchEuler().schedule(steps, 64)


@pytest.mark.parametrize(
    "sigmas", [[1.0], [1.0, 0.5, 0.2], [1.0, -0.1], [1.5, 0.5], [float("nan"), 0.5], ["a", "b"], [[1.0, 0.5]]]
)
def test_bad_sigmas(sigmas: Any) -> None:
    with pytest.raises(RequestError, match="sigmas"):
        FlowMatchEuler().schedule(2, 64, sigmas)


def test_one_step_cannot_be_stretched() -> None:
    """diffusers runs this on NaN."""
    with pytest.raises(RequestError, match="shift_terminal"):
        FlowMatchEuler(shift_terminal=0.1).schedule(1, 64)


def test_registry() -> None:
    assert open_scheduler("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}) == FlowMatchEuler(shift=2.0)
    with pytest.raises(SpecError, match=f"PNDMScheduler.*{', '.join(SCHEDULERS)}"):
        open_scheduler("PNDMScheduler", {})
