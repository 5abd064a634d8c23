"""The passes that put our ops into graphs, each on a few nodes: what they take, what they leave and why; results stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from tests.export.by_hand import Array, assert_unchanged, graph, names, ops
from vitrify.engine.fusion import GraphFusion
from vitrify.export.fusion import graph_fusion
from vitrify.export.passes.ada_layer_norm import fuse_ada_layer_norms
from vitrify.export.passes.attention import fuse_attention
from vitrify.export.passes.clean import sweep
from vitrify.export.passes.conv import fuse_convs
from vitrify.export.passes.functions import attach_bodies
from vitrify.export.passes.gated_residual import fuse_gated_residuals
from vitrify.export.passes.linear import fuse_linears
from vitrify.export.passes.rejoined import rejoin
from vitrify.export.passes.spelt_out import name_what_is_spelt_out

Dims = tuple[int, ...]


def normal(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fused(model: ir.Model, fuse: Callable[[ir.Model], object], shapes: Mapping[str, Dims]) -> list[str]:
    """The ops after the pass, which must not change what the graph computes: our ops run as their bodies."""

    def rewrite(model: ir.Model) -> None:
        fuse(model)
        sweep(model)
        attach_bodies(model)

    outputs = [(v.name, str(v.shape)) for v in model.graph.outputs]
    feeds = {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    assert_unchanged(model, rewrite, feeds)
    assert [(v.name, str(v.shape)) for v in model.graph.outputs] == outputs
    return ops(model)


def reasons(model: ir.Model) -> dict[str, str]:
    """Op → why it stayed."""
    return {row.op: row.reason for row in graph_fusion(model).left}


# ---- linear

LINEAR = """(float[{x}] x, float[5,3] w, float[5] b) => (float[{y}] y) <float[3,5] wt, float[{y}] product> {{
    wt = Transpose<perm = [1, 0]>(w)
    product = MatMul(x, wt)
    y = Add({add})
}}"""
PARAMETERS = frozenset({"w", "b", "v"})


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


# ---- what is spelt out

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


# ---- convolutions

IMAGES = "float[b,4,h,w] {0}"
CONV = "Conv<pads = [1, 1, 1, 1]>({0}, w, b)"
NORM = "GroupNormalization<num_groups = 2, epsilon = 0.01>(x, s, b)"
DOUBLED = 'Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, none, twice)'
CONV_SHAPES: dict[str, Dims] = {"x": (2, 4, 5, 6), "w": (4, 4, 3, 3), "s": (4,), "b": (4,)}


def convs(model: ir.Model) -> None:
    fuse_convs(model, PARAMETERS)


def images(body: str, outputs: str = "y", more: str = "", values: str = "n g a p q d e", kernel: int = 3) -> ir.Model:
    """x: [b, 4, h, w], a kernel of `kernel`, and what a norm needs."""
    known = ", ".join(IMAGES.format(name) for name in values.split() if name not in outputs.split())
    given = ", ".join(IMAGES.format(name) for name in outputs.split())
    return graph(f"""({IMAGES.format("x")}, float[4,4,{kernel},{kernel}] w, float[4] s, float[4] b{more}) => ({given})
        <float[1] one = {{1}}, {known}> {{ {body} }}""")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"y = {CONV.format('x')}", ["Conv2d"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(n, g) y = {CONV.format('a')}", ["GroupNormSiluConv2d"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(g, n) p = {CONV.format('a')} y = Add(p, x)", ["GroupNormSiluConv2dResidual"]),
        (f"p = {CONV.format('x')} y = Add(x, p)", ["Conv2dResidual"]),
        # of two convolutions the one behind the norm takes the other in, on whichever side
        (f"n = {NORM} g = Sigmoid(n) a = Mul(g, n) p = {CONV.format('a')} q = {CONV.format('x')} y = Add(p, q)",
         ["Conv2d", "GroupNormSiluConv2dResidual"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(g, n) p = {CONV.format('a')} q = {CONV.format('x')} y = Add(q, p)",
         ["Conv2d", "GroupNormSiluConv2dResidual"]),
        # what another reads is not taken in
        (f"n = {NORM} g = Sigmoid(n) a = Mul(n, g) p = {CONV.format('a')} y = Add(p, a)",
         ["GroupNormalization", "Sigmoid", "Mul", "Conv2dResidual"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(n, g) p = {CONV.format('a')} y = Add(p, n)",
         ["GroupNormalization", "Sigmoid", "Mul", "Conv2dResidual"]),
        (f"p = {CONV.format('x')} q = Add(x, p) y = Sub(q, p)", ["Conv2d", "Add", "Sub"]),
        # no SiLU: another gate, another activation
        (f"n = {NORM} g = Sigmoid(x) a = Mul(n, g) y = {CONV.format('a')}", ["GroupNormalization", "Sigmoid", "Mul", "Conv2d"]),
        (f"n = {NORM} g = Tanh(n) a = Mul(n, g) y = {CONV.format('a')}", ["GroupNormalization", "Tanh", "Mul", "Conv2d"]),
        (f"n = {NORM.replace('num_groups', 'stash_type = 10, num_groups')} g = Sigmoid(n) a = Mul(n, g) y = {CONV.format('a')}",
         ["GroupNormalization", "Sigmoid", "Mul", "Conv2d"]),
        # no residual of y's sizes
        (f"p = {CONV.format('x')} y = Add(p, one)", ["Conv2d", "Add"]),
    ],
)  # fmt: skip
def test_what_a_convolution_takes_in(body: str, expected: list[str]) -> None:
    assert fused(images(body), convs, CONV_SHAPES) == expected


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("attributes", ["", "strides = [1, 1], group = 1, ", 'auto_pad = "NOTSET", dilations = [1, 1], '])
def test_a_convolution_may_say_what_goes_without_saying(attributes: str, kernel: int) -> None:
    pads = f"pads = [{', '.join(4 * [str(kernel // 2)])}]"
    model = images(f"y = Conv<{attributes}{pads}>(x, w, b)", kernel=kernel)
    assert fused(model, convs, {**CONV_SHAPES, "w": (4, 4, kernel, kernel)}) == ["Conv2d"]


def doubled(resize: str = DOUBLED, after: str = f"y = {CONV.format('d')}", more: str = "") -> ir.Model:
    return graph(f"""(float[b,4,h,w] x, float[4,4,3,3] w, float[4] b) => (float[b,4,h2,w2] y{more})
        <float[4] twice = {{1, 1, 2, 2}}, float[4] wide = {{1, 1, 2, 3}}, float[b,4,h2,w2] d, float[b,4,h2,w2] p> {{
        d = {resize.replace("none", "")} {after} }}""")


def test_a_doubled_image_is_taken_in() -> None:
    shapes = {name: shape for name, shape in CONV_SHAPES.items() if name != "s"}
    assert fused(doubled(), convs, shapes) == ["UpsampleConv2d"]
    # Its sum is another op: there is none with a residual.
    after = f"p = {CONV.format('d')} y = Add(p, p)"
    assert fused(doubled(after=after), convs, shapes) == ["UpsampleConv2d", "Add"]


@pytest.mark.parametrize(
    "resize",
    [
        DOUBLED.replace("twice", "wide"),
        DOUBLED.replace('"nearest"', '"linear"'),
        DOUBLED.replace('"floor"', '"ceil"'),
        DOUBLED.replace('"asymmetric"', '"half_pixel"'),
        DOUBLED.replace("Resize<", "Resize<axes = [0, 1, 3, 2], "),
    ],
)
def test_another_resize_stays(resize: str) -> None:
    shapes = {name: shape for name, shape in CONV_SHAPES.items() if name != "s"}
    assert fused(doubled(resize), convs, shapes) == ["Resize", "Conv2d"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("Conv(x, w, b)", "pads [1, 1, 1, 1], this one [0, 0, 0, 0]"),
        ("Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)", "strides [1, 1], this one [2, 2]"),
        ("Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, w, b)", "dilations [1, 1], this one [2, 2]"),
        ('Conv<auto_pad = "SAME_UPPER">(x, w, b)', "pads [1, 1, 1, 1]"),
        ("Conv<pads = [1, 1, 1, 1]>(x, w)", "weight or bias is no parameter"),
        ("Conv<pads = [1, 1, 1, 1]>(x, w, s)", "weight or bias is no parameter"),
    ],
)
def test_another_convolution_stays_and_says_why(call: str, reason: str) -> None:
    model = images(f"y = {call}")
    convs(model)
    assert ops(model) == ["Conv"]
    assert reason in reasons(model)["Conv"]


def test_a_kernel_of_another_size_stays_and_says_why() -> None:
    model = images("y = Conv<pads = [2, 2, 2, 2]>(x, w, b)", kernel=5)
    convs(model)
    assert "square kernels of 1 and 3, this one is 5 x 5" in reasons(model)["Conv"]


# ---- attention

VIEWS = "int64[4] split = {0, 0, 2, 4}, int64[3] flat = {0, 0, 8}, float[b,t,2,4] q4, float[b,s,2,4] k4, float[b,s,2,4] v4"
AROUND = "float[b,2,t,4] qt, float[b,2,s,4] kt, float[b,2,s,4] vt, float[b,2,t,4] a, float[b,t,2,4] at"
QKV = {"q": (2, 5, 8), "k": (2, 3, 8), "v": (2, 3, 8)}


def attention(call: str, more: str = "", outputs: str = "float[b,t,8] y", values: str = "") -> ir.Model:
    """One part, two heads of four; `call` makes `a` of qt, kt, vt. more: further inputs."""
    return graph(f"""(float[b,t,8] q, float[b,s,8] k, float[b,s,8] v{more}) => ({outputs}) <{VIEWS}, {AROUND}{values}> {{
        q4 = Reshape(q, split)
        k4 = Reshape(k, split)
        v4 = Reshape(v, split)
        qt = Transpose<perm = [0, 2, 1, 3]>(q4)
        kt = Transpose<perm = [0, 2, 1, 3]>(k4)
        vt = Transpose<perm = [0, 2, 1, 3]>(v4)
        {call}
        at = Transpose<perm = [0, 2, 1, 3]>(a)
        y = Reshape(at, flat)
    }}""")


@pytest.mark.parametrize(
    ("call", "scale", "causal"),
    [
        ("a = Attention(qt, kt, vt)", 0.5, 0),
        ("a = Attention<scale = 0.3>(qt, kt, vt)", 0.3, 0),
        ("a = Attention<is_causal = 1>(qt, kt, vt)", 0.5, 1),
    ],
)
def test_an_attention_with_its_views_becomes_one_op(call: str, scale: float, causal: int) -> None:
    model = attention(call)
    assert fused(model, fuse_attention, {**QKV, "k": (2, 5, 8), "v": (2, 5, 8)}) == ["FusedAttention"]
    (node,) = model.graph
    assert node.attributes["num_heads"].as_int() == 2
    assert node.attributes["scale"].as_float() == pytest.approx(scale)
    assert node.attributes["causal"].as_int() == causal


def test_a_bias_for_the_whole_batch_is_taken_in() -> None:
    model = attention("a = Attention<scale = 1.0>(qt, kt, vt, bias)", ", float[1,2,t,s] bias")
    assert fused(model, fuse_attention, {**QKV, "bias": (1, 2, 5, 3)}) == ["FusedAttentionBias"]


def test_a_constant_triangle_is_causal_and_a_constant_of_ones_no_mask() -> None:
    square = {"q": (2, 3, 8), "k": (2, 3, 8), "v": (2, 3, 8)}
    for mask, causal in (("1,0,0,1,1,0,1,1,1", 1), ("1,1,1,1,1,1,1,1,1", 0)):
        model = attention("a = Attention(qt, kt, vt, mask)", values=f", bool[3,3] mask = {{{mask}}}")
        for value in model.graph.all_nodes():
            for v in (*value.inputs, *value.outputs):
                if v is not None and v.shape is not None:
                    v.shape = ir.Shape([3 if str(d) in ("t", "s") else d for d in v.shape])
        assert fused(model, fuse_attention, square) == ["FusedAttention"]
        assert next(iter(model.graph)).attributes["causal"].as_int() == causal


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (attention("a = Attention(qt, kt, vt, mask)", ", float[b,2,t,s] mask"), "neither causal nor a bias"),
        (attention("a = Attention(qt, kt, vt, mask)", values=", bool[3,3] mask = {1,0,1,1,1,0,1,1,1}"), "mask is not causal"),
        (attention("a = Attention<softcap = 2.0>(qt, kt, vt)"), "caps its scores"),
        (attention("a = Attention(qt, kt, vt)", outputs="float[b,t,8] y, float[b,2,t,4] a"), "result is not viewed back"),
        (attention("n = Neg(qt) a = Attention(n, kt, vt)"), "queries are no view"),
    ],
)  # fmt: skip
def test_an_attention_of_another_kind_stays_and_says_why(model: ir.Model, reason: str) -> None:
    before = ops(model)
    fuse_attention(model)
    assert ops(model) == before
    assert reason in reasons(model)["Attention"]


def joint_attention(parts: int, **changes: str) -> ir.Model:
    """FLUX's form: RMS norm per head and part, parts joined along the tokens, queries and keys turned, the result parted."""
    said = {"epsilon": "1e-6", "interleaved": "1", "norm_k": "norm_k", "sine": "sine", **changes}
    tokens = "t + i" if parts == 2 else "t"
    lines: list[str] = []
    values = ["int64[4] split = {0, 0, 2, 4}", "int64[3] flat = {0, 0, 8}", "int64[1] zero = {0}", "int64[2] ones = {1, 1}"]
    inputs = [f"float[{tokens},2] cosine", f"float[{tokens},2] sine"]
    lines += ["rows = Shape<start = 0, end = 1>(q_0)", "spread = Concat<axis = 0>(rows, ones)"]
    for table in ("cosine", "sine"):
        lines.append(f"{table}_all = Expand({table}, spread)")
        values.append(f"float[b,{tokens},2] {table}_all")
    for name in "qkv":
        for part in range(parts):
            length = "ti"[part]
            inputs.append(f"float[b,{length},8] {name}_{part}")
            lines.append(f"{name}_{part}_4 = Reshape({name}_{part}, split)")
            values.append(f"float[b,{length},2,4] {name}_{part}_4")
            if name != "v":
                inputs.append(f"float[4] norm_{name}_{part}")
                epsilon = said["epsilon"] if name == "k" else "1e-6"
                lines.append(
                    f"{name}_{part}_n = RMSNormalization<axis = -1, epsilon = {epsilon}>({name}_{part}_4, norm_{name}_{part})"
                )
                values.append(f"float[b,{length},2,4] {name}_{part}_n")
        ready = [f"{name}_{part}_{'4' if name == 'v' else 'n'}" for part in range(parts)]
        if parts == 2:
            lines.append(f"{name} = Concat<axis = 1>({', '.join(ready)})")
            values.append(f"float[b,{tokens},2,4] {name}")
        joined = name if parts == 2 else ready[0]
        if name != "v":
            sine = "cosine_all" if name == "k" and said["sine"] == "swapped" else "sine_all"
            lines += [
                f"{name}_flat = Reshape({joined}, flat)",
                f"{name}_turned = RotaryEmbedding<interleaved = {said['interleaved']}, num_heads = 2>"
                f"({name}_flat, cosine_all, {sine})",
                f"{name}_back = Reshape({name}_turned, split)",
            ]
            values += [
                f"float[b,{tokens},8] {name}_flat",
                f"float[b,{tokens},8] {name}_turned",
                f"float[b,{tokens},2,4] {name}_back",
            ]
            joined = f"{name}_back"
        lines.append(f"{name}_t = Transpose<perm = [0, 2, 1, 3]>({joined})")
        values.append(f"float[b,2,{tokens},4] {name}_t")
    lines += ["a = Attention(q_t, k_t, v_t)", "a_t = Transpose<perm = [0, 2, 1, 3]>(a)"]
    values += [f"float[b,2,{tokens},4] a", f"float[b,{tokens},2,4] a_t"]
    if parts == 1:
        lines.append("y = Reshape(a_t, flat)")
        outputs = "float[b,t,8] y"
    else:
        lines += [
            "whole = Reshape(a_t, flat)",
            "t = Shape<start = 1, end = 2>(q_0)",
            "i = Shape<start = 1, end = 2>(q_1)",
            "lengths = Concat<axis = 0>(t, i)",
            "y_0, y_1 = Split<axis = 1>(whole, lengths)",
        ]
        values.append(f"float[b,{tokens},8] whole")
        outputs = "float[b,t,8] y_0, float[b,i,8] y_1"
    body = "\n".join(line for line in lines if line)
    # The text form has no sums of dimensions.
    return graph(f"({', '.join(inputs)}) => ({outputs}) <{', '.join(values)}> {{ {body} }}".replace("t + i", "sum"))


