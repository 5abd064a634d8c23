"""Attention: what the pass takes in, what it leaves and why; results stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.by_hand import graph, ops
from tests.export.fused_graphs import Dims, fused, reasons
from vitrify.export.passes.attention import fuse_attention

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
