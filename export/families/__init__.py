"""Model families by the diffusers pipeline class they compile."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from vitrify.engine.errors import CompileError
from vitrify.export.options import ExportOptions
from vitrify.export.recipe import Recipe

__all__ = ["SUPPORTED", "SourceConfigs", "recipe_for"]

SUPPORTED: Mapping[str, str] = {"FluxPipeline": "vitrify.export.families.flux"}


class SourceConfigs(Protocol):
    """What a recipe needs to know of a source: configurations only."""

    @property
    def pipeline_class(self) -> str:
        """The diffusers class, e.g. `FluxPipeline`."""

    def class_name(self, component: str) -> str:
        """The class of a component. Raises CompileError when it is missing."""

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's config.json. Raises CompileError when it is missing."""


def recipe_for(source: SourceConfigs, options: ExportOptions) -> Recipe:
    """The recipe of the family that compiles `source`. Raises CompileError listing the classes supported."""
    if source.pipeline_class not in SUPPORTED:
        raise CompileError(f"pipeline class {source.pipeline_class} is unsupported; supported: {', '.join(sorted(SUPPORTED))}")
    family = importlib.import_module(SUPPORTED[source.pipeline_class])
    recipe: Recipe = family.recipe(source, options)
    return recipe
