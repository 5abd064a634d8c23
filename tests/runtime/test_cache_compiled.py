"""Step caches of compiled pipelines: what runs in a skipped step, identities, memory, requests beside each other."""

from __future__ import annotations

import gc
import re
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.toy_flux import CHANNELS, Toy, ToyBackend, make_artifact, make_toy
from vitrify.engine.cache_config import DenoisingCacheConfig
from vitrify.engine.cache_policy import Always, Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import RequestError
from vitrify.runtime import PixelGenerationContext, loader
from vitrify.runtime.tuning.requests import Requests

STEPS, TOKENS = 12, 16
SEGMENTS = ("embed", "first", "rest", "finish")
NEVER = FirstBlock(1e9)
MASK = Mask(tuple(s in (0, 1, 2, 6, 7) for s in range(STEPS)))
PREDICTORS = [
    None,
    Hold("output"),
    Taylor(1, "residual"),
    Taylor(2, "residual"),
    Taylor(1, "output"),
    Taylor(2, "output", "sigma"),
    Taylor(1, "output", corrected=True),
]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


def noise(rows: int = 1) -> Any:
    return np.random.default_rng(0).standard_normal((rows, TOKENS, CHANNELS)).astype(np.float32)


def draw(toy: Toy, cache: Any = None, prompt: Any = "cat", steps: int = STEPS, **options: Any) -> Any:
    rows = 1 if isinstance(prompt, str) else len(prompt)
    options = {"latents": noise(rows), **options}
    return toy.pipe(prompt, num_inference_steps=steps, output_type="latent", cache=cache, **options)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize(
    "decision",
    [FirstBlock(0.0), Interval(1, 1), Mask((True,) * STEPS), Magnitude((2.0,), retention_ratio=0)],
    ids=lambda d: type(d).__name__,
)
def test_a_cache_that_computes_every_step_is_no_cache(toy: Toy, decision: Any, predictor: Any) -> None:
    """To the bit, batched and in two lanes."""
    two_lanes: dict[str, Any] = {"prompt": ["cat", "dog", "tree"], "negative_prompt": "red", "true_cfg_scale": 2.0}
    for options in ({}, two_lanes):
        cached, plain = draw(toy, Cache(decision, predictor), **options), draw(toy, **options)
        assert np.array_equal(cached.images, plain.images)
        assert cached.cache.warning.startswith("the cache never fired: all 12 steps were computed")
        assert cached.cache.warning in cached.warnings
        assert plain.cache is None


def ran(toy: Toy, cache: Any) -> dict[str, int]:
    toy.backend.runs.clear()
    draw(toy, cache)
    paths = [path for path, _ in toy.backend.runs]
    return {segment: paths.count(f"transformer/{segment}.onnx") for segment in SEGMENTS}


def test_what_runs_in_a_skipped_step(toy: Toy) -> None:
    """First block: embed, first, finish; a held total residual: embed, finish; an output: nothing (with a probe: it alone)."""
    assert ran(toy, None) == dict.fromkeys(SEGMENTS, STEPS)
    assert ran(toy, Cache(NEVER)) == {"embed": 12, "first": 12, "rest": 1, "finish": 12}
    assert ran(toy, Cache(NEVER, Hold("output"))) == {"embed": 12, "first": 12, "rest": 1, "finish": 1}
    predictor: Any
    for predictor in (None, Taylor(2)):
        assert ran(toy, Cache(MASK, predictor)) == {"embed": 12, "first": 5, "rest": 5, "finish": 12}
    for predictor in (Hold("output"), Taylor(1, "output")):
        assert ran(toy, Cache(MASK, predictor)) == dict.fromkeys(SEGMENTS, 5)


