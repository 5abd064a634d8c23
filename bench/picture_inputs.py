"""What whole pictures are drawn from, the same for every peer: prompts, noise and settings, handed over as a file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrify.bench.cases import Case
from vitrify.engine.session import Array

__all__ = ["PictureInputs", "draw_picture_inputs"]

_OTHER_PROMPT = "blue whale"


@dataclass(frozen=True)
class PictureInputs:
    """prompts: one a picture. latents: [pictures, image_tokens, channels] float32, packed. The rest is FluxPipeline's by name."""

    prompts: tuple[str, ...]
    latents: Array
    negative_prompt: str | None
    true_cfg_scale: float
    num_inference_steps: int
    height: int
    width: int
    max_sequence_length: int

    def save(self, path: Path) -> None:
        """Write all of it to `path` (.npz)."""
        given: dict[str, Any] = {
            f.name: np.asarray(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None
        }
        np.savez(path, **given)

    @classmethod
    def load(cls, path: Path) -> PictureInputs:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            found: dict[str, Any] = {f.name: stored.get(f.name) for f in fields(cls)}
        latents, prompts = found.pop("latents"), found.pop("prompts")
        rest: dict[str, Any] = {name: None if value is None else value.item() for name, value in found.items()}
        return cls(tuple(str(prompt) for prompt in prompts), latents, **rest)

    def changes(self, seed: int) -> dict[str, PictureInputs]:
        """By input: the same with this one other than it was, for the first picture."""
        rng = np.random.default_rng(seed)
        return {
            "prompts": replace(self, prompts=(_OTHER_PROMPT, *self.prompts[1:])),
            "latents": replace(self, latents=rng.standard_normal(self.latents.shape, dtype=np.float32)),
            "num_inference_steps": replace(self, num_inference_steps=max(1, self.num_inference_steps // 4)),
        }


def draw_picture_inputs(case: Case, seed: int) -> PictureInputs:
    """The case's prompts with standard normal latents, at the case's size."""
    rng = np.random.default_rng(seed)
    shape = (len(case.prompts), case.image_tokens, case.shape.in_channels)
    return PictureInputs(
        prompts=case.prompts,
        latents=rng.standard_normal(shape, dtype=np.float32),
        negative_prompt=case.defaults.get("negative_prompt"),
        true_cfg_scale=float(case.defaults.get("true_cfg_scale", 1.0)),
        num_inference_steps=case.steps,
        height=case.height_px,
        width=case.width_px,
        max_sequence_length=case.text_tokens,
    )
