"""Step caches over a real engine: identities, batches, memory to the byte, and the graph that measures the first block."""

from __future__ import annotations

import gc
import json
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.compare import assert_close
from vitrify.engine.artifact.presets import Calibration, Presets, Tuned, write_presets
from vitrify.engine.cache_memory import cache_memory
from vitrify.engine.cache_policy import Always, Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import RequestError
from vitrify.engine.inspect_cli import inspect
from vitrify.engine.memory import release_free_memory, resident_bytes
from vitrify.runtime import PixelGenerationContext, load

if TYPE_CHECKING:
    from tests.e2e.conftest import Case

STEPS = 8
NEVER = FirstBlock(1e9)
MASK = Mask(tuple(s in (0, 1, 2, 5) for s in range(STEPS)))
PREDICTORS = (
    None,
    Hold("output"),
    Taylor(1),
    Taylor(2),
    Taylor(1, "output"),
    Taylor(2, "output", "sigma"),
    Taylor(1, "output", corrected=True),
)
TOKENS, WIDTH, CHANNELS, FLOAT = 64, 192, 32, 4  # the sample at 64 × 64


def draw(case: Case, cache: Any = None, prompt: Any = "red apple", **options: Any) -> Any:
    return case.pipe(prompt, **{"num_inference_steps": STEPS, "seed": 3, "output_type": "latent", "cache": cache, **options})


# ---- identities


@pytest.mark.parametrize(
    "decision", [FirstBlock(0.0), Interval(1, 1), Mask((True,) * STEPS), Magnitude((2.0,), retention_ratio=0.0)]
)
def test_a_cache_that_computes_every_step_is_no_cache(sample: Case, decision: Any) -> None:
    """To the bit, with true CFG in one lane."""
    plain = draw(sample).images
    for predictor in PREDICTORS:
        assert np.array_equal(draw(sample, Cache(decision, predictor)).images, plain)


def test_a_reused_plan_is_a_fresh_one(sample: Case) -> None:
    for cache in (Cache(FirstBlock(0.1), Taylor(1)), Cache(NEVER), Cache(MASK, Taylor(2))):
        with load(sample.artifact) as fresh:
            expected = fresh("red apple", num_inference_steps=STEPS, seed=3, output_type="latent", cache=cache).images
        draw(sample, Cache(MASK, Hold("output")), "blue fish")
        for _ in range(2):
            assert np.array_equal(draw(sample, cache).images, expected)


def test_the_same_seed_at_any_position(sample: Case) -> None:
    """To the bit: one prompt, a seed an image."""
    for cache in (Cache(MASK, Taylor(1)), Cache(NEVER), Cache(NEVER, Taylor(2, "output"), Guards(max_consecutive_skips=2))):
        one = draw(sample, cache, num_images_per_prompt=2, seed=[5, 6]).images
        other = draw(sample, cache, num_images_per_prompt=2, seed=[6, 5]).images
        assert np.array_equal(one[0], other[1])
        assert np.array_equal(one[1], other[0])


