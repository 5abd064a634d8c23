"""How a family is traced: its components as modules on the meta device, their inputs by role, and the denoiser's borders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import Dim, TensorSpec

__all__ = ["Block", "ComponentRecipe", "GraphInput", "Recipe", "Role", "SegmentRecipe"]

Role = Literal["request", "step", "latents"]


@dataclass(frozen=True)
class GraphInput:
    """An input of a component's graph.

    role: what it changes with. "request": known when the request starts and the same for every step;
        "step": known then, another value in each step; "latents": known only inside the loop.
    upper: integer inputs are drawn from 0 … upper − 1 in parity checks.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    role: Role = "request"
    upper: int = 1

    @property
    def spec(self) -> TensorSpec:
        """The same as a TensorSpec."""
        return TensorSpec(self.name, self.dtype, self.shape)


@dataclass(frozen=True)
class Block:
    """A block of the denoiser's loop: its module path, and what the values it returns are called, in order."""

    path: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SegmentRecipe:
    """Where the denoiser is cut, as module paths.

    embed: the module whose output is the image's hidden state h0.
    blocks: all blocks in running order; block 0 is the segment `first`, the others are `rest`.
    hidden: which of a block's outputs is the image's hidden state.
    marks: further modules whose outputs keep their names (parity feeds a block's conditioning there).
    token_dims: dimensions that make a value too large to be known before the loop for every step.
    """

    embed: str
    blocks: tuple[Block, ...]
    hidden: str
    marks: tuple[str, ...]
    token_dims: tuple[str, ...]


@dataclass(frozen=True)
class ComponentRecipe:
    """One component: how to build its module, and what goes in and comes out.

    build: makes the wrapped module in float32, parameters where the surrounding torch device context says.
    prefix: what the wrapper puts before the source module's parameter names.
    aliases: parameter name → the name a tied parameter is stored under.
    probe_dims: dimension values of the two parity runs.
    trace_limits: dimension → the largest value the traced program holds for, where the source branches on sizes.
    narrow: the same component at full depth and small width, for the wiring check.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    build: Callable[[], torch.nn.Module]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int | str, ...], ...]
    probe_dims: tuple[Mapping[str, int], Mapping[str, int]]
    prefix: str = "model."
    aliases: Mapping[str, str] | None = None
    segments: SegmentRecipe | None = None
    trace_limits: Mapping[str, int] = field(default_factory=dict)
    narrow: Callable[[], ComponentRecipe] | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole pipeline: components in the order requests use them, and every dimension's range."""

    family: str
    pipeline_class: str
    components: tuple[ComponentRecipe, ...]
    dims: Mapping[str, Dim]
    tokenizers: tuple[str, ...]
    scheduler: str
    defaults: Mapping[str, Any]
