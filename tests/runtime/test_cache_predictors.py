"""Predictors alone: what polynomials and constants they predict exactly, and in whose memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitrify.engine.cache_policy import Cache, Guards, Hold, Interval, Mask, Taylor
from vitrify.engine.errors import SpecError
from vitrify.runtime.caching.decisions import check_policy, decide, difference_of_batch, differences, resample, row_sums
from vitrify.runtime.caching.predictors import landing, predict, record
from vitrify.runtime.caching.state import DenoisingCacheState, allocate, lane_state
from vitrify.runtime.caching.step import denoising_step

SHAPE = (2, 3, 4)
CORRECTED = Taylor(1, "output", corrected=True)


def state_of(cache: Cache) -> DenoisingCacheState:
    state = DenoisingCacheState(policy=cache, of="output")
    allocate(state, SHAPE)
    return state


def compute(state: DenoisingCacheState, step: float, value: Any, into_landing: bool = False) -> None:
    progress = state.progress
    progress.step, progress.position = int(step), step
    if into_landing:
        target = landing(state)
        target[...] = value
        value = target
    record(state, value)
    progress.positions = [step, *progress.positions[:2]]


def prediction(state: DenoisingCacheState, step: float) -> Any:
    state.progress.step, state.progress.position = int(step), step
    return predict(state)


def polynomial(degree: int) -> Any:
    coefficients = np.random.default_rng(degree).integers(-3, 4, (degree + 1, *SHAPE)).astype(np.float32)
    return lambda s: sum((coefficients[i] * np.float32(s) ** i for i in range(degree + 1)), np.zeros(SHAPE, np.float32))


@pytest.mark.parametrize("into_landing", [False, True])
@pytest.mark.parametrize("compat", [None, "max"])
@pytest.mark.parametrize(("order", "degree"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
def test_polynomials_up_to_the_order(order: int, degree: int, compat: Any, into_landing: bool) -> None:
    """Exactly, at uneven spacing, once order + 1 steps were computed. Release 26.7 only for degrees 0 and 1, and later."""
    state = state_of(Cache(Interval(), Taylor(order, "output"), compat=compat))
    value = polynomial(degree)
    computed = [0, 1, 4, 6, 9]
    for i, step in enumerate(computed):
        compute(state, step, value(step), into_landing and compat is None)
        if compat is None and i >= degree:
            for ahead in (1, 2, 5):
                np.testing.assert_allclose(prediction(state, step + ahead), value(step + ahead), rtol=1e-6, atol=1e-4)
    if compat == "max" and degree == 2:
        assert np.abs(prediction(state, 12) - value(12)).max() > 1
    elif compat == "max":
        np.testing.assert_allclose(prediction(state, 12), value(12), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_values_of_more_than_one_block(order: int) -> None:
    """Each element of a long value is extrapolated, the last and shorter block's too."""
    state = DenoisingCacheState(policy=Cache(Interval(), Taylor(order, "output")), of="output")
    first = np.random.default_rng(0).integers(-8, 9, (1, 1, 2 * 32_768 + 5)).astype(np.float32)
    for step in (0, 1, 2):
        compute(state, step, first * step)
    assert np.array_equal(prediction(state, 7), first * 7)


@pytest.mark.parametrize("predictor", [Hold("output"), Taylor(1, "output"), Taylor(2, "output")])
def test_a_constant_from_the_first_skip(predictor: Any) -> None:
    state = state_of(Cache(Interval(), predictor))
    value = np.full(SHAPE, 1.25, np.float32)
    for step in (0, 1, 3):
        compute(state, step, value)
        assert np.array_equal(prediction(state, step + 1), value)
        assert np.array_equal(prediction(state, step + 7), value)


def test_along_sigma() -> None:
    """A line in sigma is predicted exactly though its steps are uneven."""
    state = state_of(Cache(Interval(), Taylor(1, "output", "sigma")))
    sigmas = [1.0, 0.9, 0.5, 0.3]
    line = polynomial(1)
    for sigma in sigmas[:2]:
        compute(state, sigma, line(sigma))
    for sigma in sigmas[2:]:
        np.testing.assert_allclose(prediction(state, sigma), line(sigma), rtol=1e-5, atol=1e-5)


class Given:
    """A pipeline whose computed steps give `values` as they are."""

    cache = None

    def __init__(self, values: Any) -> None:
        self.values = values

    def run_transformer(self, cache_state: DenoisingCacheState, **kwargs: Any) -> tuple[Any, ...]:
        del kwargs
        return (self.values[cache_state.progress.step],)

    def run_skipped(self, cache_state: DenoisingCacheState, **kwargs: Any) -> Any:
        del cache_state, kwargs
        pytest.fail("a prediction of the output needs no run of anything")


def interpolated(at: float, positions: Any, values: Any) -> Any:
    """Lagrange's form, float64."""
    weights = [np.prod([(at - other) / (p - other) for other in positions if other != p]) for p in positions]
    return sum(w * np.asarray(v, np.float64) for w, v in zip(weights, values, strict=True))


