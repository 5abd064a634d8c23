"""Requests of every kind against the toy pipeline written down a second time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.toy_flux import Toy, clip, make_toy, t5, unpack, vae
from vitrify.engine.errors import BackendError, RequestCancelled, RequestError
from vitrify.engine.specs import Dim
from vitrify.runtime import PixelGenerationContext, PromptTruncatedWarning
from vitrify.runtime.families.flux import FluxPipeline
from vitrify.runtime.output import DiffusionPipelineOutput

LOOP = {f"transformer/{segment}" for segment in ("embed", "first", "rest", "finish")}
CLOSE: Any = {"rtol": 0, "atol": 2e-6}


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


@pytest.fixture
def guided(tmp_path: Path) -> Toy:
    return make_toy(tmp_path, guidance=True)


def noise(rows: int = 1, size: tuple[int, int] = (16, 16), seed: int = 0) -> Any:
    tokens = (size[0] // 4) * (size[1] // 4)
    return np.random.default_rng(seed).standard_normal((rows, tokens, 12)).astype(np.float32)


def history(toy: Toy, *args: Any, **kwargs: Any) -> list[Any]:
    """Latents after every step, and the last ones as returned."""
    seen: list[Any] = []

    def record(pipe: Any, step: int, timestep: float, values: dict[str, Any]) -> dict[str, Any]:
        assert pipe is toy.pipe
        assert step == len(seen)
        assert type(timestep) is float
        assert 0 < timestep <= 1000
        seen.append(values["latents"])
        return {}

    result = toy.pipe(*args, callback_on_step_end=record, output_type="latent", **kwargs)
    assert np.array_equal(seen[-1], result.images)
    return seen


def check(got: list[Any], expected: list[Any]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_one_prompt(toy: Toy) -> None:
    check(history(toy, "red apple", latents=noise()), toy.reference(["red apple"], noise()))


def test_a_cpu_tensor_is_an_array(toy: Toy) -> None:
    import torch

    got = toy.pipe("cat", latents=torch.from_numpy(noise()), output_type="latent").images  # type: ignore[arg-type]
    assert np.array_equal(got, toy.pipe("cat", latents=noise(), output_type="latent").images)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_steps(toy: Toy, steps: int) -> None:
    check(history(toy, "cat", latents=noise(), num_inference_steps=steps), toy.reference(["cat"], noise(), steps=steps))


def test_many_condition_rows(toy: Toy) -> None:
    """40 steps of 4 rows are conditioned in chunks of at most 64 rows."""
    prompts = ["cat", "dog", "red house", "big tree"]
    expected = toy.reference(prompts, noise(4), steps=40)
    check(history(toy, prompts, latents=noise(4), num_inference_steps=40), expected)
    rows = [dims["condition_rows"] for path, dims in toy.backend.runs if path == "transformer/condition.onnx"]
    assert rows == [64, 64, 32]


@pytest.mark.parametrize("size", [(8, 8), (8, 32), (28, 12)])
def test_sizes(toy: Toy, size: tuple[int, int]) -> None:
    latents = noise(size=size)
    images = toy.pipe("cat", height=size[0], width=size[1], latents=latents, output_type="np").images
    final = toy.reference(["cat"], latents, size=size)[-1]
    assert isinstance(images, np.ndarray)
    assert images.shape == (1, *size, 3)
    np.testing.assert_allclose(images, vae(unpack(final, size)), **CLOSE)


def test_prompts_times_images(toy: Toy) -> None:
    """Rows are prompt by prompt, the images of one side by side, as in diffusers."""
    expected = toy.reference(["cat", "cat", "dog", "dog"], noise(4))
    check(history(toy, ["cat", "dog"], num_images_per_prompt=2, latents=noise(4)), expected)


def test_second_prompt(toy: Toy) -> None:
    expected = toy.reference(["cat", "dog"], noise(2), prompts_2=["house", "tree"])
    check(history(toy, ["cat", "dog"], ["house", "tree"], latents=noise(2)), expected)
    one_for_all = toy.reference(["cat", "dog"], noise(2), prompts_2=["house", "house"])
    check(history(toy, ["cat", "dog"], "house", latents=noise(2)), one_for_all)


def test_empty_second_prompt_is_the_first_as_in_diffusers(toy: Toy) -> None:
    check(history(toy, "cat", "", latents=noise()), toy.reference(["cat"], noise()))


def test_text_length_changes_the_picture(toy: Toy) -> None:
    check(history(toy, "cat", max_sequence_length=9, latents=noise()), toy.reference(["cat"], noise(), text_tokens=9))


def test_sigmas(toy: Toy) -> None:
    sigmas = [1.0, 0.8, 0.3, 0.1]
    check(history(toy, "cat", sigmas=sigmas, latents=noise()), toy.reference(["cat"], noise(), steps=4, sigmas=sigmas))


def test_guidance_embedding(guided: Toy) -> None:
    check(history(guided, "cat", guidance_scale=7.0, latents=noise()), guided.reference(["cat"], noise(), guidance_scale=7.0))
    check(history(guided, "cat", latents=noise()), guided.reference(["cat"], noise(), guidance_scale=3.5))


def test_guidance_scale_without_embedding_is_ignored(toy: Toy) -> None:
    result = toy.pipe("cat", guidance_scale=9.0, latents=noise(), output_type="latent")
    np.testing.assert_array_equal(result.images, toy.pipe("cat", latents=noise(), output_type="latent").images)
    assert result.settings["guidance_scale"] is None


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("guidance", [False, True])
def test_true_cfg(tmp_path: Path, rows: int, guidance: bool) -> None:
    """One lane of twice the rows while they fit (4 here), else two lanes; the same picture."""
    toy = make_toy(tmp_path, guidance=guidance)
    prompts = ["red cat", "dog", "tree"][:rows]
    expected = toy.reference(prompts, noise(rows), negative=["big"] * rows, true_cfg_scale=2.5)
    got = history(toy, prompts, negative_prompt="big", true_cfg_scale=2.5, latents=noise(rows))
    check(got, expected)
    batches = {dims["batch"] for path, dims in toy.backend.runs if path == "transformer/rest.onnx"}
    assert batches == ({2 * rows} if rows < 3 else {rows})
    plain = toy.reference(prompts, noise(rows))
    assert np.abs(plain[-1] - expected[-1]).max() > 1e-2


def test_batched_guidance_equals_two_lanes(tmp_path: Path) -> None:
    options = {"negative_prompt": ["big", "small"], "true_cfg_scale": 3.0, "latents": noise(2)}
    together = history(make_toy(tmp_path / "a"), ["cat", "dog"], **options)
    apart = history(make_toy(tmp_path / "b", batch=Dim("batch", 1, 2, 3)), ["cat", "dog"], **options)
    check(together, apart)


def test_empty_negative_prompt_counts(toy: Toy) -> None:
    expected = toy.reference(["cat"], noise(), negative=[""], true_cfg_scale=2.0)
    check(history(toy, "cat", negative_prompt="", true_cfg_scale=2.0, latents=noise()), expected)


def test_negative_prompt_of_the_artifact(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, defaults={"negative_prompt": "", "true_cfg_scale": 2.0})
    check(history(toy, "cat", latents=noise()), toy.reference(["cat"], noise(), negative=[""], true_cfg_scale=2.0))
    check(history(toy, "cat", true_cfg_scale=1.0, latents=noise()), toy.reference(["cat"], noise()))
    other = toy.reference(["cat"], noise(), negative=["big"], true_cfg_scale=2.0)
    check(history(toy, "cat", negative_prompt="big", latents=noise()), other)


@pytest.mark.parametrize("options", [{"negative_prompt": "big", "true_cfg_scale": 1.0}, {"true_cfg_scale": 4.0}])
def test_true_cfg_needs_both(toy: Toy, options: dict[str, Any]) -> None:
    check(history(toy, "cat", latents=noise(), **options), toy.reference(["cat"], noise()))


def test_embeds_instead_of_prompts(toy: Toy) -> None:
    pipe = toy.pipe

    def embeds(text: str) -> tuple[Any, Any]:
        return t5(pipe.tokenizers["tokenizer_2"].encode([text], 6)), clip(pipe.tokenizers["tokenizer"].encode([text]))

    (one, pooled), (other, other_pooled) = embeds("cat"), embeds("big")
    check(history(toy, prompt_embeds=one, pooled_prompt_embeds=pooled, latents=noise()), toy.reference(["cat"], noise()))
    expected = toy.reference(["cat", "cat"], noise(2), negative=["big", "big"], true_cfg_scale=2.0)
    got = history(
        toy,
        prompt_embeds=one,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=other,
        negative_pooled_prompt_embeds=other_pooled,
        true_cfg_scale=2.0,
        num_images_per_prompt=2,
        latents=noise(2),
    )
    check(got, expected)
    mixed = history(
        toy, prompt_embeds=one, pooled_prompt_embeds=pooled, negative_prompt="big", true_cfg_scale=2.0, latents=noise()
    )
    check(mixed, toy.reference(["cat"], noise(), negative=["big"], true_cfg_scale=2.0))
    longer = t5(pipe.tokenizers["tokenizer_2"].encode(["cat"], 9))
    got = history(toy, prompt_embeds=longer, pooled_prompt_embeds=pooled, latents=noise())
    check(got, toy.reference(["cat"], noise(), text_tokens=9))


def test_context_of_tokens(toy: Toy) -> None:
    """The contract's way in: a context of token ids, prepared and executed."""
    tokens = {name: toy.pipe.tokenizers[name].encode(["cat"], n) for name, n in (("tokenizer", None), ("tokenizer_2", 6))}
    context = PixelGenerationContext(tokens=tokens["tokenizer"], tokens_2=tokens["tokenizer_2"], latents=noise())
    output = toy.pipe.execute(toy.pipe.prepare_inputs(context))
    assert isinstance(output, DiffusionPipelineOutput)
    pixels = vae(unpack(toy.reference(["cat"], noise())[-1], (16, 16)))
    assert np.abs(output.images.astype(int) - np.round(pixels * 255)).max() <= 1


