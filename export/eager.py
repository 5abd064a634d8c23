"""The reference: the source's own module, run in float32 by eager PyTorch, its weights in memory as long as they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitrify.engine.session import Array
from vitrify.export.recipe import Border, ComponentRecipe
from vitrify.export.rounding import rounded
from vitrify.export.source import TensorLocation
from vitrify.export.trace import meta_module

__all__ = ["EagerModule", "Scaled", "read_float32"]


@dataclass(frozen=True)
class Scaled:
    """A matrix stored as int8 rows, and their scales."""

    rows: TensorLocation
    scale: TensorLocation

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.rows.shape


def read_float32(place: TensorLocation | Scaled) -> Array:
    """A stored tensor, lifted to float32, as a copy of its own."""
    if isinstance(place, Scaled):
        return np.asarray(read_float32(place.rows) * read_float32(place.scale)[:, None], dtype=np.float32)
    stored = np.memmap(place.file, dtype=place.dtype.numpy, mode="r", offset=place.offset, shape=place.shape or (1,))
    return np.array(stored, dtype=np.float32).reshape(place.shape)


class EagerModule:
    """A component's module over given parameters.

    parameters: name (without the wrapper's prefix) → where its bytes are, or the float32 values themselves.
    stream: hold the parameters of one border module at a time, and of the modules outside all borders.
    """

    def __init__(
        self, recipe: ComponentRecipe, parameters: Mapping[str, TensorLocation | Scaled | Array], *, stream: bool = False
    ) -> None:
        self.recipe = recipe
        self._parameters = parameters
        self._captured: dict[str, Array] = {}
        self.module, buffers = meta_module(recipe)
        for name, value in buffers.items():
            owner, leaf = _owner(self.module, name)
            owner.register_buffer(leaf, value, persistent=False)
        self._tied: dict[int, str] = {}
        streamed: set[int] = set()
        for border in recipe.borders:
            part = self.module.get_submodule(recipe.prefix + border.path)
            if stream:
                part.register_forward_pre_hook(self._load_hook)
                part.register_forward_hook(self._drop_hook)
                streamed |= {id(m) for m in part.modules()}
            part.register_forward_hook(self._capture_hook(border))
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            short = name.removeprefix(recipe.prefix)
            if short in parameters:
                self._tied.setdefault(id(parameter), short)
        self._names = {
            (id(owner), leaf): self._tied[id(parameter)]
            for owner in self.module.modules()
            for leaf, parameter in owner._parameters.items()
            if parameter is not None and id(parameter) in self._tied
        }
        for owner in self.module.modules():
            if id(owner) not in streamed:
                self._fill(owner)

    def run(self, inputs: Mapping[str, Array], layers: Mapping[str, str] | None = None) -> dict[str, Array]:
        """The component's outputs and every border's values, by name. layers: weight → the precision of its linear layer."""
        self._captured = {}
        arguments = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        lowered = rounded(self.module, layers or {}, self.recipe.prefix)
        with torch.no_grad(), warnings.catch_warnings(), lowered:
            warnings.simplefilter("ignore")
            result = self.module(**arguments)
        outputs: Sequence[torch.Tensor] = (result,) if isinstance(result, torch.Tensor) else result
        named = {name: value.numpy() for name, value in zip(self.recipe.outputs, outputs, strict=True)}
        return {**self._captured, **named}

    def _fill(self, owner: torch.nn.Module) -> None:
        for leaf, parameter in list(owner._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            name = self._names.get((id(owner), leaf))
            # What no graph reads reaches no output, so that any numbers do.
            source = np.zeros(parameter.shape, dtype=np.float32) if name is None else self._parameters[name]
            values = source if isinstance(source, np.ndarray) else read_float32(source)
            owner._parameters[leaf] = torch.nn.Parameter(torch.from_numpy(values), requires_grad=False)

    def _load_hook(self, part: torch.nn.Module, _inputs: Any) -> None:
        for owner in part.modules():
            self._fill(owner)

    def _drop_hook(self, part: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        for owner in part.modules():
            for leaf, parameter in list(owner._parameters.items()):
                if parameter is not None:
                    owner._parameters[leaf] = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

    def _capture_hook(self, border: Border) -> Any:
        def capture(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            values = (output,) if isinstance(output, torch.Tensor) else output
            for label, value in zip(border.labels, values, strict=True):
                if label is not None:
                    self._captured[label] = value.numpy().copy()

        return capture


def _owner(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
