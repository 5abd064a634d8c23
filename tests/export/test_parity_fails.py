"""Parity is worth something only if a wrong graph fails it: each way of being wrong, in both methods."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.export.by_hand import scale_result
from tests.export.tiny_flux import TinyFlux
from vitrify.engine.errors import ParityError
from vitrify.export import verify
from vitrify.export.passes import run_passes
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.trace import TracedGraph
from vitrify.export.verify import verify_component

Change = Callable[[onnx.GraphProto], None]
EVERYTHING = 1 << 40


def nodes(graph: onnx.GraphProto, op: str, *, reads: str = "", makes: str = "") -> list[onnx.NodeProto]:
    """The nodes of one kind that read or make a value whose name holds a word."""
    return [
        n for n in graph.node
        if n.op_type == op and any(reads in name for name in n.input) and any(makes in name for name in n.output)
    ]  # fmt: skip


def one(found: list[onnx.NodeProto]) -> onnx.NodeProto:
    assert len(found) == 1
    return found[0]


def exchange(names: object, left: int, right: int) -> None:
    names[left], names[right] = names[right], names[left]  # type: ignore[index]


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(a for a in node.attribute if a.name == name)


def rename_reads(graph: onnx.GraphProto, there: str, here: str) -> None:
    """Whoever reads one value reads the other instead."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in (there, here):
                node.input[place] = here if name == there else there


def scaled_weight(graph: onnx.GraphProto) -> None:
    """The activation that leaves one linear layer is 1.001 of what it should be."""
    scale_result(graph, one(nodes(graph, "LinearGelu", reads="single_transformer_blocks.0.proj_mlp.weight")), 1 + 1e-3)


def other_epsilon(graph: onnx.GraphProto) -> None:
    attention = one(nodes(graph, "FusedAttentionNormRotary", reads="single_transformer_blocks.1.attn.norm_q"))
    attribute(attention, "epsilon").f = 3e-3


def exact_gelu(graph: onnx.GraphProto) -> None:
    for node in nodes(graph, "LinearGelu"):
        node.op_type = "Linear"
        result, node.output[0] = node.output[0], f"{node.output[0]}.linear"
        graph.node.insert(list(graph.node).index(node) + 1, onnx.helper.make_node("Gelu", node.output, [result]))


def swapped_rotary(graph: onnx.GraphProto) -> None:
    """Cosines for sines."""
    attentions = [n for n in graph.node if n.op_type.endswith("NormRotary")]
    assert attentions
    for node in attentions:
        exchange(node.input, -2, -1)


def text_behind_image(graph: onnx.GraphProto) -> None:
    exchange(nodes(graph, "Concat", reads="transformer_blocks.0/hidden_states")[0].input, 0, 1)


def swapped_blocks(graph: onnx.GraphProto) -> None:
    """One block computes with another's weights."""
    rename_reads(graph, "single_transformer_blocks.0.proj_mlp.weight", "single_transformer_blocks.1.proj_mlp.weight")


def swapped_entries(graph: onnx.GraphProto) -> None:
    """One norm takes its shift for its factor."""
    norm = nodes(graph, "AdaLayerNorm")[0]
    factor, shift = attribute(norm, "factor_at"), attribute(norm, "shift_at")
    factor.i, shift.i = shift.i, factor.i


def other_block_modulation_read(graph: onnx.GraphProto) -> None:
    """Two blocks with each other's factor."""
    left, right = (attribute(norm, "factor_at") for norm in nodes(graph, "AdaLayerNorm"))
    left.i, right.i = right.i, left.i


def other_gate(graph: onnx.GraphProto) -> None:
    """Two blocks with each other's gate."""
    left, right = (attribute(layer, "gate_at") for layer in nodes(graph, "Linear2GatedResidual"))
    left.i, right.i = right.i, left.i


def other_block_modulation_written(graph: onnx.GraphProto) -> None:
    exchange(one(nodes(graph, "Concat", makes="modulation_rest")).input, 0, 3)


def shifted_offsets(graph: onnx.GraphProto) -> None:
    """Every entry of the table is read from another place."""
    for node in graph.node:
        for given in node.attribute:
            if given.name.endswith("_at"):
                given.i += 8


def other_timestep(graph: onnx.GraphProto) -> None:
    """Frequencies off by the last places of a float32, which a timestep of 1000 shows."""
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.shape[-1:] == (128,):
            tensor.CopyFrom(onnx.numpy_helper.from_array((values * np.float32(1 + 1e-5)).astype(np.float32), tensor.name))
            return
    raise AssertionError("no frequencies")