def test_position_ids_of_the_context(toy: Toy) -> None:
    def final(**ids: Any) -> Any:
        return toy.pipe.denoise(toy.pipe.prepare_inputs(PixelGenerationContext(prompt=["cat"], latents=noise(), **ids)))

    raster = np.zeros((16, 3), np.float32)
    raster[:, 1], raster[:, 2] = np.divmod(np.arange(16), 4)
    assert np.array_equal(final(), final(latent_image_ids=raster, text_ids=np.zeros((6, 3), np.float32)))
    assert not np.array_equal(final(), final(latent_image_ids=raster[::-1].copy()))
    assert not np.array_equal(final(), final(text_ids=np.ones((6, 3), np.float32)))


def test_any_object_is_a_context(toy: Toy) -> None:
    class Four:
        num_images_per_prompt, height, width, num_inference_steps = 1, 16, 12, 2
        prompt = "cat"

    assert toy.pipe.execute(toy.pipe.prepare_inputs(Four())).images.shape == (1, 16, 12, 3)


def test_output_types(toy: Toy) -> None:
    images = {kind: toy.pipe("cat", seed=3, output_type=kind).images for kind in ("pil", "np", "uint8", "latent")}
    pixels: Any = images["np"]
    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 16, 16, 3)
    assert np.array_equal(images["uint8"], (pixels * 255).round().astype(np.uint8))
    picture = images["pil"][0]
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.size) == ("RGB", (16, 16))
    assert np.array_equal(np.asarray(picture), images["uint8"][0])
    latents: Any = images["latent"]
    assert latents.dtype == np.float32
    assert latents.shape == (1, 16, 12)