def joint_shapes(parts: int) -> dict[str, Dims]:
    lengths = (3, 4)[:parts]
    shapes: dict[str, Dims] = {"cosine": (sum(lengths), 2), "sine": (sum(lengths), 2)}
    for name in "qkv":
        for part, length in enumerate(lengths):
            shapes[f"{name}_{part}"] = (2, length, 8)
            if name != "v":
                shapes[f"norm_{name}_{part}"] = (4,)
    return shapes


@pytest.mark.parametrize(("parts", "op"), [(1, "FusedAttentionNormRotary"), (2, "FusedAttention2NormRotary")])
def test_norm_rotary_and_parts_are_taken_in(parts: int, op: str) -> None:
    model = joint_attention(parts)
    assert fused(model, fuse_attention, joint_shapes(parts)) == [op]
    (node,) = model.graph
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epsilon": "1e-3"}, "differ in their rotary tables or in epsilon"),
        ({"sine": "swapped"}, "differ in their rotary tables or in epsilon"),
        ({"interleaved": "0"}, "not of interleaved pairs"),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_unlike_queries_and_keys_stay(parts: int, changes: dict[str, str], reason: str) -> None:
    model = joint_attention(parts, **changes)
    fuse_attention(model)
    assert "Attention" in ops(model)
    assert reason in reasons(model)["Attention"]