@pytest.fixture
def watched(sample: Case, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """(noise_pred, computed) of every lane and step."""
    seen: list[tuple[Any, bool]] = []
    step = sample.pipe.run_denoising_step

    def spy(at: int, state: Any, device: Any, **kwargs: Any) -> Any:
        noise_pred = step(at, state, device, **kwargs)
        seen.append((noise_pred.copy(), state.computed))
        return noise_pred

    monkeypatch.setattr(sample.pipe, "run_denoising_step", spy)
    return seen


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("decision", [NEVER, MASK])
def test_one_lane_is_two(sample: Case, watched: list[Any], decision: Any, predictor: Any) -> None:
    """Guidance batched or in two lanes: every step's prediction within 2e-6 from the same latents, and the same skips."""
    context = PixelGenerationContext(
        prompt=["red apple", "blue fish"],
        num_inference_steps=STEPS,
        seed=3,
        cache=Cache(decision, predictor, Guards(max_consecutive_skips=2)),
    )
    path: list[Any] = []

    def follow(_: Any, step: int, __: float, values: Any) -> dict[str, Any]:
        if len(path) == step:
            path.append(values["latents"])
        return {"latents": path[step]}

    request = sample.pipe.prepare_inputs(context)
    assert request.lanes == ((0, 1),)
    sample.pipe.denoise(request, follow)
    together, watched[:] = list(watched), []
    sample.pipe.denoise(replace(sample.pipe.prepare_inputs(context), lanes=((0,), (1,))), follow)
    assert len(watched) == 2 * len(together) == 2 * STEPS
    assert 0 < sum(computed for _, computed in together) < STEPS
    for step, (noise_pred, computed) in enumerate(together):
        lanes = watched[2 * step : 2 * step + 2]
        assert [lane[1] for lane in lanes] == [computed, computed]
        assert_close(np.concatenate([lane[0] for lane in lanes]), noise_pred, 2e-6, f"step {step}")


# ---- memory


def by_hand(rows: int) -> dict[Cache, int]:
    """Bytes by the formulas of docs/caching.md."""
    residual, output = rows * TOKENS * WIDTH * FLOAT, rows * TOKENS * CHANNELS * FLOAT
    return {
        Cache(Always()): 0,
        Cache(NEVER): 2 * residual + residual,
        Cache(NEVER, Hold("output")): 2 * residual + output,
        Cache(NEVER, Taylor(1)): 2 * residual + 3 * residual,
        Cache(NEVER, Taylor(2, "output")): 2 * residual + 4 * output,
        Cache(NEVER, compat="max"): 2 * residual + output,
        Cache(MASK): residual,
        Cache(MASK, Hold("output")): output,
        Cache(MASK, Taylor(1)): 3 * residual,
        Cache(MASK, Taylor(2)): 4 * residual,
        Cache(Interval(2, 2), Taylor(1, "output")): 3 * output,
        Cache(Interval(2, 2), Taylor(1, "output"), compat="max"): 4 * output,
        Cache(MASK, Taylor(1, "output", corrected=True)): 4 * output,
        Cache(MASK, Taylor(2, "output", corrected=True)): 5 * output,
        Cache(Magnitude((1.0,)), Taylor(2, "output", "sigma")): 4 * output,
        Cache(MASK, Taylor(1, "output", corrected=True)): 4 * output,
    }


def bound(cache: Cache, rows: int) -> int:
    """What a cache may take at most: each buffer that is read and written in one step has a partner."""
    n = rows * TOKENS
    if not cache.enabled:
        return 0
    predictor = cache.predictor or Hold("output" if cache.compat else None)
    width = CHANNELS if predictor.of == "output" else WIDTH
    held = n * width * FLOAT if isinstance(predictor, Hold) else 2 * (predictor.order + 1) * n * width * FLOAT
    return held + (2 * n * WIDTH * FLOAT if cache.probes else 0)


def arrays_made_in(package: str) -> int:
    """Bytes of the numpy arrays alive now that this package's own lines allocated."""
    data = np.lib.tracemalloc_domain
    here = tracemalloc.Filter(True, f"*/{package}/*", domain=data)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([here]).statistics("filename"))


