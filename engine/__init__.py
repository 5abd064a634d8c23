"""What both halves share: the vocabulary, the artifact, and how engines are driven.

The contract's classes are reached by their names here, and loaded when first used: the program's help needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrify.engine.cache_config import DenoisingCacheConfig
    from vitrify.engine.component import ComponentConfig, ComponentModel, PipelineConfig
    from vitrify.engine.device import Device

__all__ = ["ComponentConfig", "ComponentModel", "DenoisingCacheConfig", "Device", "PipelineConfig"]

_HOMES = {
    "ComponentConfig": "vitrify.engine.component",
    "ComponentModel": "vitrify.engine.component",
    "DenoisingCacheConfig": "vitrify.engine.cache_config",
    "Device": "vitrify.engine.device",
    "PipelineConfig": "vitrify.engine.component",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
