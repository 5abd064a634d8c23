"""The passes behind the cut, modulated norms and gated residuals: what they take in, what they leave; results stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.by_hand import graph, ops
from tests.export.fused_graphs import fused
from vitrify.export.passes.ada_layer_norm import fuse_ada_layer_norms
from vitrify.export.passes.clean import sweep
from vitrify.export.passes.functions import attach_bodies
from vitrify.export.passes.gated_residual import fuse_gated_residuals

TABLE = "float[batch,16] modulation_rest"
SPLIT = "s_0, s_1, s_2, rest = Split<axis = 1>(modulation_rest, widths)"
ENTRIES = """int64[4] widths = {4, 4, 4, 4}, int64[3] row = {0, 1, 4},
    float[4] ones = {1, 1, 1, 1}, float[4] zeros = {0, 0, 0, 0},
    float[batch,1,4] e_0, float[batch,1,4] e_1, float[batch,1,4] e_2,
    float[batch,4] s_0, float[batch,4] s_1, float[batch,4] s_2"""
ROWS = "e_0 = Reshape(s_0, row) e_1 = Reshape(s_1, row) e_2 = Reshape(s_2, row)"


def segment(name: str, inputs: str, outputs: str, body: str, values: str = "") -> ir.Model:
    model = graph(f"({inputs}) => ({outputs}) <{ENTRIES}{values}> {{ {SPLIT} {ROWS} {body} }}")
    model.graph.name = name
    return model


def unread(condition: str = "(float[n] c) => (float[n] d) { d = Relu(c) }") -> ir.Model:
    return graph(condition)


def norms(model: ir.Model, condition: ir.Model | None = None) -> None:
    empty = {s: graph("(float[n] x) => (float[n] z) { z = Relu(x) }") for s in ("embed", "first", "finish")}
    fuse_ada_layer_norms({"condition": condition or unread(), "rest": model, **empty})


@pytest.mark.parametrize(
    ("norm", "op"),
    [
        ("LayerNormalization<axis = -1, epsilon = 1e-6>(x, ones, zeros)", "AdaLayerNorm"),
        ("LayerNormalization<axis = 2, epsilon = 1e-6>(x, ones)", "AdaLayerNorm"),
        ("RMSNormalization<axis = -1, epsilon = 1e-6>(x, ones)", "AdaRMSNorm"),
    ],
)
@pytest.mark.parametrize("add", ["Add(m, e_0)", "Add(e_0, m)"])
@pytest.mark.parametrize("mul", ["Mul(n, e_2)", "Mul(e_2, n)"])
def test_a_modulated_norm_reads_the_table_itself(norm: str, op: str, add: str, mul: str) -> None:
    model = segment(
        "rest", f"float[batch,t,4] x, {TABLE}", "float[batch,t,4] y", f"n = {norm} m = {mul} y = {add}",
        ", float[batch,t,4] n, float[batch,t,4] m",
    )  # fmt: skip
    assert fused(model, norms, {"x": (2, 3, 4), "modulation_rest": (2, 16)}) == [op]
    (node,) = model.graph
    assert [node.attributes[name].as_int() for name in ("factor_at", "shift_at")] == [8, 0]
    assert [v.name for v in model.graph.inputs] == ["x", "modulation_rest"]


@pytest.mark.parametrize(
    "body",
    [
        "n = LayerNormalization<axis = -1>(x, weights) m = Mul(n, e_2) y = Add(m, e_0)",
        "n = LayerNormalization<axis = 1>(x, table) m = Mul(n, e_2) y = Add(m, e_0)",
        "n = Neg(x) m = Mul(n, e_2) y = Add(m, e_0)",
        "n = LayerNormalization<axis = -1>(x, ones) m = Mul(n, x) y = Add(m, e_0)",
        "n = LayerNormalization<axis = -1>(x, ones) m = Mul(n, e_2) y = Add(m, x)",
        "n = LayerNormalization<axis = -1>(x, ones) m = Mul(n, e_2) k = Add(m, e_0) y = Add(m, k)",
    ],
)
def test_what_is_no_plain_modulated_norm_stays(body: str) -> None:
    values = ", float[batch,3,4] n, float[batch,3,4] m, float[batch,3,4] k, float[4] weights = {1, 2, 1, 1}"
    ones = ", ".join(["1"] * 12)
    model = segment(
        "rest", f"float[batch,3,4] x, {TABLE}", "float[batch,3,4] y", body, f"{values}, float[3,4] table = {{{ones}}}"
    )
    assert not {"AdaLayerNorm", "AdaRMSNorm"} & set(fused(model, norms, {"x": (2, 3, 4), "modulation_rest": (2, 16)}))


def test_a_norm_made_before_the_loop_is_done_again_where_it_costs_nothing() -> None:
    condition = graph("""(float[batch,t,4] c, float[m,16] modulation)
        => (float[batch,t,4] x, float[batch,t,4] n, float[m,16] modulation_rest)
        <float[4] ones = {1, 1, 1, 1}> {
        x = Relu(c)
        n = LayerNormalization<axis = -1, epsilon = 1e-6>(x, ones)
        modulation_rest = Relu(modulation)
    }""")  # fmt: skip
    model = segment(
        "rest", f"float[batch,t,4] x, float[batch,t,4] n, {TABLE}", "float[batch,t,4] y, float[batch,t,4] z",
        "m = Mul(n, e_2) y = Add(m, e_0) z = Neg(x)", ", float[batch,t,4] m",
    )  # fmt: skip
    norms(model, condition)
    sweep(model)
    assert ops(model) == ["AdaLayerNorm", "Neg"]
    assert [v.name for v in model.graph.inputs] == ["x", "modulation_rest"]
    assert [v.name for v in condition.graph.outputs] == ["x", "modulation_rest"], "nobody reads the norm any more"


@pytest.mark.parametrize("product", ["Mul(e_1, p)", "Mul(p, e_1)"])
@pytest.mark.parametrize("total", ["Add(x, g)", "Add(g, x)"])
@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ("p = Neg(x)", ["Neg", "GatedResidual"]),
        ("p = vitrify.Linear(x, w, b)", ["LinearGatedResidual"]),
        ("j = Concat<axis = 2>(x, x) p = vitrify.Linear(j, v, b)", ["Linear2GatedResidual"]),
        ("j = Concat<axis = -1>(x, x, x) p = vitrify.Linear(j, u, b)", ["Concat", "LinearGatedResidual"]),
    ],
)
def test_a_gate_reads_the_table_itself(product: str, total: str, branch: str, expected: list[str]) -> None:
    shapes = {"x": (2, 3, 4), "modulation_rest": (2, 16), "w": (4, 4), "v": (4, 8), "u": (4, 12), "b": (4,)}
    model = segment(
        "rest",
        f"float[batch,t,4] x, {TABLE}, float[4,4] w, float[4,8] v, float[4,12] u, float[4] b",
        "float[batch,t,4] y",
        f"{branch} g = {product} y = {total}",
        ", float[batch,t,4] p, float[batch,t,4] g, float[batch,t,8] j",
    )
    attach_bodies(model)
    assert fused(model, fuse_gated_residuals, shapes) == expected
    last = list(model.graph)[-1]
    assert last.attributes["gate_at"].as_int() == 4


def test_a_layer_that_others_read_stays_beside_its_gated_residual() -> None:
    model = segment(
        "rest", f"float[batch,t,4] x, {TABLE}, float[4,4] w, float[4] b", "float[batch,t,4] y, float[batch,t,4] z",
        "p = vitrify.Linear(x, w, b) g = Mul(e_1, p) y = Add(x, g) z = Neg(p)", ", float[batch,t,4] p, float[batch,t,4] g",
    )  # fmt: skip
    attach_bodies(model)
    shapes = {"x": (2, 3, 4), "modulation_rest": (2, 16), "w": (4, 4), "b": (4,)}
    assert sorted(fused(model, fuse_gated_residuals, shapes)) == ["GatedResidual", "Linear", "Neg"]


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        (f"float[batch,t,4] x, {TABLE}", "p = Neg(x) g = Mul(e_1, p) k = Add(x, g) y = Add(g, k)"),
        (f"float[batch,t,4] x, {TABLE}, float[batch,1,4] c", "g = Mul(c, x) y = Add(x, g)"),
    ],
)
def test_what_is_no_gated_residual_stays(inputs: str, body: str) -> None:
    model = segment("rest", inputs, "float[batch,t,4] y", body, ", float[batch,t,4] p, float[batch,t,4] g, float[batch,t,4] k")
    fuse_gated_residuals(model)
    assert not any(op.endswith("GatedResidual") for op in ops(model))