def test_latent_output_runs_no_decoder(toy: Toy) -> None:
    toy.pipe("cat", output_type="latent")
    assert not [path for path, _ in toy.backend.runs if path.startswith("vae")]


def test_seed_is_the_same_picture_at_any_place(toy: Toy) -> None:
    alone = [toy.pipe("cat", seed=[seed], output_type="latent").images[0] for seed in (7, 8, 9)]
    together = toy.pipe("cat", seed=[9, 7, 8], num_images_per_prompt=3, output_type="latent").images
    for got, expected in zip(together, (alone[2], alone[0], alone[1]), strict=True):
        np.testing.assert_allclose(got, expected, **CLOSE)
    assert np.array_equal(toy.pipe("cat", seed=7, output_type="latent").images[0], alone[0])


def test_seed_is_reported_and_reproduces(toy: Toy) -> None:
    first, second = (toy.pipe("cat", output_type="uint8") for _ in range(2))
    assert isinstance(first.seed, int)
    assert first.seed != second.seed
    assert np.array_equal(toy.pipe("cat", seed=first.seed, output_type="uint8").images, first.images)
    assert toy.pipe("cat", latents=noise()).seed is None
    assert toy.pipe("cat", seed=[1, 2], num_images_per_prompt=2).seed == [1, 2]


