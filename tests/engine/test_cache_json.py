"""Step caches as JSON: every option comes back, and nothing else is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vitrify.engine.cache_json import cache_from_json, cache_to_json
from vitrify.engine.cache_policy import Always, Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import SpecError

CACHES = [
    Cache(Always()),
    Cache(FirstBlock(), None, Guards(4, 1, 3, 20, 8)),
    Cache(FirstBlock(0.08), Taylor(1, "residual")),
    Cache(Interval(3, 4), Hold("output")),
    Cache(Mask((True, False, True)), Taylor(2, "output", "sigma")),
    Cache(Interval(3, 4), Taylor(1, "output", corrected=True)),
    Cache(Mask(preset="fast"), Hold()),
    Cache(Mask(share=0.4)),
    Cache(Mask(repeats=2)),
    Cache(Magnitude((1.0, 0.9, 1.25), 0.12, 4, 0.1)),
]


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_there_and_back(cache: Cache) -> None:
    data = json.loads(json.dumps(cache_to_json(cache)))
    assert cache_from_json(data, "it") == cache


def plain(**changes: Any) -> Any:
    return {**cache_to_json(Cache(Interval(3, 4), Taylor(1, "output"))), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "it: got a list, expected an object"),
        ({}, "it: missing ['decision', 'guards', 'predictor'], unknown []"),
        (plain(extra=1), "it: missing [], unknown ['extra']"),
        (plain(decision={"kind": "Interval", "interval": 3}), "it.decision: missing ['warmup_steps'], unknown []"),
        (plain(decision={"kind": "exec", "interval": 3}), "it.decision.kind: got 'exec', expected one of Always, FirstBlock"),
        (plain(decision={"kind": ["Interval"]}), "it.decision.kind: got \"['Interval']\", expected"),
        (plain(decision="Interval"), "it.decision.kind: got 'str', expected"),
        (plain(predictor={"kind": "Interval", "interval": 3, "warmup_steps": 1}), "it.predictor.kind: got 'Interval'"),
        (plain(decision={"kind": "Interval", "interval": 0, "warmup_steps": 1}), "it: Interval.interval=0: expected"),
        (
            plain(decision={"kind": "Mask", "steps": "111", "preset": None, "share": None, "repeats": None}),
            "it: Mask.steps='111': expected",
        ),
        (plain(decision={"kind": "Magnitude", "ratios": [1, "a"], "threshold": 1, "max_consecutive_skips": 1,
                         "retention_ratio": 0}), "it: Magnitude.ratios[1]='a': expected"),
        (plain(guards={"warmup_steps": 1}), "it.guards: missing ['last_steps', "),
    ],
)  # fmt: skip
def test_anything_else_is_named(data: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        cache_from_json(data, "it")
    assert str(caught.value).startswith(message)


def test_compat_is_not_kept() -> None:
    with pytest.raises(SpecError, match="compat is for comparison"):
        cache_to_json(Cache(FirstBlock(0.1), compat="max"))
