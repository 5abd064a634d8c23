"""One prepared request: everything it runs on, checked, and nothing of it shared with another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from vitrify.runtime.schedulers.flow_match_euler import Schedule

if TYPE_CHECKING:
    from vitrify.engine.cache_policy import Cache
    from vitrify.runtime.caching.summary import CacheReport

__all__ = ["Branch", "PreparedRequest", "PromptTruncatedWarning", "Size", "Text"]

Array = npt.NDArray[Any]


class PromptTruncatedWarning(UserWarning):
    """The end of a prompt did not fit and was dropped; the message shows it."""


@dataclass(frozen=True)
class Size:
    """An image's size in pixels, in packed tokens and as the decoder's latent."""

    height: int
    width: int
    image_tokens: int
    latent_h: int
    latent_w: int


@dataclass(frozen=True)
class Branch:
    """What one side of the guidance says, for each prompt: token ids still to be encoded, or embeddings; one of both.

    tokens: tokenizer → [prompts, tokens] int64. embeds: name → [prompts, …] float32.
    """

    tokens: Mapping[str, Array] = field(default_factory=dict)
    embeds: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """The prompts of a request.

    prompts: how many. tokens: text tokens of the denoiser. branches: the prompts, then, where true CFG acts, the negative ones.
    record: what a result reports of them, by argument name.
    """

    prompts: int
    tokens: int
    branches: tuple[Branch, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class PreparedRequest:
    """What `prepare_inputs` makes and `execute` runs. Run it again and it draws the same; timings add up, reports follow.

    lanes: the denoiser calls of a step, each as the branches whose rows it holds.
    latents: [rows, image_tokens, channels] float32, packed: the noise. positions: graph input → array.
    seed: what `latents` were drawn from, None if they were given. settings: what a result reports.
    warnings: what was done otherwise than asked. timings: phase → seconds, filled on the way.
    cache: its step cache, None when off, with the threshold of a first-block decision. reports: what it did, one
        report a run, filled by the loop.
    """

    size: Size
    text: Text
    images_per_prompt: int
    lanes: tuple[tuple[int, ...], ...]
    schedule: Schedule
    latents: Array
    guidance_scale: float
    true_cfg_scale: float
    positions: Mapping[str, Array]
    seed: int | list[int] | None
    settings: Mapping[str, Any]
    warnings: tuple[str, ...]
    cache: Cache | None = None
    residual_threshold: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    reports: list[CacheReport] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Images in this request."""
        return self.text.prompts * self.images_per_prompt

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the `with` block to `timings[phase]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[phase] = self.timings.get(phase, 0.0) + time.perf_counter() - start
