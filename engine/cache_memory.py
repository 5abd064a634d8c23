"""How much memory a step cache takes, from its options and the denoiser's shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitrify.engine.cache_policy import Cache, Hold
from vitrify.engine.denoiser import hidden_tensors
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ArtifactError, RequestError, SpecError
from vitrify.engine.specs import ComponentSpec, Dim

__all__ = ["CacheMemory", "cache_memory", "image_tokens"]

Quantity = Literal["residual", "output"]

_FACTOR_BYTES = DType.FLOAT32.itemsize


@dataclass(frozen=True)
class CacheMemory:
    """Bytes of a cache's buffers, over all rows of a request. of: what the predictor holds; None where no cache is on."""

    of: Quantity | None
    decision_bytes: int
    predictor_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.decision_bytes + self.predictor_bytes


def cache_memory(cache: Cache, denoiser: ComponentSpec, rows: int, tokens: int) -> CacheMemory:
    """What a compiled pipeline allocates for `cache` beside its plan's own buffers.

    rows: of the denoiser, over all lanes. tokens: of the image. A first-block decision keeps a reference and writes its
    successor, in the activation's dtype; a held value is one buffer; Taylor of order k is k + 1 factors and one
    more to write the next value to, in float32, and another if it is corrected.
    """
    if not cache.enabled:
        return CacheMemory(None, 0, 0)
    hidden, output = hidden_tensors(denoiser).last, denoiser.graphs["finish"].outputs[0]
    predictor = cache.predictor or Hold("output" if cache.compat else None)
    of: Quantity = predictor.of or "residual"
    held = hidden if of == "residual" else output
    values = rows * tokens * _width(held.shape[2])
    if isinstance(predictor, Hold):
        predictor_bytes = values * held.dtype.itemsize
    else:
        order = 2 if cache.compat else predictor.order
        predictor_bytes = (order + 2 + predictor.corrected) * values * _FACTOR_BYTES
    decision_bytes = 2 * rows * tokens * _width(hidden.shape[2]) * hidden.dtype.itemsize if cache.probes else 0
    return CacheMemory(of, decision_bytes, predictor_bytes)


def image_tokens(dims: Mapping[str, Dim], height: int, width: int) -> int:
    """Tokens of a picture of `height` × `width` pixels. Raises RequestError for a size outside `dims`."""
    for name, value in (("height", height), ("width", width)):
        if not dims[name].allows(value):
            near = " or ".join(map(str, dims[name].nearest(value)))
            raise RequestError(f"{name}={value} is outside what this artifact was compiled for: {dims[name]}; ask for {near}")
    # A token covers the same square of pixels at every size.
    pixels, rest = divmod(dims["height"].max * dims["width"].max, dims["image_tokens"].max)
    if rest or dims["height"].min * dims["width"].min != pixels * dims["image_tokens"].min:
        raise ArtifactError(
            f"image_tokens ({dims['image_tokens']}) do not follow from height ({dims['height']}) and width ({dims['width']}); "
            "export again"
        )
    return height * width // pixels


def _width(extent: int | str) -> int:
    if not isinstance(extent, int):
        raise SpecError(f"a hidden state's width is {extent!r}, expected a number")
    return extent