def silu_without_gate(graph: onnx.GraphProto) -> None:
    """The modulation's activation forgets its product."""
    sigmoid = one(nodes(graph, "Sigmoid", reads="time_text_embed"))
    mul = next(n for n in graph.node if sigmoid.output[0] in n.input)
    mul.input[:] = [sigmoid.output[0], sigmoid.output[0]]


CHANGES: list[tuple[str, Change]] = [
    ("rest", scaled_weight),
    ("rest", swapped_rotary),
    ("first", swapped_rotary),
    ("rest", text_behind_image),
    ("rest", swapped_blocks),
    ("first", swapped_entries),
    ("rest", swapped_entries),
    ("finish", swapped_entries),
    ("rest", other_block_modulation_read),
    ("rest", other_gate),
    ("condition", other_block_modulation_written),
    ("condition", other_timestep),
    ("condition", silu_without_gate),
]

# What a component's bound (1e-4) lets pass and a block's (1e-5) does not: an activation that is almost the right one.
SMALL_CHANGES: list[tuple[str, Change]] = [("rest", other_epsilon), ("rest", exact_gelu)]
CASES = [(limit, *case) for limit in (EVERYTHING, 0) for case in CHANGES] + [(0, *case) for case in SMALL_CHANGES]


def altered(made: TinyFlux, root: Path, segment: str, change: Change) -> Path:
    """A copy whose one graph was changed after it was written."""
    shutil.copytree(made.root, root, dirs_exist_ok=True)
    path = root / made.spec.graphs[segment].path
    proto = onnx.load(path, load_external_data=False)
    before = proto.SerializeToString()
    change(proto.graph)
    assert proto.SerializeToString() != before
    path.write_bytes(proto.SerializeToString())
    return root


def blocks_only(recipe: ComponentRecipe) -> ComponentRecipe:
    return replace(recipe, narrow=None)


@pytest.mark.parametrize("limit", [EVERYTHING, 0], ids=["whole", "blocks"])
def test_the_graphs_as_written_pass(guided: TinyFlux, limit: int) -> None:
    found = verify_component(blocks_only(guided.recipe), guided.spec, guided.root, guided.locations, whole_limit_bytes=limit)
    assert found.checked
    assert found.method == ("blocks" if limit == 0 else "whole")
    assert found.measurements.keys() == found.tolerances.keys()
    expected = {f"block {b.path}" for b in guided.recipe.borders} | {"block output"} if limit == 0 else {"noise_pred"}
    assert set(found.measurements) == expected
    assert all(m <= 1e-6 for m in found.measurements.values())
    assert set(found.tolerances.values()) == ({1e-5} if limit == 0 else {1e-4})


@pytest.mark.parametrize(
    ("limit", "segment", "change"), CASES, ids=[f"{'whole' if m else 'blocks'}-{s}-{c.__name__}" for m, s, c in CASES]
)
def test_a_changed_graph_fails(guided: TinyFlux, tmp_path: Path, segment: str, change: Change, limit: int) -> None:
    root = altered(guided, tmp_path, segment, change)
    with pytest.raises(ParityError, match=r"transformer: .* differs from eager PyTorch: relative error"):
        verify_component(blocks_only(guided.recipe), guided.spec, root, guided.locations, whole_limit_bytes=limit)


def test_the_block_at_fault_is_named(guided: TinyFlux, tmp_path: Path) -> None:
    root = altered(guided, tmp_path, "rest", scaled_weight)
    with pytest.raises(ParityError, match=r"^transformer: block single_transformer_blocks\.0 differs"):
        verify_component(blocks_only(guided.recipe), guided.spec, root, guided.locations, whole_limit_bytes=0)


@pytest.mark.parametrize(
    ("limit", "message"), [(EVERYTHING, "noise_pred differs"), (0, "'modulation_finish': columns 8")], ids=["whole", "blocks"]
)
def test_offsets_in_a_padded_table(plain: TinyFlux, tmp_path: Path, limit: int, message: str) -> None:
    root = altered(plain, tmp_path, "finish", shifted_offsets)
    with pytest.raises(ParityError, match=message):
        verify_component(blocks_only(plain.recipe), plain.spec, root, plain.locations, whole_limit_bytes=limit)


