"""What is known before the loop: each rule of the hoist, on graphs by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.by_hand import graph, toy_recipe
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import CompileError
from vitrify.export.passes.hoist import find_invariants
from vitrify.export.recipe import ComponentRecipe, GraphInput, SegmentRecipe

F32 = DType.FLOAT32
RECIPE = toy_recipe(
    GraphInput("latents", F32, ("batch", "image_tokens", 4), "latents"),
    GraphInput("timestep", F32, ("batch", 1), "step"),
    GraphInput("pooled", F32, ("batch", 4)),
    GraphInput("text", F32, ("batch", "text_tokens", 4)),
    segments=SegmentRecipe("h0", ("h1",), "hn", ("image_tokens", "text_tokens")),
)
INPUTS = "float[batch,image_tokens,4] latents, float[batch,1] timestep, float[batch,4] pooled, float[batch,text_tokens,4] text"


def hoisted(model: ir.Model, recipe: ComponentRecipe = RECIPE) -> tuple[set[str], set[str]]:
    """The names of the values hoisted, and of those with a row per step."""
    found = find_invariants(model, recipe)
    return {str(v.name) for node in found.hoisted for v in node.outputs}, {str(v.name) for v in found.rowed}


def body(values: str, nodes: str) -> ir.Model:
    return graph(f"({INPUTS}, float[4,4] w) => (float[batch,image_tokens,4] noise_pred) <{values}> {{ {nodes} }}")


@pytest.mark.parametrize(
    ("values", "nodes", "known", "rowed"),
    [
        pytest.param(
            "float[batch,text_tokens,4] a, float[batch,text_tokens,4] b",
            "a = Relu(text) b = MatMul(a, w) noise_pred = Relu(latents)",
            {"a", "b"}, {"timestep"},
            id="request alone, tokens and all",
        ),
        pytest.param(
            "float[batch,4] a, float[batch,4] b",
            "a = MatMul(timestep, w) b = Sigmoid(a) noise_pred = Relu(latents)",
            {"a", "b"}, {"timestep", "a", "b"},
            id="step without tokens",
        ),
        pytest.param(
            "float[batch,4] a, float[batch,4] b",
            "a = Relu(pooled) b = Add(a, timestep) noise_pred = Relu(latents)",
            {"a", "b"}, {"timestep", "pooled", "a", "b"},
            id="what meets the step has its rows",
        ),
        pytest.param(
            "float[batch,4] a, float[batch,4] b",
            "a = Relu(pooled) b = Sigmoid(timestep) noise_pred = Relu(latents)",
            {"a", "b"}, {"timestep", "b"},
            id="what does not meet the step has none",
        ),
        pytest.param(
            "float[batch,1,1] t, float[batch,text_tokens,4] a, float[batch,1,4] m, int64[1] axis = {1}",
            "t = Unsqueeze(timestep, axis) a = Mul(text, t) m = ReduceMean(a, axis) noise_pred = Add(latents, m)",
            {"t"}, {"timestep", "t"},
            id="step by tokens stays, and what reads it",
        ),
        pytest.param(
            "float[batch,image_tokens,4] a, float[batch,4] m, int64[1] axis = {1}",
            "a = Relu(latents) m = ReduceMean<keepdims = 0>(a, axis) b = Add(m, timestep) noise_pred = Add(latents, b)",
            set(), {"timestep"},
            id="latents stay, without tokens too",
        ),
        pytest.param(
            "float[4,4] c = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4,4] wt, float[4,4] d",
            "wt = Transpose(w) d = MatMul(c, wt) noise_pred = MatMul(latents, d)",
            set(), {"timestep"},
            id="constants and parameters stay with their readers",
        ),
        pytest.param(
            "int64[1] n, float[n] z, float[batch,text_tokens,4] a",
            "n = Shape<start = 1, end = 2>(text) z = ConstantOfShape(n) m = Shape(latents) a = Expand(text, m)"
            " noise_pred = Relu(latents)",
            {"a"}, {"timestep"},
            id="a size is no dependence",
        ),
        pytest.param(
            "float[batch,4] a",
            "a = Sigmoid(timestep) b = toy.Odd(a) c = toy.Odd(text) noise_pred = Relu(latents)",
            {"a", "c"}, {"timestep", "a"},
            id="an unknown shape is large",
        ),
        pytest.param(
            "float[batch,text_tokens + image_tokens,4] a, float[batch,2*text_tokens,4] b, float[batch,text_tokenss] c",
            "a = toy.Odd(timestep) b = toy.Odd(timestep) c = toy.Odd(timestep) noise_pred = Relu(latents)",
            {"c"}, {"timestep", "c"},
            id="tokens within a sum or product are tokens, a longer name is not",
        ),
    ],
)  # fmt: skip
def test_what_is_known_before_the_loop(values: str, nodes: str, known: set[str], rowed: set[str]) -> None:
    # The text form knows no sums: such dims are named by a word and renamed.
    words = {"text_tokens + image_tokens": "sum", "2*text_tokens": "twice"}
    for text, word in words.items():
        values = values.replace(text, word)
    model = body(values, nodes)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                back = {word: text for text, word in words.items()}
                value.shape = ir.Shape([d if isinstance(d, int) else back.get(str(d.value), d.value) for d in value.shape])
    assert hoisted(model) == (known, rowed)


def test_a_value_needed_once_and_per_step_is_refused_by_name() -> None:
    model = body(
        "float[batch,4] p, float[batch,1,4] q, float[batch,text_tokens,4] both, float[batch,4] s, int64[1] axis = {1}",
        "p = Relu(pooled) s = Add(p, timestep) q = Unsqueeze(p, axis) both = Add(text, q) noise_pred = Relu(latents)",
    )
    with pytest.raises(CompileError, match=r"'(text|both)' is known once per request but meets values that change with the step"):
        find_invariants(model, RECIPE)


def test_hoisted_nodes_keep_the_graphs_order() -> None:
    model = body(
        "float[batch,4] a, float[batch,4] b, float[batch,4] c",
        "a = Relu(pooled) noise_pred = Relu(latents) b = Sigmoid(a) c = Add(b, timestep)",
    )
    found = find_invariants(model, RECIPE).hoisted
    order = [str(node.outputs[0].name) for node in model.graph if node in found]
    assert order == ["a", "b", "c"]
