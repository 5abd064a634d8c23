"""Every decision with every predictor in users' own pipelines: schedules, identities, guards, errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.own_pipelines import CHANNELS, CONFIG, ROWS, TOKENS, WIDTH, Plain, Probing, ProbingResidual, Residual, make
from vitrify.engine.cache_policy import Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import SpecError
from vitrify.runtime import DenoisingCacheConfig, DenoisingCacheState, Device

STEPS = 12


def run(folder: Path, kind: Any, steps: int = STEPS, **options: Any) -> Any:
    pipe = make(folder, kind, DenoisingCacheConfig(**options))
    pipe.execute(steps)
    return pipe


@pytest.mark.parametrize("warmup", range(1, 13))
def test_the_documented_schedule(tmp_path: Path, warmup: int) -> None:
    for interval in range(1, 9):
        pipe = run(tmp_path, Plain, 100, taylorseer=True, taylorseer_cache_interval=interval, taylorseer_warmup_steps=warmup)
        expected = [s for s in range(100) if not (s >= warmup and (s - warmup - 1) % interval != 0)]
        assert pipe.computed == expected
        assert [r.step for r in pipe.state.progress.log if r.computed] == expected
        assert pipe.state.taylor_last_compute_step == expected[-1]


def test_the_documented_defaults(tmp_path: Path) -> None:
    assert run(tmp_path, Plain, 28, taylorseer=True).computed == [*range(9), 10, 15, 20, 25]
    assert len(run(tmp_path, Plain, 50, taylorseer=True).computed) == 17
    four = run(tmp_path, Plain, 12, taylorseer=True, taylorseer_warmup_steps=4)
    assert four.computed == [0, 1, 2, 3, 5, 10]


def test_a_class_sets_its_own_defaults(tmp_path: Path) -> None:
    own = type(
        "Own",
        (Plain,),
        {"default_taylorseer_cache_interval": 3, "default_taylorseer_warmup_steps": 2, "default_taylorseer_max_order": 2},
    )
    pipe = run(tmp_path, own, 10, taylorseer=True)
    assert pipe.computed == [0, 1, 3, 6, 9]
    assert pipe.state.taylor_factor_2 is not None
    threshold = type("Threshold", (Probing,), {"default_residual_threshold": 1e9})
    assert run(tmp_path, threshold, first_block_caching=True).computed == [0]


SETTINGS: list[tuple[Any, Any, Any]] = [
    *[(kind, FirstBlock(0.0), predictor) for kind in (Probing,) for predictor in (None, Hold("output"), Taylor(2, "output"))],
    *[(ProbingResidual, FirstBlock(0.0), p) for p in (None, Hold("residual"), Taylor(1, "residual"), Taylor(2), Hold("output"))],
    *[(kind, Interval(1, 1), p) for kind in (Plain, Residual) for p in (None, Hold("output"), Taylor(1, "output"))],
    *[(Residual, Mask((True,) * STEPS), p) for p in (None, Hold("residual"), Taylor(2, "residual", "sigma"))],
    (Residual, Magnitude((1.5,)), None),
]


@pytest.mark.parametrize(("kind", "decision", "predictor"), SETTINGS)
def test_a_cache_that_computes_every_step_is_no_cache(tmp_path: Path, kind: Any, decision: Any, predictor: Any) -> None:
    cached = run(tmp_path, kind, decision=decision, predictor=predictor)
    assert cached.computed == list(range(STEPS))
    base = Plain if kind is Probing else kind
    if kind is ProbingResidual:
        # Its own form of a computed step: first + (last − first).
        never = run(tmp_path, kind, decision=FirstBlock(1e9), guards=Guards(warmup_steps=STEPS))
        assert np.array_equal(cached.latents, never.latents)
    else:
        assert np.array_equal(cached.latents, run(tmp_path, base).latents)


@pytest.mark.parametrize("order", [None, 1, 2])
@pytest.mark.parametrize("kind", [Plain, Residual])
def test_outputs_that_stand_in(tmp_path: Path, kind: Any, order: int | None) -> None:
    """Against the formula, written with float64 from the computed outputs."""
    predictor = Hold("output") if order is None else Taylor(order, "output")
    mask = (1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1)
    pipe = run(tmp_path, kind, decision=Mask(mask), predictor=predictor)  # type: ignore[arg-type]
    assert pipe.computed == [s for s in range(STEPS) if mask[s]]
    for step in range(STEPS):
        if not mask[step]:
            known = [s for s in range(step) if mask[s]][-(1 if order is None else order + 1) :]
            values = [pipe.outputs[s].astype(np.float64) for s in known]
            expected = sum(
                value * np.prod([(step - other) / (s - other) for other in known if other != s])
                for s, value in zip(known, values, strict=True)
            )
            np.testing.assert_allclose(pipe.outputs[step], expected, rtol=0, atol=2e-5)


def test_the_first_block_decides(tmp_path: Path) -> None:
    """Against the rule written down: the reference is the last computed step's; a row that would not skip computes all."""
    threshold = 0.08
    for kind in (Probing, ProbingResidual):
        pipe = run(tmp_path, kind, decision=FirstBlock(threshold))
        assert 1 < len(pipe.computed) < STEPS
        for record in pipe.state.progress.log:
            if record.step == 0:
                assert record.differences is None
            else:
                assert len(record.differences) == ROWS
                assert record.computed == (max(record.differences) >= threshold)
    finer, coarser = (len(run(tmp_path, ProbingResidual, decision=FirstBlock(t)).computed) for t in (0.03, 0.3))
    assert finer > len(pipe.computed) > coarser


