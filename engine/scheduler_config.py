"""Which scheduler options vitrify acts on: export refuses the others by name, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vitrify.engine.errors import SpecError

__all__ = ["FLOW_MATCH_EULER", "FLOW_MATCH_EULER_DEFAULTS", "MAX_STEPS", "check_flow_match_euler"]

MAX_STEPS = 10_000
"""Of one request: a slip of the hand is refused before it asks for memory."""

FLOW_MATCH_EULER = "FlowMatchEulerDiscreteScheduler"

FLOW_MATCH_EULER_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "shift_terminal": None,
        "time_shift_type": "exponential",
    }
)
"""What diffusers takes for an option that a config leaves out."""

_UNSUPPORTED = ("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling")
_TIME_SHIFTS = ("exponential", "linear")


def check_flow_match_euler(config: Mapping[str, Any]) -> None:
    """Accept a scheduler_config.json only if every option in it is one that vitrify's Euler scheduler obeys.

    Keys that start with an underscore are the writer's notes, of which `_class_name` alone is read.
    Raises SpecError naming the option, its value and what is supported.
    """
    class_name = config.get("_class_name", FLOW_MATCH_EULER)
    if class_name != FLOW_MATCH_EULER:
        raise SpecError(f"scheduler {class_name!r} is not supported; supported: {FLOW_MATCH_EULER}")
    for option, value in config.items():
        if option.startswith("_") or option in FLOW_MATCH_EULER_DEFAULTS:
            continue
        if option not in _UNSUPPORTED:
            raise SpecError(
                f"scheduler option {option}={value!r} is unknown; remove it from scheduler_config.json if it should do nothing; "
                f"known: {', '.join((*FLOW_MATCH_EULER_DEFAULTS, *_UNSUPPORTED))}"
            )
        if value not in (False, None):
            raise SpecError(f"scheduler option {option}={value!r} is not supported; set it to false in scheduler_config.json")
    _check_values({**FLOW_MATCH_EULER_DEFAULTS, **config})


def _check_values(config: Mapping[str, Any]) -> None:
    dynamic = config["use_dynamic_shifting"]
    if not isinstance(dynamic, bool):
        raise SpecError(f"scheduler option use_dynamic_shifting={dynamic!r}: expected true or false")
    kind = config["time_shift_type"]
    if kind not in _TIME_SHIFTS:
        raise SpecError(f"scheduler option time_shift_type={kind!r}: expected one of {', '.join(_TIME_SHIFTS)}")
    numbers = ["num_train_timesteps", "shift"]
    if dynamic:
        numbers += ["base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"]
    for option in numbers:
        if not _is_number(config[option]):
            raise SpecError(f"scheduler option {option}={config[option]!r}: expected a finite number")
    for option in ("num_train_timesteps", "shift"):
        if config[option] <= 0:
            raise SpecError(f"scheduler option {option}={config[option]!r}: expected a number above 0")
    if dynamic and config["base_image_seq_len"] == config["max_image_seq_len"]:
        raise SpecError(
            f"scheduler options base_image_seq_len and max_image_seq_len are both {config['base_image_seq_len']!r}: "
            "the shift is a line through two different lengths"
        )
    terminal = config["shift_terminal"]
    if terminal is not None and not (_is_number(terminal) and 0 <= terminal < 1):
        raise SpecError(f"scheduler option shift_terminal={terminal!r}: expected null or a number from 0 to below 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
