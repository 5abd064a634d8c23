"""Schedulers by the class name that a scheduler_config.json carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vitrify.engine.errors import SpecError
from vitrify.engine.scheduler_config import FLOW_MATCH_EULER
from vitrify.runtime.schedulers.flow_match_euler import FlowMatchEuler

__all__ = ["SCHEDULERS", "open_scheduler"]

_Maker = Callable[[Mapping[str, Any]], FlowMatchEuler]

SCHEDULERS: Mapping[str, _Maker] = MappingProxyType({FLOW_MATCH_EULER: FlowMatchEuler.from_config})


def open_scheduler(class_name: str, config: Mapping[str, Any]) -> FlowMatchEuler:
    """The scheduler of class `class_name` with its scheduler_config.json. Raises SpecError listing those there are."""
    if class_name not in SCHEDULERS:
        raise SpecError(f"scheduler {class_name!r} is not supported; supported: {', '.join(SCHEDULERS)}")
    return SCHEDULERS[class_name](config)