def test_a_held_total_residual_against_the_definition(toy: Toy) -> None:
    """A skipped step's prediction is finish(h0 + T) with T of the last computed step."""
    seen: list[Any] = []
    step = toy.pipe.run_denoising_step

    def spy(at: int, state: Any, device: Any, **kwargs: Any) -> Any:
        noise_pred = step(at, state, device, **kwargs)
        hidden = kwargs["plan"].hidden
        seen.append((state.computed, hidden.last - hidden.embedded, noise_pred.copy(), hidden.last.copy()))
        return noise_pred

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.pipe, "run_denoising_step", spy)
        draw(toy, Cache(MASK))
    held: Any = None
    for computed, total, noise_pred, last in seen:
        held = total if computed else held
        np.testing.assert_allclose(total, held, rtol=0, atol=1e-6)
        assert noise_pred.shape == last.shape
    assert [computed for computed, *_ in seen] == list(MASK.resolved(STEPS))


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("decision", [NEVER, MASK])
def test_batched_rows_are_separate_rows(toy: Toy, decision: Any, predictor: Any) -> None:
    prompts = ["cat", "dog", "tree"]
    cache = Cache(decision, predictor, Guards(max_consecutive_skips=2))
    together = draw(toy, cache, prompts)
    for row, prompt in enumerate(prompts):
        alone = draw(toy, cache, prompt, latents=noise(3)[row : row + 1])
        assert alone.cache.computed == together.cache.computed
        np.testing.assert_allclose(together.images[row], alone.images[0], rtol=0, atol=2e-5)


def test_lanes_decide_for_themselves(toy: Toy) -> None:
    guided: dict[str, Any] = {"prompt": ["cat", "dog", "tree"], "negative_prompt": "red", "true_cfg_scale": 2.0}
    result = draw(toy, Cache(FirstBlock(0.15)), **guided)
    assert len(result.cache.computed) == 2
    static = draw(toy, Cache(MASK), **guided).cache.computed
    assert static[0] == static[1] == (0, 1, 2, 6, 7)


def test_a_reused_plan_is_a_fresh_one(toy: Toy, tmp_path: Path) -> None:
    """Whatever ran before on the same buffers."""
    cache = Cache(FirstBlock(0.1), Taylor(1))
    fresh = draw(make_toy(tmp_path / "other"), cache)
    draw(toy, Cache(MASK, Hold("output")), "tree")
    assert np.array_equal(draw(toy, cache).images, fresh.images)
    assert np.array_equal(draw(toy, cache).images, fresh.images)


VALUE = TOKENS * CHANNELS * 4
MEMORY: list[tuple[Cache | None, int]] = [
    (None, 0),
    (Cache(Always()), 0),
    (Cache(NEVER), 3),  # reference, candidate, residual
    (Cache(NEVER, Hold("output")), 3),
    (Cache(NEVER, Taylor(1)), 5),
    (Cache(MASK), 1),
    (Cache(MASK, Hold("output")), 1),
    (Cache(MASK, Taylor(1, "output")), 3),
    (Cache(MASK, Taylor(1, "output", corrected=True)), 4),
    (Cache(MASK, Taylor(2, "residual")), 4),
]


