"""The first block's probe of a compiled pipeline: one graph of the artifact between `first` and `rest`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.denoiser import RESIDUAL_DIFF
from vitrify.engine.errors import ArtifactError, SpecError
from vitrify.engine.session import SessionHolder

if TYPE_CHECKING:
    from vitrify.engine.artifact import Artifact
    from vitrify.engine.denoiser import DenoiserPlan
    from vitrify.engine.session import Backend, Plan
    from vitrify.runtime.caching.state import DenoisingCacheState

__all__ = ["Probe", "ProbeGraph"]

Array = npt.NDArray[Any]


class ProbeGraph:
    """The artifact's graph `residual_diff`; its session opens at the first request whose cache needs it.

    keep: whether it stays open between requests.
    """

    def __init__(self, artifact: Artifact, backend: Backend, *, keep: bool) -> None:
        self._root = artifact.root
        self._holder: SessionHolder | None = None
        graph = artifact.manifest.step_graphs.get(RESIDUAL_DIFF)
        if graph is not None:
            self._holder = SessionHolder(lambda: backend.open(artifact.path(graph.path), graph), keep)

    def check(self) -> None:
        """Raise ArtifactError where the artifact was written without the graph."""
        self._needed()

    @contextlib.contextmanager
    def open(self, denoiser: DenoiserPlan, state: DenoisingCacheState) -> Iterator[Probe]:
        """A lane's probe, over its plan's hidden states and its state's two references."""
        references = (state.prev_residual, state.candidate)
        if references[0] is None or references[1] is None:
            raise SpecError("a probe writes the state's candidate beside prev_residual, and one of them is missing")
        with self._needed().use() as session:
            dims = {name: denoiser.dims[name] for name in ("batch", "image_tokens")}
            yield Probe(session.plan(dims), denoiser, (references[0], references[1]))

    def close(self) -> None:
        """Close the session once nobody uses it."""
        if self._holder is not None:
            self._holder.close()

    def _needed(self) -> SessionHolder:
        if self._holder is None:
            raise ArtifactError(
                f"{self._root}: it was written without step/{RESIDUAL_DIFF}.onnx, which decides by the first block; "
                "export it again, or choose a cache whose steps are known beforehand: interval, taylorseer, mask"
            )
        return self._holder


class Probe:
    """Measures a lane's first block: one pass over its states, which writes the next reference too.

    references: [B, S, D] each; one is the reference, the other is written. All else lies in the denoiser's own buffers.
    """

    def __init__(self, plan: Plan, denoiser: DenoiserPlan, references: tuple[Array, Array]) -> None:
        self._plan = plan
        self._references = references
        self._reads = plan.switch("r_ref", references)
        self._writes = plan.switch("r", references[::-1])
        self._reading: int | None = None
        hidden = denoiser.hidden
        rows = denoiser.dims["batch"]
        # hN is idle from `finish` of one step to `rest` of the next: the sums need no memory of their own.
        self._sums = hidden.last.reshape(-1).view(np.uint8)[: 8 * rows].view(np.float32).reshape(rows, 2)
        plan.bind("h1", hidden.first)
        plan.bind("h0", hidden.embedded)
        plan.bind("sums", self._sums)
        self._point(0)
        plan.ready()

    def run(self, state: DenoisingCacheState) -> Array:
        """Write h1 − h0 to `state.candidate`; (Σ|r − r_ref|, Σ|r_ref|) of each row, [B, 2] float32, valid until `rest` runs."""
        self._point(0 if state.prev_residual is self._references[0] else 1)
        self._plan.run()
        return self._sums

    def _point(self, reading: int) -> None:
        if reading != self._reading:
            self._reads(reading)
            self._writes(reading)
            self._reading = reading
