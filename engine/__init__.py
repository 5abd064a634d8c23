"""What both halves share: the vocabulary, the artifact, and how engines are driven."""

from vitrify.engine.cache_config import DenoisingCacheConfig
from vitrify.engine.component import ComponentConfig, ComponentModel, PipelineConfig
from vitrify.engine.device import Device

__all__ = ["ComponentConfig", "ComponentModel", "DenoisingCacheConfig", "Device", "PipelineConfig"]