@pytest.mark.parametrize("along", ["step", "sigma"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_corrected_prediction(order: int, along: Any) -> None:
    """At a computed step the latents lie where its own value and the order + 1 before it, interpolated, would have led."""
    computed = [0, 3, 4, 6, 9, 10, 13]
    steps = 15
    sigmas = [*(np.linspace(1, 0.15, steps) ** 1.5).tolist(), 0.0]
    widths = np.diff(sigmas)
    place = sigmas if along == "sigma" else list(range(steps))
    values = np.random.default_rng(7).standard_normal((steps, *SHAPE)).astype(np.float32)
    mask = Mask(tuple(s in computed for s in range(steps)))
    cache = Cache(mask, Taylor(order, "output", along, corrected=True))
    state = lane_state(cache, values[0], values[0], steps, sigmas, 0.0)
    buffers = {id(array) for array in state.buffers}
    moved, ideal = np.zeros(SHAPE), np.zeros(SHAPE)
    pending: list[int] = []
    for step in range(steps):
        noise_pred = denoising_step(Given(values), step, state, {})
        moved += widths[step] * noise_pred
        before = [s for s in computed if s < step][-(order + 1) :]
        if step not in computed:
            pending.append(step)
            predicted = interpolated(place[step], [place[s] for s in before], values[before])
            np.testing.assert_allclose(noise_pred, predicted, rtol=1e-4, atol=1e-4)
            continue
        nodes = [*before, step]
        for skipped in pending:
            ideal += widths[skipped] * interpolated(place[skipped], [place[s] for s in nodes], values[nodes])
        ideal += widths[step] * values[step]
        np.testing.assert_allclose(moved, ideal, rtol=1e-4, atol=1e-4)
        assert np.array_equal(noise_pred, values[step]) == (not pending)
        pending = []
    assert {id(array) for array in state.buffers} == buffers


def test_predictions_are_read_only_and_buffers_stay() -> None:
    for predictor in (Hold("output"), Taylor(1, "output"), Taylor(2, "output")):
        state = state_of(Cache(Interval(), predictor))
        buffers = {id(array) for array in state.buffers}
        for step in range(6):
            compute(state, step, np.full(SHAPE, step, np.float32), into_landing=step % 2 == 0)
            with pytest.raises(ValueError, match="read-only"):
                prediction(state, step + 1)[...] = 0
        assert {id(array) for array in state.buffers} == buffers


@pytest.mark.parametrize(
    ("predictor", "values"), [(Hold("output"), 1), (Taylor(1, "output"), 3), (Taylor(2, "output"), 4), (CORRECTED, 4)]
)
def test_memory(predictor: Any, values: int) -> None:
    state = state_of(Cache(Interval(), predictor))
    assert state.allocated_bytes == values * np.prod(SHAPE) * 4


def test_another_shape_is_refused() -> None:
    state = state_of(Cache(Interval(), Hold("output")))
    with pytest.raises(SpecError, match=r"the output to be held has shape \[2, 3, 1\], expected \[2, 3, 4\]"):
        compute(state, 0, np.zeros((2, 3, 1), np.float32))


def test_differences() -> None:
    """Against float64, over more than one chunk; zero against zero is no number, so that nothing is below it."""
    rng = np.random.default_rng(0)
    reference, residual = (rng.standard_normal((3, 700, 130)).astype(np.float32) for _ in range(2))
    reference[2] = 0
    got = differences(row_sums(residual, reference))
    wide, wide_ref = residual.astype(np.float64), reference.astype(np.float64)
    for row in range(2):
        assert got[row] == pytest.approx(np.abs(wide[row] - wide_ref[row]).mean() / np.abs(wide_ref[row]).mean(), rel=1e-6)
    assert got[2] == float("inf")
    assert np.isnan(differences(row_sums(reference[2:], reference[2:]))[0])
    expected = np.abs(wide - wide_ref).mean() / (np.abs(wide_ref).mean() + 1e-9)
    assert difference_of_batch(row_sums(residual, reference), residual.size) == pytest.approx(expected, rel=1e-6)


def test_resampling_a_table() -> None:
    assert resample((1.0, 2.0, 3.0), 3) == (1.0, 2.0, 3.0)
    assert resample((1.0, 2.0, 3.0), 1) == (3.0,)
    assert resample((1.0, 2.0, 3.0), 5) == (1.0, 1.0, 2.0, 3.0, 3.0)  # halves round to even, as torch.round does
    assert resample(tuple(map(float, range(28))), 50)[-1] == 27


def test_what_a_policy_needs_of_a_request() -> None:
    needing = [
        Cache(Mask(preset="fast")),
        Cache(Interval(), guards=Guards(last_steps=1)),
        Cache(Interval(), guards=Guards(only_above_steps=8)),
    ]
    for cache in needing:
        with pytest.raises(SpecError, match=r"set cache_state\.num_inference_steps before the first step"):
            check_policy(cache, None, None)
        check_policy(cache, 20, None)
    with pytest.raises(SpecError, match=r"Mask\.steps has 2 entries, the request has 3 steps"):
        check_policy(Cache(Mask((True, False))), 3, None)
    along = Cache(Interval(), Taylor(1, along="sigma"))
    with pytest.raises(SpecError, match=r"set cache_state\.sigmas"):
        check_policy(along, 3, None)
    with pytest.raises(SpecError, match="needs sigmas that fall"):
        check_policy(along, 3, [1.0, 0.5, 0.5, 0.0])
    check_policy(along, 3, [1.0, 0.5, 0.2, 0.2])
    corrected = Cache(Interval(), Taylor(1, "output", corrected=True))
    with pytest.raises(SpecError, match=r"set cache_state\.num_inference_steps"):
        check_policy(corrected, None, [1.0, 0.5, 0.2])
    with pytest.raises(SpecError, match="needs the sigmas of 3 steps and of the last one's end, 4, got 3"):
        check_policy(corrected, 3, [1.0, 0.5, 0.2])
    with pytest.raises(SpecError, match=r"needs sigmas that fall .*; use corrected=False"):
        check_policy(corrected, 3, [1.0, 0.5, 0.2, 0.2])
    check_policy(corrected, 3, [1.0, 0.5, 0.2, 0.0])


def test_without_a_policy_every_step_is_computed() -> None:
    assert decide(DenoisingCacheState(), 5) is True
