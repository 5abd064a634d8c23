"""A case's inputs, the same for every peer: drawn once from a seed, handed over as a file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrify.bench.cases import Case
from vitrify.engine.session import Array

__all__ = ["CaseInputs", "draw_inputs"]

# Exact in bfloat16 even after the model's × 1000. At 3.5 (3500 becomes 3504) the sinusoids of its embedding are others:
# a trained model has learned to bear that, random weights have not, and bfloat16 would look wrong for no fault of its own.
_GUIDANCE = 4.0


@dataclass(frozen=True)
class CaseInputs:
    """What a denoiser is called with over the steps of one request, float32.

    latents: [batch, image_tokens, channels]. encoder_hidden_states: [batch, text_tokens, dim].
    pooled_projections: [batch, dim]. timesteps: [steps], 1 … 1/steps, in the transformer's unit.
    img_ids: [image_tokens, axes]. txt_ids: [text_tokens, axes]. guidance: [batch], None without guidance embedding.
    """

    latents: Array
    encoder_hidden_states: Array
    pooled_projections: Array
    timesteps: Array
    img_ids: Array
    txt_ids: Array
    guidance: Array | None

    def save(self, path: Path) -> None:
        """Write all of it to `path` (.npz)."""
        np.savez(path, **self._given())

    @classmethod
    def load(cls, path: Path) -> CaseInputs:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            found: dict[str, Any] = {f.name: stored.get(f.name) for f in fields(cls)}
        return cls(**found)

    def feeds(self) -> list[dict[str, Array]]:
        """By step, what a model takes that is called with everything in every step, by diffusers' argument names."""
        fixed = {name: value for name, value in self._given().items() if name not in ("latents", "timesteps")}
        fixed["hidden_states"] = self.latents
        return [{**fixed, "timestep": time.repeat(len(self.latents))} for time in self.timesteps[:, None]]

    def changes(self, seed: int) -> dict[str, CaseInputs]:
        """By input: the same inputs with this one other than it was, as much as two requests differ."""
        rng = np.random.default_rng(seed)
        changed: dict[str, CaseInputs] = {}
        for name, value in self._given().items():
            if name == "timesteps":
                other = value[::-1].copy()
            elif name == "guidance":
                other = value + np.float32(2)
            elif name in ("img_ids", "txt_ids"):
                # A shift of all positions changes nothing in a rotary embedding, so they are shuffled or spread.
                spread = np.broadcast_to(np.arange(len(value), dtype=np.float32)[:, None], value.shape)
                other = rng.permutation(value) if value.any() else spread.copy()
            else:
                other = rng.standard_normal(value.shape, dtype=np.float32)
            changed[name] = replace(self, **{name: other})
        return changed

    def _given(self) -> dict[str, Any]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def draw_inputs(case: Case, seed: int) -> CaseInputs:
    """Standard normal latents and embeddings; positions as the pipeline gives them; evenly spaced timesteps."""
    rng = np.random.default_rng(seed)
    shape, axes = case.shape, len(case.shape.rope_axes)

    def normal(*extents: int) -> Array:
        return rng.standard_normal(extents, dtype=np.float32)

    positions = np.zeros((case.rows, case.columns, axes), np.float32)
    positions[..., -2] = np.arange(case.rows)[:, None]
    positions[..., -1] = np.arange(case.columns)[None, :]
    return CaseInputs(
        latents=normal(case.batch, case.image_tokens, shape.in_channels),
        encoder_hidden_states=normal(case.batch, case.text_tokens, shape.joint_dim),
        pooled_projections=normal(case.batch, shape.pooled_dim),
        timesteps=np.linspace(1.0, 1.0 / case.steps, case.steps, dtype=np.float32),
        img_ids=positions.reshape(case.image_tokens, axes),
        txt_ids=np.zeros((case.text_tokens, axes), np.float32),
        guidance=np.full(case.batch, _GUIDANCE, np.float32) if shape.guidance else None,
    )
