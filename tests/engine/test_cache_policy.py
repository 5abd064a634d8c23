"""Cache options: what contradicts itself or cannot act is a named error."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from vitrify.engine.cache_config import DenoisingCacheConfig
from vitrify.engine.cache_policy import Always, Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import SpecError

BAD_OPTIONS: list[tuple[Any, dict[str, Any], str]] = [
    (FirstBlock, {"threshold": -0.1}, "FirstBlock.threshold=-0.1: expected a number of at least 0"),
    (FirstBlock, {"threshold": float("nan")}, "FirstBlock.threshold=nan"),
    (FirstBlock, {"threshold": True}, "FirstBlock.threshold=True"),
    (Interval, {"interval": 0}, "Interval.interval=0: expected a whole number of at least 1"),
    (Interval, {"warmup_steps": 1.5}, "Interval.warmup_steps=1.5"),
    (Mask, {}, "give steps, preset, share or repeats"),
    (Mask, {"steps": (True,), "preset": "fast"}, "give steps, preset, share or repeats"),
    (Mask, {"share": 0.4, "preset": "fast"}, "give steps, preset, share or repeats"),
    (Mask, {"share": 0}, "Mask.share=0: expected a number above 0 and below 1"),
    (Mask, {"share": 1.0}, "Mask.share=1.0: expected a number above 0 and below 1"),
    (Mask, {"share": 1.5}, "Mask.share=1.5: expected a number of at least 0 and at most 1"),
    (Mask, {"repeats": 0}, "Mask.repeats=0: expected a whole number of at least 1"),
    (Mask, {"share": "half"}, "Mask.share='half': expected a number"),
    (Mask, {"steps": ()}, "Mask.steps=()"),
    (Mask, {"steps": np.array([True, False])}, "Mask.steps=array([ True, False]): expected one True or False a step"),
    (Mask, {"steps": "101"}, "Mask.steps='101'"),
    (Mask, {"steps": (0, 1)}, "the first step is False"),
    (Mask, {"preset": "quick"}, "Mask.preset='quick' is unknown; known: slow, medium, fast, ultra"),
    (Magnitude, {"ratios": ()}, "expected a measured table"),
    (Magnitude, {"ratios": (1.0, "a")}, "Magnitude.ratios[1]='a'"),
    (
        Magnitude,
        {"ratios": (1.0,), "retention_ratio": 2},
        "Magnitude.retention_ratio=2: expected a number of at least 0 and at most 1",
    ),
    (Magnitude, {"ratios": (1.0,), "max_consecutive_skips": -1}, "Magnitude.max_consecutive_skips=-1"),
    (Hold, {"of": "noise"}, "Hold.of='noise': expected residual or output"),
    (Taylor, {"order": 3}, "Taylor.order=3: expected 1 or 2"),
    (Taylor, {"of": "noise"}, "Taylor.of='noise'"),
    (Taylor, {"along": "time"}, "Taylor.along='time': expected step or sigma"),
    (Taylor, {"of": "output", "corrected": 1}, "Taylor.corrected=1: expected True or False"),
    (Taylor, {"corrected": True}, "Taylor.corrected: only a predicted output can be corrected, got of=None; use of='output'"),
    (Taylor, {"of": "residual", "corrected": True}, "got of='residual'"),
    (Guards, {"warmup_steps": 0}, "Guards.warmup_steps=0: expected a whole number of at least 1"),
    (Guards, {"max_skips": "many"}, "Guards.max_skips='many'"),
    (Cache, {"decision": "first-block"}, "Cache.decision='first-block': expected Always or FirstBlock"),
    (Cache, {"decision": Interval(), "predictor": "taylor"}, "Cache.predictor='taylor': expected Hold or Taylor"),
    (Cache, {"decision": Interval(), "guards": 3}, "Cache.guards=3: expected Guards"),
    (Cache, {"predictor": Hold()}, "predictor and guards cannot act"),
    (Cache, {"guards": Guards(max_skips=2)}, "predictor and guards cannot act"),
    (Cache, {"decision": Interval(), "compat": "min"}, "compat='min' is unknown"),
    (Cache, {"decision": FirstBlock(), "guards": Guards(max_skips=1), "compat": "max"}, "set no more than that"),
    (Cache, {"decision": FirstBlock(), "predictor": Hold("residual"), "compat": "max"}, "set no more than that"),
    (Cache, {"decision": Interval(), "predictor": Taylor(1), "compat": "max"}, "set no more than that"),
    (Cache, {"decision": Interval(), "predictor": Taylor(1, "output", corrected=True), "compat": "max"}, "set no more than that"),
    (Cache, {"decision": Mask(preset="fast"), "compat": "max"}, "set no more than that"),
]

BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"decision": "always"}, "decision='always': expected one of vitrify's decision classes"),
    ({"first_block_caching": True, "predictor": 1}, "predictor=1: expected one of"),
    ({"taylorseer": True, "guards": 1}, "guards=1: expected one of"),
    ({"taylorseer": True, "decision": Interval()}, "decision and taylorseer both say when to compute"),
    ({"taylorseer": True, "predictor": Hold()}, "predictor and taylorseer both say what stands in"),
    ({"predictor": Hold()}, "cannot act: no cache is on"),
    ({"guards": Guards()}, "cannot act: no cache is on"),
    ({"compat": "max"}, "cannot act: no cache is on"),
    ({"compat": "old", "taylorseer": True}, "compat='old' is unknown; known: max"),
    ({"compat": "max", "taylorseer": True, "first_block_caching": True}, "refuses first_block_caching and taylorseer together"),
    ({"compat": "max", "taylorseer": True, "guards": Guards(last_steps=1)}, "that release has no guards"),
    ({"compat": "max", "decision": Interval()}, "that release has no decision"),
    ({"first_block_caching": True, "taylorseer": True, "guards": Guards(warmup_steps=2)}, "both say how to begin"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD_OPTIONS)
def test_bad_options(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        kind(**options)


@pytest.mark.parametrize(("options", "message"), BAD_CONFIGS)
def test_bad_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        DenoisingCacheConfig(**options)


def filled(**options: Any) -> Cache | None:
    return DenoisingCacheConfig(**options).filled(cache_interval=5, warmup_steps=9, max_order=1).policy()


def test_what_configurations_mean() -> None:
    assert filled() is None
    assert filled(decision=Always()) is None
    assert not DenoisingCacheConfig(decision=Always()).enabled
    assert filled(taylorseer=True) == Cache(Interval(5, 9), Taylor(1, "output"))
    assert filled(taylorseer=True, taylorseer_max_order=2, taylorseer_cache_interval=3) == Cache(
        Interval(3, 9), Taylor(2, "output")
    )
    assert filled(first_block_caching=True) == Cache(FirstBlock())
    both = Cache(FirstBlock(), Taylor(1, "output"), Guards(warmup_steps=4))
    assert filled(first_block_caching=True, taylorseer=True, taylorseer_warmup_steps=4) == both
    guarded = Cache(FirstBlock(), Hold("output"), Guards(last_steps=1))
    assert filled(first_block_caching=True, predictor=Hold("output"), guards=Guards(last_steps=1)) == guarded
    assert filled(decision=Mask(preset="slow"), predictor=Taylor(2)) == Cache(Mask(preset="slow"), Taylor(2))
    assert filled(taylorseer=True, compat="max") == Cache(Interval(5, 9), Taylor(1, "output"), compat="max")
    assert filled(first_block_caching=True, compat="max") == Cache(FirstBlock(), compat="max")


def test_a_policy_says_what_it_is() -> None:
    cache = Cache(Magnitude((1.0, 0.9)), Taylor(2, "output", "sigma"), Guards(warmup_steps=2, max_skips=7))
    assert str(cache) == (
        "Magnitude(ratios=2 values, threshold=0.06, max_consecutive_skips=3, retention_ratio=0.2) + "
        "Taylor(order=2, of=output, along=sigma) + Guards(warmup_steps=2, max_skips=7)"
    )
    corrected = Cache(Interval(3, 3), Taylor(1, "output", corrected=True))
    assert str(corrected) == "Interval(interval=3, warmup_steps=3) + Taylor(order=1, of=output, along=step, corrected=True)"
    assert str(Cache(FirstBlock(), compat="max")) == "FirstBlock() + Hold() (compat max)"


def test_masks() -> None:
    assert Mask((1, 0, 1)).resolved(3) == (True, False, True)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"Mask\.steps has 3 entries, the request has 4 steps"):
        Mask((True, False, True)).resolved(4)
    shown = {name: "".join("-C"[s] for s in Mask(preset=name).resolved(28)) for name in ("slow", "medium", "fast", "ultra")}
    assert shown == {
        "slow": "CCCCCCCCC-C-C-C-C-C-C-C-C-CC",
        "medium": "CCCCCCC--C--C--C--C--C--C--C",
        "fast": "CCCCCC---C---C---C---C---C-C",
        "ultra": "CCCCC-----C-----C-----C----C",
    }
    for count in range(1, 60):
        computed = [sum(Mask(preset=name).resolved(count)) for name in ("slow", "medium", "fast", "ultra")]
        assert computed == sorted(computed, reverse=True)
        assert all(Mask(preset=name).resolved(count)[0] and Mask(preset=name).resolved(count)[-1] for name in ("slow", "ultra"))
