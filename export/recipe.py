"""How a family is traced: its components as modules on the meta device, their inputs by role, and the denoiser's borders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import Dim, TensorSpec

__all__ = ["Border", "ComponentRecipe", "GraphInput", "Recipe", "Role", "SegmentRecipe"]

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
class Border:
    """A module whose outputs keep their names through the passes, so that graphs can be cut there.

    path: the module's path in the source's class. outputs: what it returns, in order; None is left unmarked,
    "" is called by the path alone.
    """

    path: str
    outputs: tuple[str | None, ...] = ("",)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The names of the marked values, in the order the module returns them."""
        return tuple(None if o is None else (f"{self.path}/{o}" if o else self.path) for o in self.outputs)


@dataclass(frozen=True)
class SegmentRecipe:
    """Where the denoiser's loop is cut: the labels of the values that end a segment.

    embed: the image's hidden state h0. first: what block 0 returns. rest: the last block's hidden state of the image.
    token_dims: dimensions that make a value too large to be known before the loop for every step.
    """

    embed: str
    first: tuple[str, ...]
    rest: str
    token_dims: tuple[str, ...]


@dataclass(frozen=True)
class ComponentRecipe:
    """One component: how to build its module, and what goes in and comes out.

    build: makes the wrapped module in float32, parameters where the surrounding torch device context says.
    borders: the modules whose outputs are marked, in running order; parity of a large component is checked between them.
    prefix: what the wrapper puts before the source module's parameter names.
    aliases: parameter name → the name a tied parameter is stored under.
    probe_dims: dimension values of the two parity runs.
    derived_dims: dimension of an output → the input dimension and the factor it follows from.
    trace_limits: dimension → the largest value the traced program holds for, where the source branches on sizes.
    narrow: the same component at full depth and small width, for the wiring check.
    called: the submodule of the source's component that its pipeline calls, "" for itself.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    build: Callable[[], torch.nn.Module]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int | str, ...], ...]
    probe_dims: tuple[Mapping[str, int], Mapping[str, int]]
    borders: tuple[Border, ...] = ()
    prefix: str = "model."
    aliases: Mapping[str, str] | None = None
    segments: SegmentRecipe | None = None
    derived_dims: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    trace_limits: Mapping[str, int] = field(default_factory=dict)
    narrow: Callable[[], ComponentRecipe] | None = None
    called: str = ""


@dataclass(frozen=True)
class Recipe:
    """A whole pipeline: components in the order requests use them, and every dimension's range.

    tokenizers: name → tokens per text at most. scheduler: the source's subfolder of its configuration.
    defaults: what a request is filled with where it says nothing.
    """

    family: str
    pipeline_class: str
    components: tuple[ComponentRecipe, ...]
    dims: Mapping[str, Dim]
    tokenizers: Mapping[str, int]
    scheduler: str
    defaults: Mapping[str, Any]
