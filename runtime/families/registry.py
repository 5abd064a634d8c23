"""Families by the name in an artifact's manifest."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from vitrify.engine.errors import ArtifactError
from vitrify.runtime.compiled import CompiledPipeline

__all__ = ["FAMILIES", "family"]

FAMILIES: Mapping[str, str] = MappingProxyType({"flux": "vitrify.runtime.families.flux:FluxPipeline"})
"""Name → module:class; imported when an artifact asks for it."""


def family(name: str) -> type[CompiledPipeline]:
    """The pipeline class of family `name`. Raises ArtifactError listing those there are."""
    if name not in FAMILIES:
        raise ArtifactError(f"family {name!r} is unknown; this vitrify runs: {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    found: type[CompiledPipeline] = getattr(importlib.import_module(module), attribute)
    return found
