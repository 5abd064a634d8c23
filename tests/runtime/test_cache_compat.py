"""compat="max" against release 26.7's rules written down a second time, and the table of its defects against ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.own_pipelines import CHANNELS, CONFIG, ROWS, TOKENS, WIDTH, Plain, Probing, make
from vitrify.engine.cache_policy import Interval, Mask, Taylor
from vitrify.runtime import DenoisingCacheConfig, Device

SHAPE = (ROWS, TOKENS, CHANNELS)
STEPS = 28


def sequence(count: int) -> list[Any]:
    """Outputs of a run: a slow drift and some noise."""
    rng = np.random.default_rng(1)
    base, slope = (rng.standard_normal(SHAPE) for _ in range(2))
    return [(base + slope * np.sin(s / 6) + 0.05 * rng.standard_normal(SHAPE)).astype(np.float32) for s in range(count)]


def played(folder: Path, values: list[Any], **options: Any) -> tuple[list[Any], list[int], Any]:
    """What a pipeline gives whose transformer gives `values`; which steps were computed."""
    pipe = make(
        folder,
        type("Played", (Plain,), {"run_transformer": lambda _self, _s, **k: (values[k["at"]],)}),
        DenoisingCacheConfig(**options),
    )
    state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
    state.num_inference_steps = len(values)
    outputs, computed = [], []
    for step in range(len(values)):
        outputs.append(pipe.run_denoising_step(step, state, Device(), at=step).copy())
        computed += [step] if state.computed else []
    return outputs, computed, state


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("warmup", "interval"), [(9, 5), (1, 3), (4, 2), (3, 7)])
def test_taylorseer(tmp_path: Path, order: int, warmup: int, interval: int) -> None:
    values = sequence(STEPS)
    outputs, computed, state = played(
        tmp_path,
        values,
        taylorseer=True,
        compat="max",
        taylorseer_max_order=order,
        taylorseer_warmup_steps=warmup,
        taylorseer_cache_interval=interval,
    )
    f0 = f1 = f2 = np.zeros(SHAPE)
    last: int | None = None
    for step in range(STEPS):
        delta = 1 if last is None else step - last
        if step >= warmup and (step - warmup - 1) % interval != 0:
            assert step not in computed
            expected = f0 + f1 * delta + f2 * delta**2 / 2
        else:
            assert step in computed
            expected = values[step]
            d = delta + 1e-9
            new = values[step].astype(np.float64)
            f0, f1, f2 = new, (new - f0) / d, (((new - f0) / d) - f1) / d * (order >= 2)
            last = step
        np.testing.assert_allclose(outputs[step], expected, rtol=0, atol=1e-5)
    for got, expected in zip((state.taylor_factor_0, state.taylor_factor_1, state.taylor_factor_2), (f0, f1, f2), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_first_block(tmp_path: Path) -> None:
    """The reference is the step before, the batch decides as one, the final output is held, the tuple is stored on hits."""
    rng = np.random.default_rng(2)
    residuals = [rng.standard_normal((ROWS, TOKENS, WIDTH)).astype(np.float32)]
    for _ in range(STEPS - 1):
        residuals.append((residuals[-1] + rng.uniform(0, 0.12) * rng.standard_normal(residuals[0].shape)).astype(np.float32))
    values = sequence(STEPS)
    pipe = make(tmp_path, Probing, DenoisingCacheConfig(first_block_caching=True, compat="max"))
    state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
    previous, output, hits = np.zeros_like(residuals[0]), np.zeros(SHAPE, np.float32), 0
    for step in range(STEPS):
        pipe.run_transformer = lambda state, step=step, **_: pipe.first_block(state, residuals[step], lambda: values[step])
        got = pipe.run_denoising_step(step, state, Device())
        rel = np.abs(residuals[step] - previous).mean() / (np.abs(previous).mean() + 1e-9)
        hit = bool(rel < 0.05)
        output = output if hit else values[step]
        previous, hits = residuals[step], hits + hit
        assert state.computed == (not hit)
        assert np.array_equal(got, output)
        assert np.array_equal(state.prev_residual, previous)
        assert np.array_equal(state.prev_output, output)
    assert 3 < hits < STEPS - 3


def constant(steps: int) -> list[Any]:
    return [np.ones(SHAPE, np.float32)] * steps


def test_zeros_that_count_as_history(tmp_path: Path) -> None:
    """A constant 1.0 in order 2 after one warm-up step: release 26.7 predicts 2.5 … −3.0, ours 1.0."""
    numbers: dict[str, Any] = {"taylorseer_max_order": 2, "taylorseer_warmup_steps": 1, "taylorseer_cache_interval": 5}
    theirs, computed, _ = played(tmp_path, constant(7), taylorseer=True, compat="max", **numbers)
    assert computed == [0, 2]
    assert theirs[1].flat[0] == pytest.approx(2.5)
    assert theirs[6].flat[0] == pytest.approx(-3.0)
    ours, again, _ = played(tmp_path, constant(7), taylorseer=True, **numbers)
    assert again == computed
    assert all((output == 1).all() for output in ours)


def test_squares(tmp_path: Path) -> None:
    """0, 1, 4 computed: 9, 16, 25 follow. Release 26.7 predicts 8, 14, 22."""
    from vitrify.engine.cache_policy import Cache
    from vitrify.runtime.caching.predictors import predict, record
    from vitrify.runtime.caching.state import DenoisingCacheState, allocate

    for compat, expected in (("max", [8, 14, 22]), (None, [9, 16, 25])):
        state = DenoisingCacheState(policy=Cache(Interval(), Taylor(2, "output"), compat=compat), of="output")  # type: ignore[arg-type]
        allocate(state, SHAPE)
        for step in range(3):
            state.progress.step, state.progress.position = step, step
            record(state, np.full(SHAPE, step**2, np.float32))
            state.progress.positions.insert(0, step)
        got = []
        for step in (3, 4, 5):
            state.progress.step, state.progress.position = step, step
            got.append(predict(state).flat[0])
        assert got == pytest.approx(expected, abs=1e-5)
    values = [np.full(SHAPE, float(s * s), np.float32) for s in range(6)]
    mask = Mask((True, True, True, False, False, False))
    outputs, _, _ = played(tmp_path, values, decision=mask, predictor=Taylor(2, "output"))
    assert [output.flat[0] for output in outputs] == [0, 1, 4, 9, 16, 25]


def test_a_second_factor_that_nobody_asked_for(tmp_path: Path) -> None:
    """Order 1: release 26.7 computes f2 and masks it, so that a NaN there poisons the result; ours has none."""
    numbers: dict[str, Any] = {"taylorseer": True, "taylorseer_warmup_steps": 2, "taylorseer_cache_interval": 4}
    for compat in ("max", None):
        pipe = make(
            tmp_path,
            type("Ones", (Plain,), {"run_transformer": lambda _self, _s, **_: (np.ones(SHAPE, np.float32),)}),
            DenoisingCacheConfig(compat=compat, **numbers),
        )
        state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
        assert (state.taylor_factor_2 is None) == (compat is None)
        pipe.run_denoising_step(0, state, Device())
        pipe.run_denoising_step(1, state, Device())
        if state.taylor_factor_2 is not None:
            state.taylor_factor_2[...] = np.nan
        assert np.isnan(pipe.run_denoising_step(2, state, Device())).all() == (compat == "max")