def test_the_reference_is_the_last_computed_steps(tmp_path: Path) -> None:
    """A drift in small steps is seen; release 26.7 compares with the step before and never does."""

    def drifting(folder: Path, **options: Any) -> list[int]:
        pipe = make(folder, Probing, DenoisingCacheConfig(**options))
        state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
        computed = []
        base = np.ones((ROWS, TOKENS, WIDTH), np.float32)
        output = np.zeros((ROWS, TOKENS, CHANNELS), np.float32)
        for step in range(28):
            residual = base * np.float32(1.03**step)
            pipe.run_transformer = lambda state, residual=residual, **_: pipe.first_block(state, residual, lambda: output)
            pipe.run_denoising_step(step, state, Device())
            if state.computed:
                computed.append(step)
        return computed

    assert drifting(tmp_path, first_block_caching=True, compat="max") == [0]
    assert drifting(tmp_path, first_block_caching=True) == list(range(0, 28, 2))


def test_a_lane_skips_only_if_every_row_would(tmp_path: Path) -> None:
    pipe = make(tmp_path, Probing, DenoisingCacheConfig(decision=FirstBlock(0.1)))
    state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
    output = np.zeros((ROWS, TOKENS, CHANNELS), np.float32)
    rows = [(1.0, 1.0), (1.05, 1.05), (1.05, 1.2), (1.1, 1.25)]
    seen: list[Any] = []
    reference: Any = None
    for step, scales in enumerate(rows):
        residual = np.ones((ROWS, TOKENS, WIDTH), np.float32) * np.array(scales, np.float32)[:, None, None]
        pipe.run_transformer = lambda state, residual=residual, **_: pipe.first_block(state, residual, lambda: output)
        pipe.run_denoising_step(step, state, Device())
        seen.append(state.computed)
        reference = residual if state.computed else reference
        assert np.array_equal(state.prev_residual, reference)
    assert seen == [True, False, True, False]


def test_a_request_has_its_own_threshold(tmp_path: Path) -> None:
    pipe = make(tmp_path, Probing, DenoisingCacheConfig(first_block_caching=True))
    state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
    state.residual_threshold = 1e9
    for step in range(4):
        pipe.run_denoising_step(step, state, Device(), latents=np.ones((ROWS, TOKENS, CHANNELS), np.float32), time=step, at=step)
    assert pipe.computed == [0]


@pytest.mark.parametrize("kind", [Probing, ProbingResidual])
def test_zero_residuals_compute(tmp_path: Path, kind: Any) -> None:
    """Both zero: release 26.7 takes it for a hit and gives zeros, in the first step too."""
    output = np.ones((ROWS, TOKENS, CHANNELS), np.float32)
    zero = np.zeros((ROWS, TOKENS, WIDTH), np.float32)
    for options, expected in (({"compat": "max"}, [False, False]), ({}, [True, True])):
        pipe = make(tmp_path, kind, DenoisingCacheConfig(first_block_caching=True, **options))  # type: ignore[arg-type]
        state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
        pipe.run_transformer = lambda state, pipe=pipe, **_: pipe.first_block(state, zero, lambda: output)
        seen = []
        for step in range(2):
            noise_pred = pipe.run_denoising_step(step, state, Device())
            seen.append(state.computed)
            assert noise_pred.all() == expected[0]
        assert seen == expected


