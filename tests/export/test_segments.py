"""The cut: condition once, then embed → first → rest → finish for each step, is the unsplit graph called per step."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from tests.compare import assert_close
from tests.export.by_hand import Array, graph, ops, run, toy_recipe, write_parts
from tests.export.tiny_flux import Request, TinyFlux, request
from vitrify.engine.denoiser import CONDITION_ROWS, LOOP_SEGMENTS, SEGMENTS, Denoiser
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import CompileError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.session import Session
from vitrify.engine.specs import ComponentSpec
from vitrify.export.invariant_work import invariant_work
from vitrify.export.passes.clean import sweep
from vitrify.export.passes.hoist import find_invariants
from vitrify.export.passes.segments import cut
from vitrify.export.recipe import ComponentRecipe, GraphInput, SegmentRecipe

F32 = DType.FLOAT32

# ---- a graph by hand

RECIPE = toy_recipe(
    GraphInput("latents", F32, ("batch", "image_tokens", 4), "latents"),
    GraphInput("timestep", F32, ("batch",), "step"),
    GraphInput("pooled", F32, ("batch", 4)),
    GraphInput("text", F32, ("batch", "text_tokens", 4)),
    GraphInput("rotary", F32, ("image_tokens", 4)),
    segments=SegmentRecipe("h0", ("h1",), "hn", ("image_tokens", "text_tokens")),
)
HEAD = """(float[batch,image_tokens,4] latents, float[batch] timestep, float[batch,4] pooled,
    float[batch,text_tokens,4] text, float[image_tokens,4] rotary) => (float[batch,image_tokens,4] noise_pred)"""
CONSTANTS = """int64[1] one = {1}, int64[1] four = {4}, float[1,4] w = {0.5, -1.0, 2.0, 0.25}, float[1] two = {2.0}"""
VALUES = """float[batch,1] t, float[batch,4] tw, float[batch,4] temb, float[batch,4] act, float[batch,1,4] shift,
    float[batch,4,4] scales, float[batch,4,1] column, float[batch,image_tokens,4] h0, float[batch,text_tokens,4] context,
    float[batch,text_tokens,4] c1, float[batch,1,4] cm, float[batch,image_tokens,4] a1, float[batch,image_tokens,4] h1,
    float[batch,image_tokens,4] h2, int64[1] b, int64[3] size, float[batch,1,4] ones, float[batch,image_tokens,4] h3,
    float[batch,image_tokens,4] hn, float[batch,image_tokens,4] f"""
CONDITIONED = """
    t = Unsqueeze(timestep, one)
    tw = MatMul(t, w)
    temb = Add(tw, pooled)
    act = Sigmoid(temb)
    shift = Unsqueeze(act, one)
    column = Transpose<perm = [0, 2, 1]>(shift)
    scales = MatMul(column, shift)
    context = Relu(text)"""
LOOP = """
    h0 = Mul(latents, two)
    c1 = Add(context, shift)
    cm = ReduceMean(c1, one)
    a1 = Add(h0, cm)
    h1 = Mul(a1, shift)
    h2 = MatMul(h1, scales)
    b = Shape<start = 0, end = 1>(text)
    size = Concat<axis = 0>(b, one, four)
    ones = Expand(w, size)
    h3 = Add(h2, ones)
    hn = Mul(h3, rotary)
    f = Add(hn, shift)
    noise_pred = Tanh(f)"""


def whole() -> ir.Model:
    return graph(f"{HEAD} <{CONSTANTS}, {VALUES}> {{ {CONDITIONED} {LOOP} }}")


def parts_of(model: ir.Model, recipe: ComponentRecipe = RECIPE) -> dict[str, ir.Model]:
    made = cut(model, recipe, find_invariants(model, recipe), frozenset())
    for part in made.values():
        sweep(part)
    return made


def toy_inputs(batch: int, tokens: int, text: int, steps: int) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Request inputs, rows [steps, batch, …], and each step's latents."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    once = {"text": normal(batch, text, 4), "rotary": normal(tokens, 4)}
    return once, {"timestep": normal(steps, batch), "pooled": normal(steps, batch, 4)}, normal(steps, batch, tokens, 4)


@pytest.mark.parametrize(
    ("batch", "tokens", "text", "steps"), [(1, 5, 3, 1), (2, 5, 3, 4), (3, 1, 1, 2), (3, 6, 2, 22), (5, 2, 3, 64), (70, 2, 2, 2)]
)
def test_segments_by_hand_equal_the_unsplit_graph(
    backend: OrtCpuBackend, tmp_path: Path, batch: int, tokens: int, text: int, steps: int
) -> None:
    model = whole()
    spec = write_parts(RECIPE, parts_of(model), tmp_path)
    once, rows, latents = toy_inputs(batch, tokens, text, steps)
    asked = {"batch": batch, "image_tokens": tokens, "text_tokens": text, "steps": steps}
    with contextlib.closing(Denoiser(backend, tmp_path, spec)) as denoiser, denoiser.plan(**asked) as plan:
        plan.condition(once, rows)
        for step in reversed(range(steps)):
            plan.latents[...] = latents[step]
            got = plan.step(step).copy()
            fed = {**once, "latents": latents[step], **{name: value[step] for name, value in rows.items()}}
            assert_close(got, run(model, fed)["noise_pred"], 1e-6, f"step {step}")


def test_what_crosses_by_hand() -> None:
    parts = parts_of(whole())
    assert tuple(parts) == SEGMENTS
    shapes = {
        name: ({str(v.name): str(v.shape) for v in part.graph.inputs}, {str(v.name): str(v.shape) for v in part.graph.outputs})
        for name, part in parts.items()
    }
    hidden = "[batch,image_tokens,4]"
    assert shapes == {
        "condition": (
            {"timestep": "[condition_rows]", "pooled": "[condition_rows,4]", "text": "[batch,text_tokens,4]"},
            {
                "context": "[batch,text_tokens,4]",
                "modulation_first": "[condition_rows,64]",
                "modulation_rest": "[condition_rows,64]",
                "modulation_finish": "[condition_rows,64]",
            },
        ),
        "embed": ({"latents": hidden}, {"h0": hidden}),
        "first": ({"h0": hidden, "context": "[batch,text_tokens,4]", "modulation_first": "[batch,64]"}, {"h1": hidden}),
        "rest": ({"h1": hidden, "rotary": "[image_tokens,4]", "modulation_rest": "[batch,64]"}, {"hn": hidden}),
        "finish": ({"hn": hidden, "modulation_finish": "[batch,64]"}, {"noise_pred": hidden}),
    }
    assert "Sigmoid" in ops(parts["condition"])
    assert not {"Sigmoid", "Unsqueeze"} & {op for name in LOOP_SEGMENTS for op in ops(parts[name])}


def test_every_graph_is_valid_onnx_with_names_of_its_own() -> None:
    for part in parts_of(whole()).values():
        proto = ir.to_proto(part)
        onnx.checker.check_model(proto, full_check=True)
        made = [name for node in proto.graph.node for name in node.output]
        assert len(made) == len(set(made))


def test_a_border_that_is_not_there_is_named() -> None:
    recipe = replace(RECIPE, segments=SegmentRecipe("h0", ("h1",), "no.such", ("image_tokens", "text_tokens")))
    with pytest.raises(CompileError, match=r"no value is called any of \['no.such'\]"):
        parts_of(whole(), recipe)


@pytest.mark.parametrize(
    ("values", "nodes", "message"),
    [
        ("float[batch,n] odd", "odd = toy.Odd(timestep) hn = Mul(h1, odd)", r"'odd' .* cannot stand in a modulation table"),
        ("int64[batch,4] odd, float[batch,4] back", "odd = toy.Odd(timestep) hn = toy.Mix(h1, odd)", "cannot stand in a"),
        ("float[4] odd", "odd = toy.Odd(timestep) hn = Mul(h1, odd)", "cannot stand in a modulation table"),
    ],
)  # fmt: skip
def test_what_no_table_can_hold_is_refused_by_name(values: str, nodes: str, message: str) -> None:
    model = graph(f"""{HEAD} <float[1] two = {{2.0}}, {values}, float[batch,image_tokens,4] h0, float[batch,image_tokens,4] h1,
        float[batch,image_tokens,4] hn> {{ h0 = Mul(latents, two) h1 = Relu(h0) {nodes} noise_pred = Tanh(hn) }}""")
    with pytest.raises(CompileError, match=message):
        parts_of(model)


def test_a_size_that_no_input_of_the_segment_has_is_refused_by_name() -> None:
    model = graph(f"""{HEAD} <float[1] two = {{2.0}}, float[1] zero = {{0.0}}, int64[1] n, float[batch,image_tokens,4] h0,
        float[batch,image_tokens,4] h1, float[batch,image_tokens,4] hn> {{
        h0 = Mul(latents, two) h1 = Relu(h0) n = Shape<start = 1, end = 2>(text) e = Expand(zero, n) s = ReduceSum(e)
        hn = Add(h1, s) noise_pred = Tanh(hn) }}""")
    with pytest.raises(CompileError, match="rest: no input has the dimension 'text_tokens'"):
        parts_of(model)


FLOAT_VALUES = {
    "hidden": ("h0", "h1", "hn", "k1", "k2", "h01", "h02"),
    "tokens": ("c1",),
    "row": ("e1", "e2", "a1", "a2", "p2", "p3"),
    "vector": ("s1", "s2", "q", "z1", "c0", "cm", "p"),
}
SHAPES = {"hidden": "batch,image_tokens,4", "tokens": "batch,text_tokens,4", "row": "batch,4", "vector": "batch,1,4"}
KNOWN = ", ".join(f"float[{SHAPES[kind]}] {name}" for kind, names in FLOAT_VALUES.items() for name in names)
CORNERS = {
    "two values per step share a size": """
        b = Shape<start = 0, end = 1>(pooled) size = Concat<axis = 0>(b, four) e1 = Expand(t, size) e2 = Expand(t, size)
        a1 = Sigmoid(e1) a2 = Add(e2, pooled) s1 = Unsqueeze(a1, one) s2 = Unsqueeze(a2, one)
        h0 = Mul(latents, two) h1 = Mul(h0, s1) hn = Add(h1, s2) noise_pred = Tanh(hn)""",
    "a size is read in both forms": """
        b = Shape<start = 0, end = 1>(pooled) size = Concat<axis = 0>(b, four) size3 = Concat<axis = 0>(b, one, four)
        c0 = Expand(two, size3) c1 = Add(text, c0) cm = ReduceMean(c1, one)
        e1 = Expand(t, size) z1 = Expand(two, size3) q = Unsqueeze(e1, one) s1 = Add(q, z1) s2 = Mul(cm, two)
        h0 = Mul(latents, two) h1 = Mul(h0, s1) hn = Add(h1, s2) noise_pred = Tanh(hn)""",
    "whole shapes are read twice": """
        sh = Shape(pooled) e1 = Expand(t, sh) e2 = Expand(t, sh) a2 = Add(e2, e1) s1 = Unsqueeze(a2, one) s2 = Unsqueeze(e1, one)
        sl = Shape(latents) h0 = Mul(latents, two) k1 = Expand(two, sl) k2 = Expand(two, sl) h01 = Mul(h0, k1) h02 = Add(h01, k2)
        h1 = Mul(h02, s1) hn = Add(h1, s2) noise_pred = Tanh(hn)""",
    "the loop reads a step's input as it is": """
        h0 = Mul(latents, two) h1 = Relu(h0) p = ReduceMean(h1, one) p2 = Squeeze(p, one) p3 = Mul(p2, pooled)
        a1 = Mul(p3, timestep2) s2 = Unsqueeze(a1, one) hn = Add(h1, s2) noise_pred = Tanh(hn)""",
    "later segments read the latents again": """
        s1 = Unsqueeze(pooled, one) h0 = Mul(latents, two) h1 = Mul(h0, s1) hn = Add(h1, latents)
        noise_pred = Sub(hn, latents)""",
    "nothing depends on the step": """
        s1 = Unsqueeze(pooled, one) h0 = Mul(latents, two) h1 = Mul(h0, s1) hn = Relu(h1) noise_pred = Tanh(hn)""",
    "one value is in three tables": """
        a1 = Add(pooled, timestep2) s1 = Unsqueeze(a1, one) h0 = Mul(latents, two) h1 = Mul(h0, s1) hn = Mul(h1, s1)
        noise_pred = Mul(hn, s1)""",
}


@pytest.mark.parametrize("case", CORNERS)
def test_corners_by_hand(backend: OrtCpuBackend, tmp_path: Path, case: str) -> None:
    """Graphs that FLUX is not, and another family may be."""
    recipe = toy_recipe(
        GraphInput("latents", F32, ("batch", "image_tokens", 4), "latents"),
        GraphInput("timestep2", F32, ("batch", 1), "step"),
        GraphInput("pooled", F32, ("batch", 4)),
        GraphInput("text", F32, ("batch", "text_tokens", 4)),
        segments=RECIPE.segments,
    )
    nodes = CORNERS[case].replace("(t,", "(timestep2,")
    model = graph(f"""(float[batch,image_tokens,4] latents, float[batch,1] timestep2, float[batch,4] pooled,
        float[batch,text_tokens,4] text) => (float[batch,image_tokens,4] noise_pred)
        <int64[1] one = {{1}}, int64[1] four = {{4}}, float[1] two = {{2.0}}, int64[1] b, int64[2] size, int64[3] size3,
        int64[2] sh, int64[3] sl, {KNOWN}> {{ {nodes} }}""")
    parts = parts_of(model, recipe)
    for part in parts.values():
        onnx.checker.check_model(ir.to_proto(part), full_check=True)
    spec = write_parts(recipe, parts, tmp_path)
    batch, tokens, text, steps = 2, 3, 5, 40
    rng = np.random.default_rng(3)
    given: dict[str, Array] = {
        "pooled": rng.standard_normal((batch, 4)).astype(np.float32),
        "text": rng.standard_normal((batch, text, 4)).astype(np.float32),
        "timestep2": rng.standard_normal((steps, batch, 1)).astype(np.float32),
    }
    latents = rng.standard_normal((steps, batch, tokens, 4)).astype(np.float32)
    by_row = {t.name for t in spec.graphs["condition"].inputs if t.shape[0] == CONDITION_ROWS}
    read = {t.name for g in spec.graphs.values() for t in g.inputs}
    rows = {n: given[n] if n == "timestep2" else np.stack([given[n]] * steps) for n in by_row}
    once = {n: v for n, v in given.items() if n in read - by_row}
    asked = {"batch": batch, "image_tokens": tokens, "text_tokens": text, "steps": steps}
    with contextlib.closing(Denoiser(backend, tmp_path, spec)) as denoiser, denoiser.plan(**asked) as plan:
        plan.condition(once, rows)
        for step in (0, steps - 1, 17):
            plan.latents[...] = latents[step]
            fed = {**given, "timestep2": given["timestep2"][step], "latents": latents[step]}
            assert_close(plan.step(step), run(model, fed)["noise_pred"], 1e-6, f"step {step}")


# ---- FLUX


class Unsplit:
    """The transformer before the cut, one call per step."""

    def __init__(self, backend: OrtCpuBackend, made: TinyFlux) -> None:
        self.graph = made.unsplit.graphs["unsplit"]
        self.session: Session = backend.open(made.root / self.graph.path, self.graph)

    def __call__(self, asked: Request, step: int) -> Array:
        latents = asked.latents[step]
        fed: dict[str, Array] = {**asked.once, "latents": latents, **{n: v[step] for n, v in asked.by_step.items()}}
        text = asked.once["encoder_hidden_states"].shape[1]
        plan = self.session.plan({"batch": latents.shape[0], "image_tokens": latents.shape[1], "text_tokens": text})
        for tensor in self.graph.inputs:
            plan.bind(tensor.name, np.ascontiguousarray(fed[tensor.name]))
        plan.ready()
        plan.run()
        return plan.array("noise_pred").copy()


def dims(asked: Request) -> dict[str, int]:
    steps, batch, tokens, _ = asked.latents.shape
    return {"batch": batch, "image_tokens": tokens, "text_tokens": len(asked.text_ids), "steps": steps}


SIZES = [
    pytest.param({"batch": 1, "grid": (1, 1), "text": 1, "steps": 1}, id="the least"),
    pytest.param({"batch": 1, "grid": (3, 5), "text": 7, "steps": 3}, id="one row"),
    pytest.param({"batch": 2, "grid": (4, 4), "text": 5, "steps": 2}, id="two rows"),
    pytest.param({"batch": 3, "grid": (2, 7), "text": 33, "steps": 4}, id="more text than image"),
    pytest.param({"batch": 3, "grid": (2, 2), "text": 3, "steps": 23}, id="69 rows of condition"),
    pytest.param({"batch": 1, "grid": (1, 2), "text": 2, "steps": 130}, id="three chunks of condition"),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["guided", "plain"])
def test_segments_equal_the_unsplit_graph_and_eager(
    request: pytest.FixtureRequest, backend: OrtCpuBackend, which: str, size: dict[str, Any]
) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    asked = ask(made, size)
    unsplit = Unsplit(backend, made)
    with contextlib.closing(Denoiser(backend, made.root, made.spec)) as denoiser, denoiser.plan(**dims(asked)) as plan:
        plan.condition(asked.once, asked.by_step)
        for step in range(plan.steps):
            plan.latents[...] = asked.latents[step]
            got = plan.step(step).copy()
            assert_close(got, unsplit(asked, step), 1e-5, f"step {step} against the unsplit graph")
            assert_close(got, asked.eager(made.model, step), 1e-5, f"step {step} against diffusers")


def ask(made: TinyFlux, size: Mapping[str, Any]) -> Request:
    return request(made.model, **size)


@pytest.mark.parametrize(
    "name",
    ["latents", "encoder_hidden_states", "text_rotary", "image_rotary", "timestep", "pooled_projections", "guidance"],
)
def test_every_input_moves_the_reference(guided: TinyFlux, name: str) -> None:
    """Without this the equalities above could hold for nothing."""
    asked = ask(guided, {"batch": 2, "grid": (3, 4), "text": 5, "steps": 1})
    before = asked.eager(guided.model, 0)
    if name == "latents":
        asked.latents[...] += 0.5
    elif name in asked.by_step:
        asked.by_step[name] += 0.5
    elif name == "encoder_hidden_states":
        asked.once[name] += 0.5
    else:
        ids = asked.text_ids if name == "text_rotary" else asked.image_ids
        ids[:, 1] += torch.arange(len(ids), dtype=torch.float32)
    moved = asked.eager(guided.model, 0)
    assert np.linalg.norm(moved - before) / np.linalg.norm(before) > 1e-2


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_rows_of_a_table_lie_on_256_bytes(request: pytest.FixtureRequest, backend: OrtCpuBackend, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    widths = {t.name: t.shape for t in made.spec.graphs["condition"].outputs if t.shape[:1] == (CONDITION_ROWS,)}
    assert set(widths) == {"modulation_first", "modulation_rest", "modulation_finish"}
    asked = ask(made, {"batch": 3, "grid": (1, 2), "text": 2, "steps": 3})
    with contextlib.closing(Denoiser(backend, made.root, made.spec)) as denoiser, denoiser.plan(**dims(asked)) as plan:
        for segment in ("first", "rest", "finish"):
            for step in range(plan.steps):
                plan.select(step)
                rows = plan.array(segment, f"modulation_{segment}")
                assert [rows[i].ctypes.data % 256 for i in range(3)] == [0, 0, 0]


def test_tables_are_as_wide_as_their_blocks_need(guided: TinyFlux, plain: TinyFlux) -> None:
    """A double block has 6 + 6 vectors of the width (its text side's in block 0 too), a single one 3, the last norm 2."""

    def expected(made: TinyFlux) -> dict[str, int]:
        width = made.config["num_attention_heads"] * made.config["attention_head_dim"]
        doubles, singles = made.config["num_layers"], made.config["num_single_layers"]
        vectors = {"first": 12, "rest": 12 * (doubles - 1) + 3 * singles, "finish": 2}
        return {segment: -(-count * width // 64) * 64 for segment, count in vectors.items()}

    for made in (guided, plain):
        got = {t.name.removeprefix("modulation_"): t.shape[1] for t in made.spec.graphs["condition"].outputs if "mod" in t.name}
        assert got == expected(made)
    assert expected(plain)["finish"] == 128 > 2 * 48, "one of them is padded"
    assert expected(guided)["finish"] == 64 == 2 * 32, "one is not"


# ---- what the loop repeats


def loop_walk(made: TinyFlux) -> tuple[list[str], list[str]]:
    """Matrix products and activations of the loop: those that latents reach, and those that they do not; by the protos alone."""
    heavy = {"Gemm", "MatMul", "Attention", "Softmax", "Sigmoid", "Tanh", "Gelu", "Erf", "Relu", "Conv", "Einsum", "Swish", "Elu"}
    reached = {"latents"}
    found: list[str] = []
    missed: list[str] = []
    for segment in LOOP_SEGMENTS:
        proto = onnx.load(made.root / made.spec.graphs[segment].path, load_external_data=False)
        alive = {i.name for i in proto.graph.input} & reached
        for node in proto.graph.node:
            if alive & set(node.input):
                alive |= set(node.output)
            if node.op_type in heavy or (node.domain == "vitrify" and node.op_type.startswith(("Linear", "FusedAttention"))):
                weight = next((i for i in node.input if i.removesuffix(".float32").endswith(".weight")), node.output[0])
                (found if alive & set(node.output) else missed).append(f"{segment}/{weight.removesuffix('.float32')}")
        reached |= {o.name for o in proto.graph.output} & alive
    return found, missed


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_the_loop_computes_only_what_latents_reach_and_block_0s_text_side(request: pytest.FixtureRequest, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    found, missed = loop_walk(made)
    assert len(found) > 15
    block = "first/transformer_blocks.0.attn"
    assert sorted(missed) == sorted(f"{block}.add_{x}_proj.weight" for x in "qkv")
    assert sorted(made.spec.invariant_work) == sorted(missed)


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_each_parameter_is_read_on_one_side_of_the_loop(request: pytest.FixtureRequest, which: str) -> None:
    """Modulation, embedders and context embedder before it; all else in it; none twice, none missing."""
    made: TinyFlux = request.getfixturevalue(which)
    read: dict[str, list[str]] = {}
    for name, g in made.spec.graphs.items():
        held = onnx.load(made.root / g.path, load_external_data=False).graph.initializer
        read[name] = [tensor.name for tensor in held if tensor.name in made.locations]
    everything = [name for names in read.values() for name in names]
    assert len(everything) == len(set(everything))
    before = {n for n in made.locations if ".linear." in n or n.startswith(("time_text_embed.", "context_embedder."))}
    before = {n for n in before if "norm" in n or not n.startswith(("transformer_blocks", "single"))}
    assert set(read["condition"]) == before
    unread = set(made.locations) - set(everything)
    assert all("attn.to_add_out" in n or "ff_context" in n for n in unread), unread
    for name, g in made.spec.graphs.items():
        assert g.parameters == sum(int(np.prod(made.parameters[n])) for n in read[name])
        assert g.parameter_bytes == sum(made.locations[n].nbytes for n in read[name])


def closed_form(config: Mapping[str, int]) -> tuple[int, int]:
    """Elements (in the loop, before it), counted from the architecture: D wide, MLPs of 4 D, biases everywhere but in norms."""
    d = config["num_attention_heads"] * config["attention_head_dim"]
    head, doubles, singles = config["attention_head_dim"], config["num_layers"], config["num_single_layers"]

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    embedders = 2 if config["guidance_embeds"] else 1
    before = embedders * (linear(256, d) + linear(d, d)) + linear(config["pooled_projection_dim"], d) + linear(d, d)
    before += linear(config["joint_attention_dim"], d)
    before += doubles * 2 * linear(d, 6 * d) + singles * linear(d, 3 * d) + linear(d, 2 * d)
    side = 4 * linear(d, d) + 2 * head + linear(d, 4 * d) + linear(4 * d, d)
    single = 3 * linear(d, d) + 2 * head + linear(d, 4 * d) + linear(5 * d, d)
    inside = linear(config["in_channels"], d) + doubles * 2 * side + singles * single + linear(d, config["in_channels"])
    return inside, before


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_parameters_in_the_loop_and_before_it(request: pytest.FixtureRequest, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    counted = {name: g.parameters for name, g in made.spec.graphs.items()}
    assert (sum(counted[s] for s in LOOP_SEGMENTS), counted["condition"]) == closed_form(made.config)


def test_the_closed_form_gives_flux_dev() -> None:
    config = {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
              "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True}  # fmt: skip
    inside, before = closed_form(config)
    assert (round(inside / 1e9, 2), round(before / 1e9, 2)) == (8.61, 3.29)


@pytest.mark.parametrize("op", ["Sigmoid", "Swish", "GroupNormalization"])
def test_invariant_work_refuses_what_the_hoist_missed(op: str) -> None:
    parts = parts_of(whole())
    assert invariant_work(RECIPE, parts) == ()
    rest = parts["rest"].graph
    table = next(v for v in rest.inputs if v.name == "modulation_rest")
    rest.insert_before(rest[0], ir.Node("", op, [table], outputs=[ir.Value(name="again")]))
    with pytest.raises(CompileError, match="known before the loop, yet computed in it: rest/again"):
        invariant_work(RECIPE, parts)


def test_spec_describes_the_files(guided: TinyFlux, backend: OrtCpuBackend) -> None:
    spec: ComponentSpec = guided.spec
    assert list(spec.graphs) == list(SEGMENTS)
    assert spec.encoding is DType.BFLOAT16
    for g in spec.graphs.values():
        backend.open(guided.root / g.path, g).close()
