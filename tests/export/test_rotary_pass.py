"""The rotary pass: what it takes for the embedding, what it must leave alone, and that results stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.export.by_hand import assert_unchanged, graph, ops
from vitrify.export.passes.clean import sweep
from vitrify.export.passes.rotary import rotary_as_op

_HEADS, _DIM = 3, 8

_GRAPH = """(float[batch,tokens,3,8] x, float[1,tokens,1,8] c, float[1,tokens,1,8] s) => (float[batch,tokens,3,8] y)
<int64[5] split = {{0, 0, 3, 4, 2}}, int64[4] whole = {{0, 0, 3, 8}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
 int64[1] two = {{2}}, int64[1] last = {{-1}},
 float[batch,tokens,3,4,2] pairs, float[batch,tokens,3,4,1] a1, float[batch,tokens,3,4,1] b1,
 float[batch,tokens,3,4] a, float[batch,tokens,3,4] b, float[batch,tokens,3,8] turned, float[batch,tokens,3,8] straight,
 float[batch,tokens,3,8] crossed> {{
    pairs = Reshape(x, split)
    a1 = Slice(pairs, zero, one, last)
    a = Squeeze(a1, last)
    b1 = Slice(pairs, one, two, last)
    b = Squeeze(b1, last)
    n = Neg({negated})
    n1 = Unsqueeze(n, last)
    o1 = Unsqueeze({kept}, last)
    stack = Concat<axis = -1>(n1, o1)
    turned = Reshape(stack, whole)
    straight = Mul(x, c)
    crossed = Mul({other}, s)
    sum = Add(straight, crossed)
    y = Identity(sum)
}}"""


def _model(negated: str = "b", kept: str = "a", other: str = "turned") -> ir.Model:
    return graph(_GRAPH.format(negated=negated, kept=kept, other=other))


def _feeds(batch: int, tokens: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(batch * tokens)
    half = rng.standard_normal((2, 1, tokens, 1, _DIM // 2)).astype(np.float32)
    cosine, sine = np.repeat(half, 2, axis=-1)
    return {"x": rng.standard_normal((batch, tokens, _HEADS, _DIM)).astype(np.float32), "c": cosine, "s": sine}


def test_the_embedding_becomes_one_op() -> None:
    model = _model()

    def rewrite(m: ir.Model) -> None:
        rotary_as_op(m)
        sweep(m)

    assert_unchanged(model, rewrite, _feeds(1, 5), _feeds(3, 7))
    assert ops(model).count("RotaryEmbedding") == 1
    assert "Neg" not in ops(model)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"negated": "a", "kept": "b"}, id="turned the other way"),
        pytest.param({"kept": "b"}, id="one channel twice"),
        pytest.param({"other": "x"}, id="not turned"),
    ],
)
def test_what_only_looks_like_it_stays(changed: dict[str, str]) -> None:
    model = _model(**changed)
    before = ops(model)
    assert_unchanged(model, rotary_as_op, _feeds(2, 5))
    assert ops(model) == before


def test_a_table_with_two_angles_in_a_pair_is_the_modules_to_avoid() -> None:
    """Rule 1 reads every second column: tables that differ within a pair would come out otherwise, which parity would show."""
    model = _model()
    feeds = _feeds(2, 5)
    feeds["c"][..., 1] += 1.0
    with pytest.raises(AssertionError):
        assert_unchanged(model, rotary_as_op, feeds)