@pytest.mark.parametrize("limit", [EVERYTHING, 0], ids=["whole", "blocks"])
@pytest.mark.parametrize("scale", [1.01, float("nan")])  # a step of bfloat16 is up to 0.8 %
def test_changed_weights_fail(guided: TinyFlux, tmp_path: Path, limit: int, scale: float) -> None:
    """The graphs read the artifact's bytes, the reference those of the source."""
    shutil.copytree(guided.root, tmp_path, dirs_exist_ok=True)
    place = guided.locations["single_transformer_blocks.1.proj_out.weight"]
    file = tmp_path / "transformer" / place.file.name
    data = bytearray(file.read_bytes())
    values = np.frombuffer(data, place.dtype.numpy, offset=place.offset, count=place.nbytes // 2)
    # One step of a bfloat16 is 4e-3.
    values[: len(values) // 2] = (values[: len(values) // 2].astype(np.float32) * (scale if scale != scale else 1.01)).astype(
        values.dtype
    )
    file.write_bytes(data)
    with pytest.raises(ParityError):
        verify_component(blocks_only(guided.recipe), guided.spec, tmp_path, guided.locations, whole_limit_bytes=limit)


# ---- the wiring


@pytest.fixture
def retraced(guided: TinyFlux, monkeypatch: pytest.MonkeyPatch) -> ComponentRecipe:
    """A recipe whose narrow form is itself, traced already."""
    monkeypatch.setattr(verify, "trace", lambda _: TracedGraph(guided.traced.clone(), guided.parameters))
    return replace(guided.recipe, narrow=lambda: guided.recipe)


def test_the_wiring_is_measured(guided: TinyFlux, retraced: ComponentRecipe) -> None:
    phases: list[str] = []
    found = verify_component(retraced, guided.spec, guided.root, guided.locations, whole_limit_bytes=0, progress=phases.append)
    assert found.measurements["wiring noise_pred"] <= 5e-6
    assert found.tolerances["wiring noise_pred"] == 1e-4
    assert phases == ["eager", *(b.path for b in guided.recipe.borders), "output", "wiring"]


def swap_reads(model: ir.Model, left: str, right: str) -> None:
    """Users of one input read the other."""
    inputs = {v.name: v for v in model.graph.inputs}
    for node in model.graph:
        for place, value in enumerate(node.inputs):
            if value is inputs[left]:
                node.replace_input_with(place, inputs[right])
            elif value is inputs[right]:
                node.replace_input_with(place, inputs[left])


def wrong_offsets(parts: dict[str, ir.Model]) -> None:
    node = next(n for n in parts["condition"].graph if n.op_type == "Concat" and n.outputs[0].name == "modulation_rest")
    first, last = node.inputs[0], node.inputs[3]
    node.replace_input_with(0, last)
    node.replace_input_with(3, first)


def wrong_order(parts: dict[str, ir.Model]) -> None:
    names = [f"single_transformer_blocks.{i}.proj_mlp.weight" for i in (0, 1)]
    swap_reads(parts["rest"], *names)


def wrong_binding(parts: dict[str, ir.Model]) -> None:
    attention = next(n for n in parts["rest"].graph if n.op_type == "FusedAttentionNormRotary")
    swap_reads(parts["rest"], *(str(v.name) for v in attention.inputs[-2:] if v is not None))


@pytest.mark.parametrize("change", [wrong_offsets, wrong_order, wrong_binding])
def test_a_compiler_that_wires_wrongly_fails(
    guided: TinyFlux, retraced: ComponentRecipe, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, ir.Model]], None]
) -> None:
    """The blocks stay right: what is wrong is how the compiler joins them."""

    def compile_wrongly(traced: TracedGraph, recipe: ComponentRecipe) -> dict[str, ir.Model]:
        parts = run_passes(traced, recipe)
        change(parts)
        return parts

    monkeypatch.setattr(verify, "run_passes", compile_wrongly)
    with pytest.raises(ParityError, match=r"^transformer: wiring noise_pred differs"):
        verify_component(retraced, guided.spec, guided.root, guided.locations, whole_limit_bytes=0)


def test_the_narrow_form_is_as_deep_and_has_the_same_borders(guided: TinyFlux, plain: TinyFlux) -> None:
    for made in (guided, plain):
        assert made.recipe.narrow is not None
        narrow = made.recipe.narrow()
        assert narrow.borders == made.recipe.borders
        assert [(i.name, i.role) for i in narrow.inputs] == [(i.name, i.role) for i in made.recipe.inputs]
        assert narrow.config["num_attention_heads"] * narrow.config["attention_head_dim"] == 32
        assert {k: narrow.config[k] for k in ("num_layers", "num_single_layers", "guidance_embeds", "in_channels")} == {
            k: made.config[k] for k in ("num_layers", "num_single_layers", "guidance_embeds", "in_channels")
        }