def test_settings_are_what_was_used(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, guidance=True, defaults={"guidance_scale": 4.5})
    settings = toy.pipe(["cat", "dog"], num_inference_steps=2, seed=5).settings
    expected = {
        "prompt": ["cat", "dog"], "height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 4.5,
        "true_cfg_scale": 1.0, "num_images_per_prompt": 1, "max_sequence_length": 6, "seed": 5, "artifact": toy.artifact.id,
    }  # fmt: skip
    assert {key: settings[key] for key in expected} == expected


def test_defaults_come_from_the_class_then_the_context(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, defaults={"num_inference_steps": None})
    assert toy.pipe("cat").settings["num_inference_steps"] == FluxPipeline.default_num_inference_steps == 28
    bare = make_toy(tmp_path, defaults={"height": None})
    with pytest.raises(RequestError, match="height=1024 is outside"):
        bare.pipe("cat")


def test_callback_replaces_latents(toy: Toy) -> None:
    """What came before the replacement is forgotten; what comes after follows from it."""

    def replaced(start: Any) -> Any:
        answer = {"latents": noise(seed=4)}
        return toy.pipe(
            "cat", latents=start, output_type="latent", callback_on_step_end=lambda *call: answer if call[1] == 1 else None
        ).images

    got = replaced(noise())
    assert np.array_equal(got, replaced(noise(seed=9)))
    assert not np.allclose(got, toy.pipe("cat", latents=noise(), output_type="latent").images)
    assert not np.allclose(got, noise(seed=4))


def test_callback_gets_copies(toy: Toy) -> None:
    def vandal(*call: Any) -> None:
        call[3]["latents"][...] = np.nan

    expected = toy.pipe("cat", latents=noise(), output_type="latent").images
    given = noise()
    got = toy.pipe("cat", latents=given, output_type="latent", callback_on_step_end=vandal).images
    assert np.array_equal(got, expected)
    assert np.array_equal(given, noise())


def test_cancelling_ends_one_request_alone(toy: Toy) -> None:
    """The other request is between two of its steps when this one ends."""
    expected = toy.pipe("cat", latents=noise(), output_type="latent").images
    halfway, cancelled = threading.Event(), threading.Event()
    results: list[Any] = []

    def wait(*_: Any) -> None:
        halfway.set()
        assert cancelled.wait(20)

    def other() -> None:
        results.append(toy.pipe("cat", latents=noise(), output_type="latent", callback_on_step_end=wait).images)

    thread = threading.Thread(target=other)
    thread.start()
    assert halfway.wait(20)
    steps: list[int] = []

    def cancel(*call: Any) -> dict[str, Any]:
        steps.append(call[1])
        return {"cancel": call[1] == 1}

    with pytest.raises(RequestCancelled, match="after step 1"):
        toy.pipe("dog", latents=noise(), num_inference_steps=9, callback_on_step_end=cancel)
    cancelled.set()
    thread.join(20)
    assert steps == [0, 1]
    assert np.array_equal(results[0], expected)


