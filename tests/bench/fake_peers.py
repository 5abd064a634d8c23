"""Peers without a process: they answer from a formula, and time by a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrify.bench.cases import Case, TransformerShape
from vitrify.bench.inputs import CaseInputs
from vitrify.bench.measure import Timing
from vitrify.bench.picture_inputs import PictureInputs

__all__ = ["TINY", "TINY_PICTURES", "FakePeer", "draw", "linear_model"]

TINY = Case(
    name="tiny",
    summary="for tests",
    shape=TransformerShape(
        heads=2,
        head_dim=8,
        joint_dim=12,
        pooled_dim=32,
        in_channels=16,
        guidance=True,
        rope_axes=(2, 2, 4),
        double_blocks=1,
        single_blocks=1,
    ),
    trained=False,
    batch=2,
    rows=3,
    columns=4,
    pixels_per_token=8,
    text_tokens=5,
    steps=4,
)

TINY_PICTURES = replace(TINY, name="tiny-pictures", kind="picture", prompts=("red apple", "rocket"))


def linear_model(inputs: CaseInputs, step: int) -> Any:
    """A noise_pred that every input moves."""
    assert inputs.guidance is not None
    row = 5 * inputs.pooled_projections.mean(axis=1) + inputs.guidance + inputs.timesteps[step]
    text = 5 * inputs.encoder_hidden_states.mean(axis=(1, 2))
    places = sum((np.arange(len(ids)) @ ids).sum() / len(ids) ** 2 for ids in (inputs.txt_ids, inputs.img_ids))
    return (inputs.latents + (row + text + places)[:, None, None]).astype(np.float32)


def draw(inputs: PictureInputs, index: int) -> Any:
    """A picture that every input moves: [height, width, 3] uint8."""
    number = sum(inputs.prompts[index].encode()) + 1000 * inputs.latents[index].std() + 7 * inputs.num_inference_steps
    return np.random.default_rng(int(number)).integers(0, 256, (inputs.height, inputs.width, 3), np.uint8)


@dataclass
class FakePeer:
    """predict: what it computes. seconds: of a step, one call after another, the last repeats. condition_s: of `condition`.

    parts: shares of a step's seconds by name. counted: what it counts. asked: what was called, in order.
    indices: of the timed calls, where they were given.
    """

    model: Callable[[Any, int], Any] = linear_model
    seconds: Sequence[float] = (1.0,)
    condition_s: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    _inputs: CaseInputs | PictureInputs | None = None
    _steps: int = 0

    def open(self) -> None:
        self.asked.append("open")

    def give(self, inputs: Path) -> None:
        with np.load(inputs) as stored:
            kind = PictureInputs if "prompts" in stored else CaseInputs
        self._inputs = kind.load(inputs)

    def predict(self, step: int) -> Any:
        assert self._inputs is not None
        return self.model(self._inputs, step)

    def time(self, what: str, count: int, index: int | None = None) -> Timing:
        self.asked.append(what)
        if index is not None:
            self.indices.append(index)
        if what == "condition":
            return Timing((self.condition_s,) * count)
        seconds = tuple(self.seconds[min(self._steps + i, len(self.seconds) - 1)] for i in range(count))
        self._steps += count
        return Timing(seconds, {name: tuple(share * s for s in seconds) for name, share in self.parts.items()})

    def counts(self) -> Mapping[str, int]:
        return self.counted

    def close(self) -> None:
        self.asked.append("close")
