"""Request in, image out: runs artifacts, without torch.

`load` opens an artifact; what it gives draws when called. `DiffusionPipeline` is the contract for pipelines of your own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrify.engine.cache_config import DenoisingCacheConfig
    from vitrify.engine.component import ComponentConfig, ComponentModel, PipelineConfig
    from vitrify.engine.device import Device
    from vitrify.runtime.caching.state import DenoisingCacheState
    from vitrify.runtime.compiled import CompiledPipeline
    from vitrify.runtime.context import PixelGenerationContext
    from vitrify.runtime.loader import load
    from vitrify.runtime.output import DiffusionPipelineOutput, Result
    from vitrify.runtime.pipeline import DiffusionPipeline
    from vitrify.runtime.request import PromptTruncatedWarning

__all__ = [
    "CompiledPipeline",
    "ComponentConfig",
    "ComponentModel",
    "DenoisingCacheConfig",
    "DenoisingCacheState",
    "Device",
    "DiffusionPipeline",
    "DiffusionPipelineOutput",
    "PipelineConfig",
    "PixelGenerationContext",
    "PromptTruncatedWarning",
    "Result",
    "load",
]

_HOMES = {
    "CompiledPipeline": "vitrify.runtime.compiled",
    "ComponentConfig": "vitrify.engine.component",
    "ComponentModel": "vitrify.engine.component",
    "DenoisingCacheConfig": "vitrify.engine.cache_config",
    "DenoisingCacheState": "vitrify.runtime.caching.state",
    "Device": "vitrify.engine.device",
    "DiffusionPipeline": "vitrify.runtime.pipeline",
    "DiffusionPipelineOutput": "vitrify.runtime.output",
    "PipelineConfig": "vitrify.engine.component",
    "PixelGenerationContext": "vitrify.runtime.context",
    "PromptTruncatedWarning": "vitrify.runtime.request",
    "Result": "vitrify.runtime.output",
    "load": "vitrify.runtime.loader",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing the package costs next to nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