# ---- what reads the modulation table

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


# ---- rejoined

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


# ---- bodies, and what is told


def test_each_op_brings_its_body_once_and_unneeded_ones_go() -> None:
    model = graph("""(float[b,t,3] x, float[3,3] w, float[3] b) => (float[b,t,3] y) <float[b,t,3] h> {
        h = vitrify.Linear(x, w, b) y = vitrify.Linear(h, w, b) }""")
    attach_bodies(model)
    assert [key[:2] for key in model.functions] == [("vitrify", "Linear")]
    for node in list(model.graph):
        node.op_type, node.domain = "Sum", ""
    attach_bodies(model)
    assert not model.functions
    assert "vitrify" not in model.graph.opset_imports


def test_what_was_fused_and_left_is_counted_and_survives_json() -> None:
    model = graph("""(float[b,t,3] x, float[3,3] w, float[3] b) => (float[b,t,3] y) <float[b,t,3] h, float[b,t,3] g> {
        h = vitrify.Linear(x, w, b) g = Gelu(h) k = Sigmoid(g) y = Sigmoid(k) }""")
    fuse_linears(model, frozenset())
    found = graph_fusion(model)
    assert found.ops == {"Linear": 1}
    assert [(row.op, row.values) for row in found.left] == [("Gelu", ("g",)), ("Sigmoid", ("k", "y"))]
    assert "error function" in found.left[0].reason
    assert GraphFusion.from_json(json.loads(json.dumps(found.to_json())), "here") == found
