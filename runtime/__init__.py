"""Request in, image out: runs artifacts, without torch.

`load` opens an artifact; what it gives draws when called. `DiffusionPipeline` is the contract for pipelines of your own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrify.engine.cache_config import DenoisingCacheConfig
    from vitrify.engine.cache_policy import Always, Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
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
    "Always",
    "Cache",
    "CompiledPipeline",
    "ComponentConfig",
    "ComponentModel",
    "DenoisingCacheConfig",
    "DenoisingCacheState",
    "Device",
    "DiffusionPipeline",
    "DiffusionPipelineOutput",
    "FirstBlock",
    "Guards",
    "Hold",
    "Interval",
    "Magnitude",
    "Mask",
    "PipelineConfig",
    "PixelGenerationContext",
    "PromptTruncatedWarning",
    "Result",
    "Taylor",
    "load",
]

_HOMES = {
    "Always": "vitrify.engine.cache_policy",
    "Cache": "vitrify.engine.cache_policy",
    "CompiledPipeline": "vitrify.runtime.compiled",
    "ComponentConfig": "vitrify.engine.component",
    "ComponentModel": "vitrify.engine.component",
    "DenoisingCacheConfig": "vitrify.engine.cache_config",
    "DenoisingCacheState": "vitrify.runtime.caching.state",
    "Device": "vitrify.engine.device",
    "DiffusionPipeline": "vitrify.runtime.pipeline",
    "DiffusionPipelineOutput": "vitrify.runtime.output",
    "FirstBlock": "vitrify.engine.cache_policy",
    "Guards": "vitrify.engine.cache_policy",
    "Hold": "vitrify.engine.cache_policy",
    "Interval": "vitrify.engine.cache_policy",
    "Magnitude": "vitrify.engine.cache_policy",
    "Mask": "vitrify.engine.cache_policy",
    "PipelineConfig": "vitrify.engine.component",
    "PixelGenerationContext": "vitrify.runtime.context",
    "PromptTruncatedWarning": "vitrify.runtime.request",
    "Result": "vitrify.runtime.output",
    "Taylor": "vitrify.engine.cache_policy",
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