def test_threads_never_see_each_other(toy: Toy) -> None:
    """Steps of four requests, two of them of the same dims, interleave."""
    requests: list[dict[str, Any]] = [
        {"prompt": "cat", "latents": noise(seed=1)},
        {"prompt": "dog", "latents": noise(seed=2)},
        {"prompt": "tree", "negative_prompt": "big", "true_cfg_scale": 2.0, "latents": noise(seed=3)},
        {"prompt": "red house", "height": 8, "latents": noise(size=(8, 16), seed=4), "num_inference_steps": 5},
    ]
    expected = [toy.pipe(**request, output_type="latent").images for request in requests]
    barrier = threading.Barrier(len(requests), timeout=20)
    got: dict[int, Any] = {}

    def meet(_: Any, step: int, *__: Any) -> None:
        if step < 3:
            barrier.wait()

    def run(i: int) -> None:
        got[i] = toy.pipe(**requests[i], output_type="latent", callback_on_step_end=meet).images

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for i, images in enumerate(expected):
        assert np.array_equal(got[i], images)


def test_a_reused_plan_is_as_good_as_a_fresh_one(toy: Toy, tmp_path: Path) -> None:
    toy.pipe("dog", seed=1, true_cfg_scale=2.0, negative_prompt="big")
    toy.pipe(["dog", "cat"], seed=2)
    fresh = make_toy(tmp_path / "fresh").pipe("cat", latents=noise(), output_type="latent")
    for _ in range(2):
        assert np.array_equal(toy.pipe("cat", latents=noise(), output_type="latent").images, fresh.images)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("all", {"text_encoder/model", "text_encoder_2/model", "vae/model", "transformer/condition", *LOOP}),
        ("denoiser", LOOP),
        ("none", set()),
    ],
)
def test_keep_says_what_stays_open(tmp_path: Path, keep: Any, expected: set[str]) -> None:
    toy = make_toy(tmp_path, keep=keep)
    assert toy.backend.open_paths() == set()
    during: set[str] = set()
    toy.backend.before_run = lambda path: during.update(toy.backend.open_paths()) if path.endswith("rest.onnx") else None
    images = toy.pipe("cat", seed=1, output_type="uint8").images
    assert toy.backend.open_paths() == {f"{path}.onnx" for path in expected}
    if keep != "all":
        assert during == {f"{path}.onnx" for path in LOOP}
    assert np.array_equal(toy.pipe("cat", seed=1, output_type="uint8").images, images)
    toy.pipe.close()
    assert toy.backend.open_paths() == set()
    with pytest.raises(BackendError, match="closed"):
        toy.pipe("cat")


@pytest.mark.parametrize("keep", ["none", "denoiser"])
def test_no_plan_outlives_its_session(tmp_path: Path, keep: Any) -> None:
    """A plan holds the engine's memory, which a closing session gives back."""
    toy = make_toy(tmp_path, keep=keep)
    for cache in (None, "first-block:0.1"):
        options: dict[str, Any] = {"num_inference_steps": 10, "negative_prompt": "big", "true_cfg_scale": 2.0, "cache": cache}
        toy.pipe(["cat", "dog", "tree"], seed=1, callback_on_step_end=lambda *_: None, **options)
        toy.pipe.denoise(toy.pipe.prepare_inputs(PixelGenerationContext(prompt=["cat"])), observe=lambda *_: None)
    assert toy.backend.opened["vae/model.onnx"] == 0
    toy.pipe.close()
    assert toy.backend.outlived == []


