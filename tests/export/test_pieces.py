"""The written graphs in pieces: together they are all of it, each alone is what eager has between two borders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.compare import assert_close
from tests.export.by_hand import Array
from tests.export.tiny_flux import TinyFlux
from tests.export.tiny_flux import request as ask
from vitrify.engine.artifact import Artifact
from vitrify.engine.errors import ParityError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.specs import ComponentSpec
from vitrify.export.compile import compile_pipeline
from vitrify.export.eager import EagerModule
from vitrify.export.families import recipe_for
from vitrify.export.options import ExportOptions
from vitrify.export.passes.segments import TABLE_PREFIX
from vitrify.export.pieces import Piece, ShippedGraphs
from vitrify.export.source import DiffusersFolder


def shipped(made: TinyFlux, root: Path | None = None) -> ShippedGraphs:
    return ShippedGraphs(made.recipe, {name: (root or made.root) / g.path for name, g in made.spec.graphs.items()})


def original_names(piece: Piece) -> set[str]:
    """Which values of the written graphs its nodes make."""
    proto = onnx.load_from_string(piece.model)
    return {name.rpartition("@")[0] or name for node in proto.graph.node for name in node.output}


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_pieces_go_from_border_to_border(request: pytest.FixtureRequest, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    pieces = shipped(made).pieces()
    assert [p.name for p in pieces] == [*(border.path for border in made.recipe.borders), "output"]
    labels = {label for border in made.recipe.borders for label in border.labels}
    inputs = {i.name for i in made.recipe.inputs}
    for piece in pieces:
        assert {t.name for t in piece.spec.inputs} <= labels | inputs
        own = {"noise_pred"} if piece.name == "output" else {n for n in labels if n and n.split("/")[0] == piece.name}
        assert {t.name for t in piece.spec.outputs} <= own
    by_name = {p.name: p for p in pieces}
    first = {t.name for t in by_name["transformer_blocks.0"].spec.inputs}
    assert first == {"time_text_embed", "context_embedder", "x_embedder", "text_rotary", "image_rotary"}


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_every_node_lies_in_a_piece_or_moves_a_table(request: pytest.FixtureRequest, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    covered = set().union(*(original_names(piece) for piece in shipped(made).pieces()))
    left = []
    for segment, g in made.spec.graphs.items():
        for node in onnx.load(made.root / g.path, load_external_data=False).graph.node:
            if not set(node.output) & covered:
                left.append((segment, node.op_type, *(n for n in (*node.input[:1], *node.output[:1]) if TABLE_PREFIX in n)))
    # Written by Concat (and Pad): pieces look through those by place and width. Two borders in one tensor are joined and
    # parted by nodes that the piece alone has.
    assert {op for _, op, *_ in left} <= {"Concat", "Pad"}
    assert all(names for _, _, *names in left), left


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_a_piece_fed_what_eager_has_gives_what_eager_has(
    request: pytest.FixtureRequest, backend: OrtCpuBackend, which: str
) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    asked = ask(made.model, batch=3, grid=(2, 4), text=5, steps=1)
    given: dict[str, Array] = {**asked.once, "latents": asked.latents[0], **{n: rows[0] for n, rows in asked.by_step.items()}}
    values = {**given, **EagerModule(made.recipe, made.locations).run(given)}
    compared = set()
    for piece in shipped(made).pieces():
        with contextlib.closing(backend.open_bytes(piece.model, made.root / "transformer", piece.spec)) as session:
            plan = session.plan({"batch": 3, "image_tokens": 8, "text_tokens": 5})
            for tensor in piece.spec.inputs:
                plan.bind(tensor.name, np.ascontiguousarray(values[tensor.name]))
            plan.ready()
            plan.run()
            for tensor in piece.spec.outputs:
                assert_close(plan.array(tensor.name), values[tensor.name], 2e-6, f"{piece.name}: {tensor.name}")
                compared.add(tensor.name)
    assert compared >= {"noise_pred", made.recipe.segments.rest if made.recipe.segments else ""}


def rewritten(root: Path, spec: ComponentSpec, out: Path, change: Callable[[onnx.GraphProto], None]) -> dict[str, Path]:
    """Copies of a component's graphs, each changed."""
    paths = {name: out / g.path for name, g in spec.graphs.items()}
    for name, g in spec.graphs.items():
        paths[name].parent.mkdir(exist_ok=True, parents=True)
        proto = onnx.load(root / g.path, load_external_data=False)
        change(proto.graph)
        paths[name].write_bytes(proto.SerializeToString())
    return paths


def test_columns_that_are_no_entry_of_the_table_are_found(guided: TinyFlux, tmp_path: Path) -> None:
    def shift(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for given in node.attribute:
                given.i += 8 if given.name == "gate_at" else 0

    paths = rewritten(guided.root, guided.spec, tmp_path, shift)
    with pytest.raises(ParityError, match=r"'modulation_\w+': columns \d+ … .* are read, but condition writes widths \[32,"):
        ShippedGraphs(guided.recipe, paths).pieces()


@pytest.mark.usefixtures("toy_supported")
def test_a_table_read_in_other_widths_than_written_is_found(toy_source: Path, tmp_path: Path) -> None:
    """The toy's blocks read their table through a Split: places alone would pair the entries rightly, the offsets are wrong."""
    compile_pipeline(toy_source, tmp_path / "art", ExportOptions(parity=False))

    def change(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == "widths_rest":
                widths = onnx.numpy_helper.to_array(tensor).copy()
                widths[:2] += [4, -4]
                tensor.CopyFrom(onnx.numpy_helper.from_array(widths, tensor.name))

    recipe = recipe_for(DiffusersFolder.open(toy_source), ExportOptions()).components[1]
    spec = Artifact.open(tmp_path / "art").manifest.components["denoiser"]
    paths = rewritten(tmp_path / "art", spec, tmp_path / "changed", change)
    with pytest.raises(ParityError, match=r"'modulation_rest': entry \d+ is read from widths \[12, 4\b"):
        ShippedGraphs(recipe, paths).pieces()
