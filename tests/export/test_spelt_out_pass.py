"""Norms and activations that are spelt out get their names, and what is nearly one stays; results stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.by_hand import graph
from tests.export.fused_graphs import PARAMETERS, Dims, fused
from vitrify.export.passes.spelt_out import name_what_is_spelt_out

NORM_CONSTANTS = "float two = {2}, float three = {3}, float small = {0.001}, int64[1] last = {-1}, int64[1] middle = {1}"
GELU_CONSTANTS = "float half = {0.5}, float cubic = {0.044715}, float root = {0.7978845608}, float one = {1}, float three = {3}"
SPELT_NORM = """squares = Pow(x, two) mean = ReduceMean(squares, last) sum = Add(mean, small) root = Sqrt(sum)
    inverse = Reciprocal(root) even = Mul(x, inverse) y = Mul(w, even)"""
SPELT_GELU = """a = Mul(x, half) p = Pow(x, three) c = Mul(p, cubic) s = Add(x, c) m = Mul(s, root) t = Tanh(m) u = Add(t, one)
    y = Mul(a, u)"""


def spelt(body: str, constants: str, more: str = "") -> ir.Model:
    return graph(f"(float[b,t,6] x, float[6] w) => (float[b,t,6] y{more}) <{constants}, float[b,t,6] squares> {{ {body} }}")


def name_it(model: ir.Model) -> None:
    name_what_is_spelt_out(model, PARAMETERS)


SPELT_SHAPES: dict[str, Dims] = {"x": (2, 4, 6), "w": (6,)}


@pytest.mark.parametrize(
    "change", [("Mul(w, even)", "Mul(even, w)"), ("Mul(x, inverse)", "Mul(inverse, x)"), ("Add(mean, small)", "Add(small, mean)")]
)
def test_a_norm_that_is_spelt_out_gets_its_name(change: tuple[str, str]) -> None:
    model = spelt(SPELT_NORM.replace(*change), NORM_CONSTANTS)
    assert fused(model, name_it, SPELT_SHAPES) == ["RMSNormalization"]
    (node,) = model.graph
    assert node.attributes["epsilon"].as_float() == pytest.approx(0.001)


@pytest.mark.parametrize(
    "change",
    [
        ("Pow(x, two)", "Pow(x, three)"),
        ("Pow(x, two)", "Pow(w, two)"),
        ("ReduceMean(squares, last)", "ReduceMean(squares, middle)"),
        ("ReduceMean(squares, last)", "ReduceSum(squares, last)"),
        ("Mul(x, inverse)", "Mul(w, inverse)"),
        ("Mul(w, even)", "Mul(x, even)"),
        ("y = Mul(w, even)", "v = Mul(w, even) y = Add(v, even)"),
    ],
)
def test_what_is_nearly_a_norm_stays(change: tuple[str, str]) -> None:
    assert "RMSNormalization" not in fused(spelt(SPELT_NORM.replace(*change), NORM_CONSTANTS), name_it, SPELT_SHAPES)


@pytest.mark.parametrize("change", [("Add(x, c)", "Add(c, x)"), ("Mul(a, u)", "Mul(u, a)"), ("Mul(x, half)", "Mul(half, x)")])
def test_a_gelu_that_is_spelt_out_gets_its_name(change: tuple[str, str]) -> None:
    model = spelt(SPELT_GELU.replace(*change), GELU_CONSTANTS)
    assert fused(model, name_it, SPELT_SHAPES) == ["Gelu"]
    (node,) = model.graph
    assert node.attributes["approximate"].as_string() == "tanh"


@pytest.mark.parametrize(
    "change",
    [("Mul(x, half)", "Mul(x, cubic)"), ("Pow(x, three)", "Pow(x, one)"), ("Add(x, c)", "Add(p, c)"), ("Tanh(m)", "Sigmoid(m)")],
)
def test_what_is_nearly_a_gelu_stays(change: tuple[str, str]) -> None:
    assert "Gelu" not in fused(spelt(SPELT_GELU.replace(*change), GELU_CONSTANTS), name_it, SPELT_SHAPES)
