"""What was parted only to be joined again stays one; results stay."""

from __future__ import annotations

import pytest

from tests.export.by_hand import graph, names
from tests.export.fused_graphs import fused
from vitrify.export.passes.rejoined import rejoin

PARTED = """(float[b,t,4] x, float[b,n,4] like) => (float[b,t,4] y)
    <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] end = {{9223372036854775807}},
     float[b,t,4] whole> {{
    whole = Relu(x)
    size = Shape<start = 1, end = 2>(like)
    text = Slice(whole, zero, size, {axis}, one)
    image = Slice(whole, {start}, end, one, {step})
    joined = Concat<axis = 1>({parts})
    y = Neg(joined)
}}"""
WHOLE = {"axis": "one", "start": "size", "step": "one", "parts": "text, image"}
REJOINED = {"x": (2, 5, 4), "like": (2, 2, 4)}


def test_what_was_parted_only_to_be_joined_stays_one() -> None:
    model = graph(PARTED.format(**WHOLE))
    assert fused(model, lambda m: rejoin(m, frozenset({"text", "image"})), REJOINED) == ["Relu", "Neg"]
    assert names(model) == ["text+image", "y"], "both borders can still be found"


@pytest.mark.parametrize("change", [{"parts": "image, text"}, {"start": "one"}, {"step": "two"}, {"parts": "text, text"}])
def test_what_is_joined_otherwise_stays(change: dict[str, str]) -> None:
    model = graph(PARTED.format(**{**WHOLE, **change}))
    assert "Concat" in fused(model, lambda m: rejoin(m, frozenset()), REJOINED)
