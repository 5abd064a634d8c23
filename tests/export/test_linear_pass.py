"""Linear layers: what the pass takes in, what it leaves and why; results stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.by_hand import graph
from tests.export.fused_graphs import PARAMETERS, Dims, fused
from vitrify.export.passes.linear import fuse_linears

LINEAR = """(float[{x}] x, float[5,3] w, float[5] b) => (float[{y}] y) <float[3,5] wt, float[{y}] product> {{
    wt = Transpose<perm = [1, 0]>(w)
    product = MatMul(x, wt)
    y = Add({add})
}}"""


def linears(model: ir.Model) -> None:
    fuse_linears(model, PARAMETERS)


@pytest.mark.parametrize("add", ["product, b", "b, product"])
@pytest.mark.parametrize(
    ("x", "y", "shape", "expected"),
    [
        ("rows,3", "rows,5", (4, 3), ["Gemm"]),
        ("batch,tokens,3", "batch,tokens,5", (2, 4, 3), ["Linear"]),
        ("batch,7,3", "batch,7,5", (2, 7, 3), ["Linear"]),
        ("?,?,3", "?,?,5", (1, 1, 3), ["Linear"]),
        ("b,c,d,3", "b,c,d,5", (2, 3, 2, 3), ["Transpose", "MatMul", "Add"]),
    ],
)
def test_a_linear_layer_becomes_one_op_over_the_weight_as_stored(
    add: str, x: str, y: str, shape: Dims, expected: list[str]
) -> None:
    model = graph(LINEAR.format(x=x, y=y, add=add))
    assert fused(model, linears, {"x": shape, "w": (5, 3), "b": (5,)}) == expected
    if len(expected) == 1:
        (node,) = model.graph
        assert [str(v.name) for v in node.inputs if v is not None] == ["x", "w", "b"]


@pytest.mark.parametrize(
    ("text", "expected", "shapes"),
    [
        # no bias, and what is none: no parameter, another length, or the product has another reader
        ("(float[b,t,3] x, float[5,3] w) => (float[b,t,5] y) { t = Transpose(w) y = MatMul(x, t) }",
         ["LinearNoBias"], {"x": (2, 4, 3), "w": (5, 3)}),
        ("""(float[b,t,3] x, float[5,3] w, float[5] c) => (float[b,t,5] y) <float[b,t,5] p> {
            t = Transpose(w) p = MatMul(x, t) y = Add(p, c) }""",
         ["LinearNoBias", "Add"], {"x": (2, 4, 3), "w": (5, 3), "c": (5,)}),
        ("""(float[b,t,3] x, float[1,3] w, float[4] b) => (float[b,t,4] y) <float[b,t,1] p> {
            t = Transpose(w) p = MatMul(x, t) y = Add(p, b) }""",
         ["LinearNoBias", "Add"], {"x": (2, 4, 3), "w": (1, 3), "b": (4,)}),
        ("""(float[n,3] x, float[5,3] w, float[5] b) => (float[n,5] y, float[n,5] z) <float[n,5] p> {
            t = Transpose(w) p = MatMul(x, t) y = Add(p, b) z = Neg(p) }""",
         ["Gemm", "Add", "Neg"], {"x": (2, 3), "w": (5, 3), "b": (5,)}),
        ("""(float[n,3] x, float[5,3] w, float[5] b) => (float[n,5] p, float[n,5] y) {
            t = Transpose(w) p = MatMul(x, t) y = Add(p, b) }""",
         ["Gemm", "Add"], {"x": (2, 3), "w": (5, 3), "b": (5,)}),
        # nothing is rewritten: the weight is no parameter, not transposed, on the left; x has one dimension
        ("(float[n,3] x, float[5,3] c) => (float[n,5] y) { t = Transpose(c) y = MatMul(x, t) }",
         ["Transpose", "MatMul"], {"x": (2, 3), "c": (5, 3)}),
        ("(float[n,5] x, float[5,3] w) => (float[n,3] y) { y = MatMul(x, w) }", ["MatMul"], {"x": (2, 5), "w": (5, 3)}),
        ("(float[3,n] x, float[3,5] w) => (float[5,n] y) { t = Transpose(w) y = MatMul(t, x) }",
         ["Transpose", "MatMul"], {"x": (3, 2), "w": (3, 5)}),
        ("(float[3] x, float[5,3] w) => (float[5] y) { t = Transpose(w) y = MatMul(x, t) }",
         ["Transpose", "MatMul"], {"x": (3,), "w": (5, 3)}),
        # GELU: its tanh form is taken in where it alone reads a layer with a bias
        ("""(float[b,t,3] x, float[5,3] w, float[5] b) => (float[b,t,5] y) <float[b,t,5] p, float[b,t,5] s> {
            t = Transpose(w) p = MatMul(x, t) s = Add(p, b) y = Gelu<approximate = "tanh">(s) }""",
         ["LinearGelu"], {"x": (2, 4, 3), "w": (5, 3), "b": (5,)}),
        ("""(float[b,t,3] x, float[5,3] w, float[5] b) => (float[b,t,5] y) <float[b,t,5] p, float[b,t,5] s> {
            t = Transpose(w) p = MatMul(x, t) s = Add(p, b) y = Gelu(s) }""",
         ["Linear", "Gelu"], {"x": (2, 4, 3), "w": (5, 3), "b": (5,)}),
        ("""(float[b,t,3] x, float[5,3] w, float[5] b) => (float[b,t,5] s, float[b,t,5] y) <float[b,t,5] p> {
            t = Transpose(w) p = MatMul(x, t) s = Add(p, b) y = Gelu<approximate = "tanh">(s) }""",
         ["Linear", "Gelu"], {"x": (2, 4, 3), "w": (5, 3), "b": (5,)}),
        ("""(float[b,t,3] x, float[5,3] w) => (float[b,t,5] y) <float[b,t,5] p> {
            t = Transpose(w) p = MatMul(x, t) y = Gelu<approximate = "tanh">(p) }""",
         ["LinearNoBias", "Gelu"], {"x": (2, 4, 3), "w": (5, 3)}),
    ],
)  # fmt: skip
def test_what_linear_takes_and_leaves(text: str, expected: list[str], shapes: dict[str, Dims]) -> None:
    assert fused(graph(text), linears, shapes) == expected
