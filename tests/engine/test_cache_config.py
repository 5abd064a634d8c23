"""Every field of the cache configuration is checked, with a message of its own, before defaults fill the rest."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vitrify.engine.cache_config import DenoisingCacheConfig
from vitrify.engine.cache_policy import Interval
from vitrify.engine.errors import SpecError

DEFAULTS = {"cache_interval": 5, "warmup_steps": 9, "max_order": 1}


def test_documented_fields() -> None:
    assert dataclasses.asdict(DenoisingCacheConfig()) == {
        "first_block_caching": False,
        "taylorseer": False,
        "taylorseer_cache_interval": None,
        "taylorseer_warmup_steps": None,
        "taylorseer_max_order": None,
        "decision": None,
        "predictor": None,
        "guards": None,
        "compat": None,
    }
    assert not DenoisingCacheConfig().enabled
    assert DenoisingCacheConfig(first_block_caching=True).enabled
    assert DenoisingCacheConfig(taylorseer=True).enabled


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("first_block_caching", 1),
        ("taylorseer", None),
        ("taylorseer_cache_interval", 0),
        ("taylorseer_cache_interval", 2.0),
        ("taylorseer_cache_interval", True),
        ("taylorseer_warmup_steps", 0),
        ("taylorseer_warmup_steps", "3"),
        ("taylorseer_max_order", 0),
        ("taylorseer_max_order", 3),
    ],
)
def test_bad_values_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{field}={value!r}: expected"):
        DenoisingCacheConfig(**{field: value})


def test_unset_numbers_are_filled() -> None:
    off = DenoisingCacheConfig().filled(**DEFAULTS)
    assert dataclasses.astuple(off)[:5] == (False, False, 5, 9, 1)
    assert off.filled(cache_interval=2, warmup_steps=3, max_order=2) == off
    explicit = DenoisingCacheConfig(
        taylorseer=True, taylorseer_cache_interval=2, taylorseer_warmup_steps=3, taylorseer_max_order=2
    )
    assert explicit.filled(**DEFAULTS) == explicit


@pytest.mark.parametrize(
    "options", [{}, {"first_block_caching": True}, {"decision": Interval(3, 3)}, {"first_block_caching": True, "compat": "max"}]
)
def test_numbers_of_a_cache_that_is_off_cannot_act(options: dict[str, Any]) -> None:
    for name, value in (("cache_interval", 7), ("warmup_steps", 4), ("max_order", 2)):
        with pytest.raises(SpecError, match=f"taylorseer_{name}={value} cannot act: taylorseer is off; turn it on, or leave"):
            DenoisingCacheConfig(**{**options, f"taylorseer_{name}": value})


def test_the_first_block_decides_when_both_are_on() -> None:
    both = DenoisingCacheConfig(first_block_caching=True, taylorseer=True)
    assert both.filled(**DEFAULTS).taylorseer_cache_interval is None
    assert both.filled(**DEFAULTS).taylorseer_warmup_steps == 9
    with pytest.raises(SpecError, match="taylorseer_cache_interval=3: with first_block_caching and taylorseer both on"):
        dataclasses.replace(both, taylorseer_cache_interval=3)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DenoisingCacheConfig().taylorseer = True  # type: ignore[misc]
