"""The step caches on the trained sample against diffusers' own hooks on its transformer, from the same latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

from tests.compare import assert_close
from vitrify.engine.cache_policy import Cache, FirstBlock, Interval, Magnitude, Taylor

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


@pytest.mark.parametrize(("theirs", "ours"), CACHES.values(), ids=CACHES)
def test_the_same_steps_and_latents(sample: Case, theirs: Any, ours: Cache) -> None:
    transformer = sample.reference.transformer
    start = sample.pipe.noise(11, 1, sample.pipe.size(64, 64))
    computed: list[bool] = []
    # The last block's attention runs in computed steps alone, whichever hook skips it.
    transformer.enable_cache(theirs)
    counter = transformer.single_transformer_blocks[-1].attn.register_forward_hook(lambda *_: computed.append(True))
    per_step: list[bool] = []

    def record(*_: Any) -> dict[str, Any]:
        per_step.append(bool(computed))
        computed.clear()
        return {}

    try:
        expected = sample.reference(**CALL, latents=torch.from_numpy(start.copy()), callback_on_step_end=record).images.numpy()
    finally:
        counter.remove()
        transformer.disable_cache()
    result = sample.pipe(**CALL, latents=start, cache=ours)
    assert result.cache is not None
    assert list(result.cache.computed[0]) == [step for step, ran in enumerate(per_step) if ran]
    assert 0 < sum(per_step) < STEPS
    assert_close(result.images, expected, 1e-4, "latents")
