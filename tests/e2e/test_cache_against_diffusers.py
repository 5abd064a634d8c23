"""The step caches on the trained sample against diffusers' own hooks on its transformer, from the same latents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

from tests.compare import assert_close
from vitrify.engine.cache_policy import Cache, FirstBlock, Interval, Magnitude, Taylor
from vitrify.runtime import PixelGenerationContext

if TYPE_CHECKING:
    from tests.e2e.conftest import Case

STEPS = 20
CALL: dict[str, Any] = {
    "prompt": "red apple",
    "height": 64,
    "width": 64,
    "num_inference_steps": STEPS,
    "max_sequence_length": 16,
    "true_cfg_scale": 1.0,
    "output_type": "latent",
}
RATIOS = [1.0, *(float(r) for r in np.linspace(1.03, 0.97, STEPS - 1))]


def taylorseer(order: int, interval: int, before: int) -> Any:
    return TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=before,
        max_order=order,
        use_lite_mode=True,
        taylor_factors_dtype=torch.float32,
    )


CACHES: dict[str, tuple[Any, Cache]] = {
    "first block 0.12": (FirstBlockCacheConfig(threshold=0.12), Cache(FirstBlock(0.12))),
    "first block 0.2": (FirstBlockCacheConfig(threshold=0.2), Cache(FirstBlock(0.2))),
    "taylorseer 3 after 3": (taylorseer(1, 3, 3), Cache(Interval(3, 3), Taylor(1, "output"))),
    "taylorseer 5 after 4": (taylorseer(1, 5, 4), Cache(Interval(5, 4), Taylor(1, "output"))),
    "order 2": (taylorseer(2, 3, 4), Cache(Interval(3, 4), Taylor(2, "output"), compat="max")),
    "magcache": (MagCacheConfig(mag_ratios=RATIOS, num_inference_steps=STEPS, threshold=0.06), Cache(Magnitude(tuple(RATIOS)))),
}


@contextlib.contextmanager
def their_cache(transformer: Any, config: Any) -> Iterator[list[bool]]:
    """Their hooks on while the block lasts; gives whether each call of the transformer was computed."""
    calls: list[bool] = []

    def ran(*_: Any) -> None:
        calls[-1] = True

    transformer.enable_cache(config)
    # The last block's attention runs in computed steps alone, whichever hook skips it.
    hooks = [
        transformer.register_forward_pre_hook(lambda *_: calls.append(False)),
        transformer.single_transformer_blocks[-1].attn.register_forward_hook(ran),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
        transformer.disable_cache()


@pytest.mark.parametrize(("theirs", "ours"), CACHES.values(), ids=CACHES)
def test_the_same_steps_and_latents(sample: Case, theirs: Any, ours: Cache) -> None:
    start = sample.pipe.noise(11, 1, sample.pipe.size(64, 64))
    with their_cache(sample.reference.transformer, theirs) as calls:
        expected = sample.reference(**CALL, latents=torch.from_numpy(start.copy())).images.numpy()
    result = sample.pipe(**CALL, latents=start, cache=ours)
    assert result.cache is not None
    assert list(result.cache.computed[0]) == [step for step, ran in enumerate(calls) if ran]
    assert 0 < sum(calls) < len(calls) == STEPS
    assert_close(result.images, expected, 1e-4, "latents")


@pytest.mark.parametrize("name", ["first block 0.2", "taylorseer 3 after 3", "magcache"])
def test_guided_in_two_lanes(sample: Case, name: str) -> None:
    """True CFG: they keep a state for each side of the guidance and let it decide for itself, as our lanes do."""
    theirs, ours = CACHES[name]
    start = sample.pipe.noise(12, 1, sample.pipe.size(64, 64))
    guided = {**CALL, "true_cfg_scale": 2.0, "negative_prompt": ""}
    with their_cache(sample.reference.transformer, theirs) as calls:
        expected = sample.reference(**guided, latents=torch.from_numpy(start.copy())).images.numpy()
    del guided["output_type"]
    context = PixelGenerationContext(**{**guided, "prompt": ["red apple"]}, latents=start, cache=ours)
    request = replace(sample.pipe.prepare_inputs(context), lanes=((0,), (1,)))
    latents = sample.pipe.denoise(request)
    sides = [tuple(step for step, ran in enumerate(calls[side::2]) if ran) for side in (0, 1)]
    assert request.reports[-1].computed == tuple(sides)
    assert all(0 < len(side) < STEPS for side in sides)
    assert_close(latents, expected, 1e-4, "latents")