GUARDS: list[tuple[dict[str, int], list[int]]] = [
    ({"warmup_steps": 3}, [0, 1, 2]),
    ({"last_steps": 2}, [0, 10, 11]),
    ({"max_consecutive_skips": 3}, [0, 4, 8]),
    ({"max_skips": 8}, [0, 9, 10, 11]),
    ({"only_above_steps": 12}, list(range(12))),
    ({"only_above_steps": 11}, [0]),
    ({"warmup_steps": 2, "max_consecutive_skips": 4, "last_steps": 1}, [0, 1, 6, 11]),
]


@pytest.mark.parametrize(("guards", "expected"), GUARDS)
def test_guards(tmp_path: Path, guards: dict[str, int], expected: list[int]) -> None:
    """Under decisions that would skip everything else."""
    for kind, decision in ((ProbingResidual, FirstBlock(1e9)), (Plain, Mask((True, *[False] * 11)))):
        assert run(tmp_path, kind, decision=decision, guards=Guards(**guards)).computed == expected


def test_magnitudes(tmp_path: Path) -> None:
    """MagCache's rule against itself written down; γ below 1 adds up."""
    ratios = tuple(float(r) for r in np.linspace(1.0, 0.93, 20))
    for threshold, most, share in ((0.06, 3, 0.2), (0.5, 2, 0.1), (0.2, 9, 0.0), (0.0, 3, 0.2)):
        expected, ratio, error, count = [], 1.0, 0.0, 0
        for step in range(20):
            if step >= int(share * 20 + 0.5):
                ratio, count = ratio * ratios[step], count + 1
                error += abs(1 - ratio)
                if step and error <= threshold and count <= most:
                    continue
                ratio, error, count = 1.0, 0.0, 0
            expected.append(step)
        decision = Magnitude(ratios, threshold, most, share)
        assert run(tmp_path, Residual, 20, decision=decision).computed == expected


def test_residuals_keep_what_surrounds_them_fresh(tmp_path: Path) -> None:
    """A held residual is added to this step's own embedding; the error to the uncached run is below the held output's."""
    plain = run(tmp_path, Plain)
    mask = Mask(tuple(s % 2 == 0 for s in range(STEPS)))

    def error(kind: Any, predictor: Any) -> float:
        return float(np.abs(run(tmp_path, kind, decision=mask, predictor=predictor).latents - plain.latents).max())

    held, output, taylor = error(Residual, None), error(Residual, Hold("output")), error(Residual, Taylor(1))
    assert taylor < held < output


def test_both_flags_compose(tmp_path: Path) -> None:
    for kind in (Probing, ProbingResidual):
        options: dict[str, Any] = {"first_block_caching": True, "taylorseer": True, "taylorseer_warmup_steps": 3}
        pipe = run(tmp_path, type("Wide", (kind,), {"default_residual_threshold": 1e9}), **options)
        assert pipe.computed == [0, 1, 2]
        slope = pipe.outputs[2] - pipe.outputs[1]
        np.testing.assert_allclose(pipe.outputs[4], pipe.outputs[2] + 2 * slope, rtol=0, atol=1e-5)
        assert pipe.state.of == "output"
        assert pipe.state.taylor_factor_0 is pipe.state.factors[0]
        assert np.array_equal(pipe.state.prev_output, pipe.outputs[2])


def test_documented_fields_are_the_memory_of_what_is_held(tmp_path: Path) -> None:
    whole = run(tmp_path, Probing, first_block_caching=True).state
    assert whole.held is whole.prev_output
    residual = run(tmp_path, ProbingResidual, first_block_caching=True).state
    assert residual.held.shape == (ROWS, TOKENS, WIDTH)
    assert residual.held is not residual.prev_output
    explicit = run(tmp_path, ProbingResidual, first_block_caching=True, predictor=Hold("residual")).state
    assert explicit.prev_output is None
    extrapolated = run(tmp_path, Residual, decision=Interval(3, 3), predictor=Taylor(2, "residual")).state
    assert extrapolated.taylor_factor_0 is None
    assert len(extrapolated.factors) == 3