@pytest.mark.parametrize(("rows", "scale"), [(1, 1.0), (4, 2.0)])
def test_memory_to_the_byte(sample: Case, rows: int, scale: float) -> None:
    """By hand, as `inspect` says, as reported, and as allocated while the last step runs; never above the bound."""
    prompts = ["red apple"] * (rows if scale == 1 else rows // 2)
    denoiser = sample.pipe.artifact.manifest.components["transformer"]
    for cache, expected in by_hand(rows).items():
        seen: list[int] = []

        def look(_: Any, step: int, __: float, ___: Any, seen: list[int] = seen) -> dict[str, Any]:
            if step == STEPS - 1:
                seen.append(arrays_made_in("runtime/caching"))
            return {}

        tracemalloc.start()
        try:
            result = draw(sample, cache, prompts, true_cfg_scale=scale, callback_on_step_end=look)
        finally:
            tracemalloc.stop()
        assert seen == [expected] == [cache_memory(cache, denoiser, rows, TOKENS).total_bytes]
        assert (result.cache.allocated_bytes if result.cache else 0) == expected <= bound(cache, rows)


INSPECTED: list[tuple[list[str], int, int]] = [
    # by hand: bytes of the decision, of the predictor; 3 rows of 128 × 64 pixels = 128 tokens
    (["--cache", "none"], 0, 0),
    (["--cache", "first-block:0.1"], 2 * 3 * 128 * 192 * 4, 3 * 128 * 192 * 4),
    (["--cache", "first-block", "--cache-predict", "taylor2-output"], 2 * 3 * 128 * 192 * 4, 4 * 3 * 128 * 32 * 4),
    (["--cache", "taylorseer:3:3"], 0, 3 * 3 * 128 * 32 * 4),
    (["--cache", "mask:fast"], 0, 3 * 128 * 192 * 4),
    (["--cache", "interval", "--cache-predict", "taylor1"], 0, 3 * 3 * 128 * 192 * 4),
]


@pytest.mark.parametrize(("options", "decision", "predictor"), INSPECTED)
def test_inspect_prints_the_memory(sample: Case, options: list[str], decision: int, predictor: int) -> None:
    arguments = [str(sample.artifact), *options, "--height", "128", "--width", "64", "--batch", "3"]
    said = json.loads(CliRunner().invoke(inspect, [*arguments, "--json"], catch_exceptions=False).output)["cache"]
    assert (said["decision_bytes"], said["predictor_bytes"]) == (decision, predictor)
    assert (said["total_bytes"], said["image_tokens"], said["batch"]) == (decision + predictor, 128, 3)
    printed = CliRunner().invoke(inspect, arguments, catch_exceptions=False).output
    assert f"{decision + predictor} bytes" in printed
    assert "128 × 64 pixels = 128 image tokens, batch 3" in printed
    assert "step.residual_diff" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--cache", "mask:fast", "--height", "65"),
            r"height=65 is outside what this artifact was compiled for: 32\.\.128",
        ),
        (
            ("--cache", "mask:fast", "--batch", "0"),
            r"--batch 0 is outside what this artifact was compiled for: 1\.\.4",
        ),
        (("--cache", "mask:fast", "--batch", "9"), r"--batch 9 is outside"),
        (("--batch", "2"), "name a cache"),
        (("--cache", "none", "--cache-predict", "hold"), "predictor and guards cannot act"),
    ],
)
def test_what_inspect_refuses(sample: Case, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        CliRunner().invoke(inspect, [str(sample.artifact), *options], catch_exceptions=False)


def test_inspect_knows_what_was_measured(sample: Case) -> None:
    """A measured preset by name, and an error that says what to run while there is none."""
    arguments = [str(sample.artifact), "--height", "64", "--width", "64", "--json", "--cache"]
    with pytest.raises(RequestError, match=r"nothing was tuned yet; run `vitrify tune "):
        CliRunner().invoke(inspect, [*arguments, "tuned"], catch_exceptions=False)
    path = write_presets(sample.pipe.artifact, Presets(Calibration((1.0,) * STEPS, 1), Tuned(Cache(MASK, Taylor(2)), STEPS)))
    try:
        for name, values in (("magcache", 1), ("tuned", 4)):
            said = json.loads(CliRunner().invoke(inspect, [*arguments, name], catch_exceptions=False).output)["cache"]
            assert said["total_bytes"] == values * TOKENS * WIDTH * FLOAT
    finally:
        path.unlink()


def test_a_skipped_step_allocates_nothing(sample: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of its own and no temporary: less than one row's output is ever made beyond what stands."""
    step, most = sample.pipe.run_denoising_step, [0]

    def spy(at: int, state: Any, device: Any, **kwargs: Any) -> Any:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        noise_pred = step(at, state, device, **kwargs)
        if not state.computed:
            most.append(tracemalloc.get_traced_memory()[1] - before)
        return noise_pred

    monkeypatch.setattr(sample.pipe, "run_denoising_step", spy)
    for decision in (NEVER, MASK):
        for predictor in PREDICTORS:
            tracemalloc.start()
            try:
                draw(sample, Cache(decision, predictor))
            finally:
                tracemalloc.stop()
    assert len(most) > 12
    assert max(most) < TOKENS * CHANNELS * FLOAT


@pytest.mark.slow
def test_no_growth_over_a_thousand_requests(sample: Case) -> None:
    """Of the whole process, engine and probe included: 1 KiB a request would show."""
    caches = [Cache(NEVER, Taylor(2)), Cache(MASK, Taylor(1, "output")), Cache(FirstBlock(0.1), Hold("output")), None]

    def some(count: int) -> int:
        for number in range(count):
            draw(sample, caches[number % len(caches)])
        gc.collect()
        release_free_memory()
        return resident_bytes()["anonymous"]

    before = some(200)
    assert some(1000) - before < 2**20


def test_requests_in_two_threads_share_nothing(sample: Case) -> None:
    """To the bit what each draws alone, over one pipeline."""
    caches = [Cache(FirstBlock(0.1), Taylor(1)), Cache(MASK, Taylor(2))]
    prompts = ["red apple", "blue fish"]
    expected = [draw(sample, cache, prompt).images for cache, prompt in zip(caches, prompts, strict=True)]
    got: list[list[Any]] = [[], []]

    def work(number: int) -> None:
        for _ in range(3):
            got[number].append(draw(sample, caches[number], prompts[number]).images)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(got[number]) == 3
        assert all(np.array_equal(images, expected[number]) for images in got[number])


# ---- the graph that measures


def test_the_probe_is_the_definition(sample: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row's difference, by the native kernel and by its body, against float64; the reference is the computed step's."""
    pipes = {"native": sample.pipe, "portable": load(sample.artifact, kernels="portable")}
    found: dict[str, list[Any]] = {name: [] for name in pipes}
    for name, pipe in pipes.items():
        step, reference = pipe.run_denoising_step, [np.zeros(())]

        def spy(
            at: int, state: Any, device: Any, step: Any = step, reference: list[Any] = reference, name: str = name, **kwargs: Any
        ) -> Any:
            noise_pred = step(at, state, device, **kwargs)
            hidden = kwargs["plan"].hidden
            residual = hidden.first.astype(np.float64) - hidden.embedded
            if at:
                expected = np.abs(residual - reference[0]).mean(axis=(1, 2)) / np.abs(reference[0]).mean(axis=(1, 2))
                np.testing.assert_allclose(state.progress.differences, expected, rtol=2e-5)
                found[name].append(state.progress.differences)
            reference[0] = residual if state.computed else reference[0]
            np.testing.assert_allclose(state.prev_residual, reference[0], rtol=0, atol=1e-5)
            return noise_pred

        monkeypatch.setattr(pipe, "run_denoising_step", spy)
        result = pipe("red apple", num_inference_steps=20, seed=3, output_type="latent", cache=Cache(FirstBlock(0.2)))
        assert 1 < len(result.cache.computed[0]) < 20
        assert len(result.cache.differences) == 2 * 19
    pipes["portable"].close()
    np.testing.assert_allclose(found["native"], found["portable"], rtol=1e-4)


def test_an_artifact_with_its_step_graph(sample: Case) -> None:
    manifest = sample.pipe.artifact.manifest
    graph = manifest.step_graphs["residual_diff"]
    assert graph.path == "step/residual_diff.onnx"
    assert [str(t) for t in (*graph.inputs, *graph.outputs)] == [
        *["float32[batch, image_tokens, 192]"] * 4,
        "float32[batch, 2]",
    ]
    assert manifest.ops["ResidualDiff"] == 1
    assert Path(sample.artifact, graph.path).stat().st_size < 4096