@pytest.mark.parametrize(("cache", "values"), MEMORY)
def test_memory_to_the_byte(toy: Toy, cache: Any, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in the one module that allocates them, against what is reported."""
    counted: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        array = np.zeros(*args, **kwargs)
        counted.append(array.nbytes)
        return array

    monkeypatch.setattr("vitrify.runtime.caching.state.np", SimpleNamespace(**{**vars(np), "zeros": counting}))
    result = draw(toy, cache, ["cat", "dog"])
    assert sum(counted) == 2 * values * VALUE
    assert (result.cache.allocated_bytes if result.cache else 0) == 2 * values * VALUE


def test_no_growth_over_a_thousand_requests(toy: Toy) -> None:
    cache = Cache(FirstBlock(0.1), Taylor(1))
    context = PixelGenerationContext(prompt=["cat"], num_inference_steps=2, latents=noise(), cache=cache)

    def some(count: int) -> int:
        for _ in range(count):
            toy.pipe.denoise(toy.pipe.prepare_inputs(context))
            toy.backend.runs.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = some(400)  # the interpreter's own free lists fill up first
        assert some(1000) - before < 16_384
    finally:
        tracemalloc.stop()


def test_requests_in_two_threads_share_nothing(toy: Toy) -> None:
    caches = [Cache(FirstBlock(0.1), Taylor(1)), Cache(MASK, Taylor(2)), None, Cache(NEVER, Hold("output"))]
    prompts = ["cat", "dog", "tree", "house"]
    expected = [draw(toy, cache, prompt).images for cache, prompt in zip(caches, prompts, strict=True)]
    got: dict[tuple[int, int], Any] = {}

    def work(number: int) -> None:
        for turn in range(10):
            got[number, turn] = draw(toy, caches[number], prompts[number]).images

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 40
    assert all(np.array_equal(images, expected[number]) for (number, _), images in got.items())


def test_the_same_seed_at_any_position(toy: Toy) -> None:
    cache = Cache(MASK, Taylor(1))
    kwargs: dict[str, Any] = {"cache": cache, "num_inference_steps": STEPS, "output_type": "latent"}
    one = toy.pipe(["cat", "cat", "cat"], seed=[5, 6, 7], **kwargs).images
    other = toy.pipe(["cat", "cat", "cat"], seed=[7, 5, 6], **kwargs).images
    assert np.array_equal(one[0], other[1])
    assert np.array_equal(one[2], other[0])


def test_the_report(toy: Toy) -> None:
    cache = Cache(FirstBlock(0.1), guards=Guards(warmup_steps=2))
    result = draw(toy, cache)
    report, text = result.cache, result.cache.summary()
    assert report.computed[0][:2] == (0, 1)
    assert 2 < len(report.computed[0]) < STEPS
    assert len(report.differences) == STEPS - 2
    assert f"computed {len(report.computed[0])} of 12 steps" in text
    assert "Guards(warmup_steps=2)" in text
    assert re.search(r"differences of 10 probes \(5 %: [\d.]+, 50 %: [\d.]+, 95 %: [\d.]+\)", text)
    assert "time saved:" in text
    assert report.warning is None
    assert result.settings["cache"] == str(cache)
    assert result.settings["residual_threshold"] == 0.1
    assert np.isfinite(report.seconds_saved)


def test_why_it_never_fired(toy: Toy) -> None:
    """The threshold that it names is the least that skips, and none where a guard is the reason."""
    cache = Cache(FirstBlock(0.0), guards=Guards(warmup_steps=2))
    warning = draw(toy, cache, ["cat", "dog"]).cache.warning
    needed = float(re.search(r"; a threshold above ([\d.]+) would have skipped a step$", warning)[1])  # type: ignore[index]
    assert draw(toy, replace(cache, decision=FirstBlock(needed - 1e-4)), ["cat", "dog"]).cache.warning is not None
    assert draw(toy, replace(cache, decision=FirstBlock(needed + 1e-4)), ["cat", "dog"]).cache.warning is None
    short = draw(toy, "first-block:1000", steps=8).cache.warning
    assert short.endswith("; its guard computes all of a request of 8 steps or fewer")


def test_names(toy: Toy) -> None:
    assert draw(toy, "none").cache is None
    named = draw(toy, "first-block:1000").cache
    assert named.computed == ((0, 1, 2, 3, 7, 11),)
    assert draw(toy, "first-block:1000", steps=8).cache.computed == (tuple(range(8)),)
    assert draw(toy, "taylorseer", steps=28).cache.computed == ((*range(9), 10, 15, 20, 25),)
    assert draw(toy, "interval:3:3").cache.computed == ((0, 1, 2, 4, 7, 10),)
    assert draw(toy, "mask:100010001000").cache.computed == ((0, 4, 8),)
    assert draw(toy, "mask:0.5").cache.computed[0] == tuple(np.flatnonzero(Mask(share=0.5).resolved(STEPS)))
    assert draw(toy, "fast").cache.computed == ((0, 1, 2, 4, 6, 9),)
    assert draw(toy, "careful").cache.computed == ((0, 1, 2, 4, 7, 10),)
    assert draw(toy, "fast", steps=8).cache.computed == (tuple(range(8)),)
    assert draw(toy, "mask:1010", steps=4).cache.computed == ((0, 2),)
    assert draw(toy, "mask:fast", steps=4).cache.computed == ((0, 1, 2, 3),)
    assert draw(toy, "mask:fast").cache.computed[0] == tuple(np.flatnonzero(Mask(preset="fast").resolved(STEPS)))


def test_taylorseer_leaves_its_numbers_to_the_class(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"cache_interval": 3, "warmup_steps": 2, "max_order": 2}
    for name, value in own.items():
        monkeypatch.setattr(type(toy.pipe), f"default_taylorseer_{name}", value)
    named = draw(toy, "taylorseer").cache
    assert named.cache.decision == Interval(3, 2)
    assert named.cache.predictor == Taylor(2, "output")
    assert named.computed == ((0, 1, 3, 6, 9),)
    assert draw(toy, "taylorseer:5").cache.cache.decision == Interval(5, 2)
    assert draw(toy, "taylorseer:5:4").cache.cache.decision == Interval(5, 4)
    for unread in ("taylorseer:", "taylorseer:5:", "taylorseer:1:2:3"):
        with pytest.raises(RequestError, match="cannot be read"):
            draw(toy, unread)


def test_the_threshold_of_a_request(toy: Toy) -> None:
    """The request's, else the cache's, else the artifact's, else the class's."""

    def used(cache: Any, **fields: Any) -> float:
        context = PixelGenerationContext(prompt=["cat"], cache=cache, **fields)
        return float(toy.pipe.prepare_inputs(context).residual_threshold)

    assert used(Cache(FirstBlock(0.2)), residual_threshold=0.3) == 0.3
    assert used(Cache(FirstBlock(0.2))) == 0.2
    assert used(Cache(FirstBlock())) == 0.05
    toy.artifact.manifest.defaults["residual_threshold"] = 0.07  # type: ignore[index]
    assert used(Cache(FirstBlock())) == 0.07


@pytest.mark.parametrize("flags", [{"taylorseer": True}, {"first_block_caching": True}])
def test_the_pipelines_own_cache_and_a_request_without(tmp_path: Path, toy: Toy, flags: dict[str, Any]) -> None:
    own = make_toy(tmp_path / "own", cache_config=DenoisingCacheConfig(**flags))
    assert draw(own, steps=15).cache.cache == own.pipe.cache
    plain = draw(toy, steps=15).images
    for off in ("none", Cache(Always())):
        result = draw(own, off, steps=15)
        assert result.cache is None
        assert np.array_equal(result.images, plain)
    requests = Requests(own.pipe, ["cat"], 15, 0)
    assert np.array_equal(requests.draw(0).picture, Requests(toy.pipe, ["cat"], 15, 0).draw(0).picture)


def test_load_hands_the_cache_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_artifact(tmp_path)
    monkeypatch.setattr(loader, "Artifact", SimpleNamespace(open=lambda *_, **__: artifact))
    monkeypatch.setattr(loader, "backend", lambda *_, **__: ToyBackend())
    config = DenoisingCacheConfig(taylorseer=True, taylorseer_cache_interval=3)
    assert loader.load(tmp_path, cache_config=config).cache == Cache(Interval(3, 9), Taylor(1, "output"))
    assert loader.load(tmp_path).cache is None


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ("quick", {}, "cache 'quick' is unknown; known: none, first-block, taylorseer, interval, mask"),
    ("first-block:much", {}, "cache 'first-block:much' cannot be read"),
    ("first-block:-1", {}, "FirstBlock.threshold=-1.0"),
    ("interval:0", {}, "Interval.interval=0"),
    ("interval:1:2:3", {}, "cannot be read"),
    ("mask:", {}, "mask '' is unknown"),
    ("mask:011111111111", {}, "the first step is False"),
    ("mask:101", {}, "Mask.steps has 3 entries, the request has 12 steps"),
    (3, {}, "cache=3: expected a name or a Cache"),
    (FirstBlock(), {}, "expected a name or a Cache"),
    (Cache(Interval(2, 2), Taylor(1, along="sigma")), {"sigmas": [1.0] * STEPS}, "needs sigmas that fall from step to step"),
    (Cache(MASK, Taylor(1, "output", corrected=True)), {"sigmas": [1.0] * STEPS}, "use corrected=False"),
]


@pytest.mark.parametrize(("cache", "options", "message"), BAD)
def test_bad_caches(toy: Toy, cache: Any, options: dict[str, Any], message: str) -> None:
    """Named before the first step."""
    with pytest.raises(RequestError, match=re.escape(message)):
        draw(toy, cache, **options)
    assert toy.backend.runs == []
