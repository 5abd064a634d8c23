"""Our side: the artifact's segments through the engine, as the runtime's loop drives them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitrify.bench.inputs import CaseInputs
from vitrify.bench.peers.peer import STEP, Peer
from vitrify.bench.timed_backend import TimedBackend
from vitrify.engine.artifact import Artifact
from vitrify.engine.backends import backend
from vitrify.engine.denoiser import CONDITION_ROWS, Denoiser
from vitrify.engine.session import Array
from vitrify.runtime.rotary import rotary_table

__all__ = ["ARTIFACT", "CONDITION", "Ours"]

ARTIFACT = "artifact"
"""Its folder in what was prepared."""

CONDITION = "condition"
_THETA = 10_000.0


class Ours(Peer):
    """Times a step, and apart from it `condition` for all steps. Its parts are the segments, by their graphs' paths.

    build: the artifact prepared under that name, in another precision; the case's own if not given.
    """

    def __init__(self, *, build: str | None = None, **given: Any) -> None:
        super().__init__(**given)
        if build is not None:
            self.artifact = self.build(build) / ARTIFACT
        self._stack = contextlib.ExitStack()

    def open(self) -> None:
        artifact = Artifact.open(self.artifact)
        spec = artifact.manifest.components["transformer"]
        self._axes = tuple(int(dim) for dim in spec.config["axes_dims_rope"])
        engine = TimedBackend(backend(artifact.manifest.target, threads=self.threads), self.clock)
        self._denoiser = Denoiser(engine, artifact.root, spec, condition_rows=artifact.manifest.dims[CONDITION_ROWS])

    def give(self, inputs: CaseInputs) -> None:
        self._stack.close()
        self._latents = inputs.latents
        batch, image_tokens, _ = inputs.latents.shape
        steps = len(inputs.timesteps)
        plan = self._denoiser.plan(batch=batch, image_tokens=image_tokens, text_tokens=len(inputs.txt_ids), steps=steps)
        self._plan = self._stack.enter_context(plan)
        self._request = {
            "encoder_hidden_states": inputs.encoder_hidden_states,
            "text_rotary": rotary_table(inputs.txt_ids, self._axes, _THETA),
            "image_rotary": rotary_table(inputs.img_ids, self._axes, _THETA),
        }
        self._rows: dict[str, Array] = {
            "timestep": np.repeat(inputs.timesteps[:, None], batch, axis=1),
            "pooled_projections": np.broadcast_to(inputs.pooled_projections, (steps, *inputs.pooled_projections.shape)),
        }
        if inputs.guidance is not None:
            self._rows["guidance"] = np.broadcast_to(inputs.guidance, (steps, batch))
        self._condition(0)

    def predict(self, index: int) -> Array:
        self._step(index)
        return self._plan.noise_pred.copy()

    def counts(self) -> Mapping[str, int]:
        """Engine calls of a step and of `condition`, by graph."""
        self.clock.take()
        self._condition(0)
        self._step(0)
        return {f"engine calls, {graph}": calls for graph, calls in sorted(self.clock.take_counts().items())}

    def calls(self) -> Mapping[str, Callable[[int], object]]:
        return {STEP: self._step, CONDITION: self._condition}

    def _condition(self, _index: int) -> None:
        self._plan.condition(self._request, self._rows)

    def _step(self, index: int) -> None:
        self._plan.latents[...] = self._latents
        self._plan.step(index % self._plan.steps)