def test_two_requests_share_nothing(tmp_path: Path) -> None:
    """Steps of two requests, turn by turn, give what each gives alone."""
    config = DenoisingCacheConfig(decision=FirstBlock(0.08), predictor=Taylor(1))
    alone = [make(tmp_path, ProbingResidual, config) for _ in range(2)]
    starts = [np.random.default_rng(i).standard_normal((ROWS, TOKENS, CHANNELS)).astype(np.float32) for i in range(2)]

    def step(pipe: Any, state: Any, latents: Any, at: int) -> Any:
        return latents - pipe.run_denoising_step(at, state, Device(), latents=latents, time=1 - at / STEPS, at=at) / STEPS

    expected = []
    for pipe, latents in zip(alone, starts, strict=True):
        state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
        for at in range(STEPS):
            latents = step(pipe, state, latents, at)
        expected.append(latents)
    shared = make(tmp_path, ProbingResidual, config)
    states, got = [shared.create_cache_state(ROWS, TOKENS, CONFIG) for _ in range(2)], list(starts)
    for at in range(STEPS):
        got = [step(shared, state, latents, at) for state, latents in zip(states, got, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def odd(folder: Path, kind: Any, hook: Any, **options: Any) -> tuple[Any, DenoisingCacheState]:
    pipe = make(folder, type("Odd", (kind,), {"run_transformer": hook}), DenoisingCacheConfig(**options))
    state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
    state.num_inference_steps = STEPS
    return pipe, state


NOISE = np.zeros((ROWS, TOKENS, CHANNELS), np.float32)
RESIDUAL = np.ones((ROWS, TOKENS, WIDTH), np.float32)
BAD_HOOKS: list[tuple[Any, Any, dict[str, Any], str]] = [
    (Plain, lambda _self, _s, **_: NOISE, {"taylorseer": True}, "Odd.run_transformer returned ndarray, expected (noise_pred,)"),
    (
        Plain,
        lambda _self, _s, **_: (RESIDUAL, NOISE),
        {"taylorseer": True},
        "returned a tuple of 2, expected (noise_pred,): first",
    ),
    (Plain, lambda _self, _s, **_: (NOISE[0],), {"taylorseer": True}, "noise_pred is float32[5, 4], expected float32[2, 5, 4]"),
    (
        Plain,
        lambda _self, _s, **_: (NOISE.astype(np.float64),),
        {"taylorseer": True},
        "noise_pred is float64[2, 5, 4], expected float32",
    ),
    (Plain, lambda _self, _s, **_: (NOISE.tolist(),), {"taylorseer": True}, "noise_pred is a list, expected a numpy array"),
    (
        Residual,
        lambda _self, _s, **_: (NOISE,),
        {"decision": Interval()},
        "did not call self.keep_residual(cache_state, residual)",
    ),
    (
        Probing,
        lambda _self, _s, **_: (NOISE,),
        {"first_block_caching": True},
        "a tuple of 1, expected (new_residual, noise_pred)",
    ),
    (
        Probing,
        lambda _self, _s, **_: (RESIDUAL, NOISE),
        {"first_block_caching": True},
        "did not call self.first_block(cache_state",
    ),
    (
        Probing,
        lambda self, s, **_: self.first_block(s, RESIDUAL[:, :1], lambda: NOISE),
        {"first_block_caching": True},
        "first_block: residual is float32[2, 1, 6], expected float32[2, 5, 6]",
    ),
    (
        Probing,
        lambda self, s, **_: self.first_block(s, RESIDUAL, lambda: NOISE.astype(np.int32)),
        {"first_block_caching": True},
        "noise_pred is int32[2, 5, 4], expected float32",
    ),
    (
        Probing,
        lambda self, s, **_: self.first_block(s, RESIDUAL, lambda: NOISE),
        {"first_block_caching": True, "predictor": Hold("residual")},
        "called without finish, so a residual cannot stand in",
    ),
    (
        Probing,
        lambda self, s, **_: self.first_block(s, RESIDUAL, lambda: [1], lambda _: NOISE),
        {"first_block_caching": True},
        "the remaining blocks' residual is a list",
    ),
    (
        Plain,
        lambda self, s, **_: self.first_block(s, RESIDUAL, lambda: NOISE),
        {"taylorseer": True},
        "does not decide by the first block",
    ),
]


@pytest.mark.parametrize(("kind", "hook", "options", "message"), BAD_HOOKS)
def test_hooks_that_return_something_else(tmp_path: Path, kind: Any, hook: Any, options: dict[str, Any], message: str) -> None:
    """A named error at that step, and the request's buffers are released."""
    pipe, state = odd(tmp_path, kind, hook, **options)
    with pytest.raises(SpecError, match=re.escape(message)):
        pipe.run_denoising_step(0, state, Device())
    assert state.allocated_bytes == 0
    with pytest.raises(SpecError, match="this cache state ended with an error"):
        pipe.run_denoising_step(1, state, Device())


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    pipe = make(tmp_path, Plain, DenoisingCacheConfig(taylorseer=True))
    keywords: dict[str, Any] = {"latents": NOISE, "time": 0.5, "at": 0}
    with pytest.raises(SpecError, match="cache_state was not made by create_cache_state"):
        pipe.run_denoising_step(0, DenoisingCacheState(), Device(), **keywords)
    state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
    pipe.run_denoising_step(3, state, Device(), **keywords)
    with pytest.raises(SpecError, match="step 3 follows step 3: a cache state serves one request"):
        pipe.run_denoising_step(3, state, Device(), **keywords)
    masked = make(tmp_path, Plain, DenoisingCacheConfig(decision=Mask((True, False))))
    with pytest.raises(SpecError, match=r"set cache_state\.num_inference_steps before the first step"):
        masked.run_denoising_step(0, masked.create_cache_state(ROWS, TOKENS, CONFIG), Device(), **keywords)
    wrong = masked.create_cache_state(ROWS, TOKENS, CONFIG)
    wrong.num_inference_steps = 5
    with pytest.raises(SpecError, match=r"Mask\.steps has 2 entries, the request has 5 steps"):
        masked.run_denoising_step(0, wrong, Device(), **keywords)
    assert masked.computed == []
    ended = masked.create_cache_state(ROWS, TOKENS, CONFIG)
    ended.num_inference_steps = 2
    masked.run_denoising_step(0, ended, Device(), **keywords)
    with pytest.raises(SpecError, match="step 2 is outside the request's 2 steps"):
        masked.run_denoising_step(2, ended, Device(), **keywords)


def test_a_predictor_without_its_hook_is_refused_at_construction(tmp_path: Path) -> None:
    for predictor in (Hold("residual"), Taylor(1, "residual")):
        with pytest.raises(SpecError, match=r"Plain has no hook for it; define run_skipped\(cache_state, \*\*kwargs\)"):
            make(tmp_path, Plain, DenoisingCacheConfig(decision=Interval(), predictor=predictor))
    assert make(tmp_path, Residual, DenoisingCacheConfig(decision=Interval(), predictor=Hold("residual"))).cache is not None
    with pytest.raises(SpecError, match="Plain has no run_skipped"):
        make(tmp_path, Plain).run_skipped(DenoisingCacheState())


def test_another_activation_dtype(tmp_path: Path) -> None:
    """Held values have the activation's dtype, factors are float32; a hook must keep to it."""
    half = type(
        "Half",
        (Plain,),
        {"activation_dtype": np.float16, "run_transformer": lambda _self, _s, **_: (NOISE.astype(np.float16) + 1,)},
    )
    for options, held in (({"taylorseer": True}, None), ({"decision": Interval(), "predictor": Hold("output")}, np.float16)):
        pipe = make(tmp_path, half, DenoisingCacheConfig(**options))
        state = pipe.create_cache_state(ROWS, TOKENS, CONFIG)
        for step in range(12):
            assert (pipe.run_denoising_step(step, state, Device()) == 1).all()
        assert state.held is None if held is None else state.held.dtype == held
        assert all(factor.dtype == np.float32 for factor in state.factors)


def test_policies_are_values() -> None:
    assert Cache(Interval(3, 3)) == Cache(Interval(3, 3))
    assert hash(Cache(Mask((True, False)), Taylor(2))) == hash(Cache(Mask((True, False)), Taylor(2)))
