"""Model families by the diffusers pipeline class they compile."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from vitrify.engine.errors import CompileError
from vitrify.export.options import ExportOptions
from vitrify.export.recipe import Recipe

__all__ = ["SUPPORTED", "ComponentConfig", "SourceConfigs", "recipe_for"]

SUPPORTED: Mapping[str, str] = {"FluxPipeline": "vitrify.export.families.flux"}


class ComponentConfig(Protocol):
    """One component's class and configuration."""

    @property
    def class_name(self) -> str:
        """E.g. `FluxTransformer2DModel`."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json."""


class SourceConfigs(Protocol):
    """What a recipe needs to know of a source, a folder or an artifact: configurations only."""

    @property
    def pipeline_class(self) -> str:
        """The diffusers class, e.g. `FluxPipeline`."""

    def component(self, name: str) -> ComponentConfig:
        """One component. Raises CompileError naming what is missing."""


def recipe_for(source: SourceConfigs, options: ExportOptions) -> Recipe:
    """The recipe of the family that compiles `source`. Raises CompileError listing the classes supported."""
    if source.pipeline_class not in SUPPORTED:
        raise CompileError(f"pipeline class {source.pipeline_class} is unsupported; supported: {', '.join(sorted(SUPPORTED))}")
    family = importlib.import_module(SUPPORTED[source.pipeline_class])
    recipe: Recipe = family.recipe(source, options)
    return recipe
