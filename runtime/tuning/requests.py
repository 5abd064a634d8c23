"""The requests that are measured: a file of prompts, one request each, always from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitrify.engine.cache_policy import Always, Cache
from vitrify.engine.errors import RequestError
from vitrify.runtime.caching.summary import CacheReport
from vitrify.runtime.compiled import CompiledPipeline
from vitrify.runtime.context import PixelGenerationContext
from vitrify.runtime.request import PreparedRequest

__all__ = ["Drawn", "Requests", "read_prompts"]

_MAX_BYTES = 2**24


def read_prompts(path: Path, option: str = "--prompts") -> list[str]:
    """The lines of a text file that are not blank, each once. option: that named it, for errors.

    Raises RequestError for a file that cannot be read or has none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise RequestError(f"{option} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{option} {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if len(data) > _MAX_BYTES:
        raise RequestError(f"{option} {path}: larger than {_MAX_BYTES} bytes; give fewer prompts")
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise RequestError(f"{option} {path}: no prompts, expected one a line")
    return prompts


@dataclass(frozen=True)
class Drawn:
    """What one request gave.

    picture: [height, width, 3] float32 from 0 to 1. seconds: of the denoising loop. report: of its cache; None without one.
    """

    picture: npt.NDArray[Any]
    seconds: float
    report: CacheReport | None


class Requests:
    """One request a prompt; that of prompt i draws its noise from seed + i. All else is the artifact's default."""

    def __init__(self, pipe: CompiledPipeline, prompts: Sequence[str], steps: int, seed: int) -> None:
        self.pipe = pipe
        self.prompts = tuple(prompts)
        self.steps = steps
        self.seed = seed

    def __len__(self) -> int:
        return len(self.prompts)

    def prepared(self, index: int, cache: Cache | None = None, steps: int | None = None) -> PreparedRequest:
        """The request of prompt `index` under `cache` (None: no cache), of `steps` steps instead of the usual number."""
        context = PixelGenerationContext(
            prompt=self.prompts[index],
            seed=self.seed + index,
            num_inference_steps=self.steps if steps is None else steps,
            cache=Cache(Always()) if cache is None else cache,
        )
        return self.pipe.prepare_inputs(context)

    def draw(self, index: int, cache: Cache | None = None, steps: int | None = None) -> Drawn:
        """Draw the request of prompt `index`; arguments as in `prepared`."""
        request = self.prepared(index, cache, steps)
        latents = self.pipe.denoise(request)
        picture = self.pipe.decode(latents, request.size)[0]
        return Drawn(picture, request.timings["loop"], request.reports[-1] if request.reports else None)