def test_closing_lets_running_requests_end(toy: Toy) -> None:
    """Two of them, one closed from its own callback; new ones are refused at once, and the last to end closes the sessions."""
    expected = toy.pipe("cat", latents=noise(), output_type="uint8").images
    halfway, done = threading.Event(), threading.Event()
    results: list[Any] = []

    def wait(*_: Any) -> None:
        halfway.set()
        assert done.wait(20)

    def other() -> None:
        results.append(toy.pipe("cat", latents=noise(), output_type="uint8", callback_on_step_end=wait).images)

    thread = threading.Thread(target=other)
    thread.start()
    assert halfway.wait(20)

    def close(*_: Any) -> None:
        toy.pipe.close()
        for request in (lambda: toy.pipe("cat"), lambda: toy.pipe("cat", output_type="latent")):
            with pytest.raises(BackendError, match="this pipeline is closed; load the artifact again"):
                request()

    # A cache and guidance open what nothing has opened yet: a probe, a second lane.
    options: dict[str, Any] = {"negative_prompt": "big", "true_cfg_scale": 2.0, "cache": "first-block", "num_inference_steps": 9}
    toy.pipe(["cat", "dog", "tree"], callback_on_step_end=close, **options)
    assert toy.backend.open_paths() != set()
    done.set()
    thread.join(20)
    assert np.array_equal(results[0], expected)
    assert toy.backend.open_paths() == set()


def test_a_request_that_fails_is_no_longer_running(toy: Toy) -> None:
    with pytest.raises(RequestCancelled):
        toy.pipe("cat", callback_on_step_end=lambda *_: {"cancel": True})
    toy.pipe.close()
    assert toy.backend.open_paths() == set()


def test_the_pipeline_is_a_context_manager(toy: Toy) -> None:
    with toy.pipe as pipe:
        pipe("cat")
    assert toy.backend.open_paths() == set()


def test_encoders_and_decoder_run_in_chunks(toy: Toy) -> None:
    """prompts and images go to 2 here: four prompts take two runs of each."""
    prompts = ["cat", "dog", "red house", "big tree"]
    images = toy.pipe(prompts, latents=noise(4), output_type="np").images
    pixels = vae(unpack(toy.reference(prompts, noise(4))[-1], (16, 16)))
    np.testing.assert_allclose(images, pixels, **CLOSE)
    for path, dim in (
        ("text_encoder/model.onnx", "prompts"),
        ("text_encoder_2/model.onnx", "prompts"),
        ("vae/model.onnx", "images"),
    ):
        assert [dims[dim] for p, dims in toy.backend.runs if p == path] == [2, 2]


def test_prompt_too_long_is_cut_and_said(toy: Toy) -> None:
    text = "red green blue apple cat dog house tree big small"
    with pytest.warns(PromptTruncatedWarning) as caught:
        result = toy.pipe(text, latents=noise(), output_type="latent")
    said = [str(w.message) for w in caught]
    assert said == list(result.warnings)
    assert len(said) == 2
    assert "dropped: 'house tree big small'" in said[0]
    assert "dropped: 'dog house tree big small'" in said[1]
    assert all(w.filename == __file__ for w in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut = toy.pipe("red green blue apple cat dog", "red green blue apple cat", latents=noise(), output_type="latent")
    assert np.array_equal(cut.images, result.images)


def test_timings_name_the_phases(toy: Toy) -> None:
    timings = toy.pipe("cat").timings
    assert list(timings) == ["encode", "condition", "loop", "decode"]
    assert all(seconds >= 0 for seconds in timings.values())


def test_latents_that_are_not_finite_are_an_error(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runtime import toy_flux

    monkeypatch.setitem(toy_flux.FUNCTIONS, "transformer/rest.onnx", lambda i: {"hn": np.full_like(i["h1"], np.inf)})
    with pytest.raises(BackendError, match="not finite after 3 steps"), np.errstate(all="ignore"):
        toy.pipe("cat")


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before
