"""True classifier-free guidance: which denoiser calls a step makes, and how their outputs become one.

noise_pred = negative + scale · (positive − negative), in float32 (Ho & Salimans 2022, as diffusers writes it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitrify.runtime.values import check_dim

if TYPE_CHECKING:
    from vitrify.engine.denoiser import DenoiserPlan
    from vitrify.engine.specs import Dim
    from vitrify.runtime.caching.probe import Probe
    from vitrify.runtime.caching.state import DenoisingCacheState

__all__ = ["Lane", "combine", "lanes"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Lane:
    """One denoiser call per step.

    branches: whose rows it holds, in their order; each branch has as many. probe: None where no cache needs it.
    """

    branches: tuple[int, ...]
    plan: DenoiserPlan
    cache_state: DenoisingCacheState
    probe: Probe | None = None

    def load(self, latents: Array) -> None:
        """Give every branch the same latents, [rows, image_tokens, channels]."""
        rows = len(latents)
        for i in range(len(self.branches)):
            self.plan.latents[i * rows : (i + 1) * rows] = latents

    def split(self, output: Array) -> dict[int, Array]:
        """The denoiser's output by branch, [rows, image_tokens, channels] each, without a copy."""
        rows = len(output) // len(self.branches)
        return {branch: output[i * rows : (i + 1) * rows] for i, branch in enumerate(self.branches)}


def lanes(branches: int, rows: int, batch: Dim, what: str) -> tuple[tuple[int, ...], ...]:
    """The lanes of a request, each as the branches whose rows it holds.

    All branches share one lane if their rows fit the artifact's `batch`; else each has its own.
    what: how the rows came about. Raises RequestError if not even one branch fits.
    """
    together = tuple(range(branches))
    if branches > 1 and batch.allows(branches * rows):
        return (together,)
    check_dim(rows, batch, "rows", "--batch", what)
    return tuple((branch,) for branch in together)


def combine(predictions: Mapping[int, Array], scale: float) -> Array:
    """One noise prediction from those of the branches, [rows, tokens, channels] float32; a single one is passed on."""
    if len(predictions) == 1:
        return predictions[0]
    guided: Array = predictions[0] - predictions[1]
    guided *= np.float32(scale)
    guided += predictions[1]
    return guided
