"""The manifest: exact bytes, round trip, and hostile text, of which nothing but ArtifactError may come."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.artifact_samples import sample_manifest
from vitrify.engine.artifact import FileEntry, Manifest, SchedulerSpec, TokenizerSpec, canonical_bytes
from vitrify.engine.artifact.canonical import MAX_DEPTH, parse
from vitrify.engine.artifact.paths import check_path
from vitrify.engine.errors import ArtifactError
from vitrify.engine.fusion import FUSION, GraphFusion, LeftNodes
from vitrify.engine.source_record import SOURCE, SourceRecord
from vitrify.engine.specs import SEGMENTS, LayerPrecision, PrecisionSpec

HEX = "ab" * 32
FORMAT = Path(__file__).parents[2] / "engine" / "FORMAT.md"


def sealed() -> Manifest:
    manifest = sample_manifest()
    paths = {graph.path for _, graph in manifest.graphs().values()} | {"tokenizer/tokenizer.json"}
    paths |= {path for component in manifest.components.values() for path in component.weights}
    return dataclasses.replace(manifest, files={path: FileEntry(HEX, 10) for path in paths})


def minimal() -> Manifest:
    return Manifest(
        "flux", "FluxPipeline", "cpu", {}, {}, {}, {}, SchedulerSpec("S", {"shift": 3.0}), {}, defaults={"ä": [1, 0.1]}
    )


def test_the_bytes_of_a_minimal_manifest() -> None:
    assert minimal().canonical_bytes() == (
        b'{"component_order":[],"components":{},"defaults":{"\\u00e4":[1,0.1]},"dims":{},"family":"flux","files":{},"format_version":1,'
        b'"ops":{},"pipeline_class":"FluxPipeline","presets":{},"provenance":{},"scheduler":{"class_name":"S","config":{"shift":3.0}},'
        b'"step_graphs":{},"target":"cpu","tokenizers":{}}\n'
    )


def test_round_trip_keeps_every_field_and_the_order_of_components() -> None:
    manifest = sealed()
    other = dataclasses.replace(manifest.components["transformer"], name="a_first_by_name")
    manifest = dataclasses.replace(manifest, components={**manifest.components, "a_first_by_name": other})
    again = Manifest.from_bytes(manifest.canonical_bytes())
    assert again.to_json() == manifest.to_json()
    assert list(again.components) == ["transformer", "a_first_by_name"]
    assert again.canonical_bytes() == manifest.canonical_bytes()


def test_the_order_in_which_a_mapping_was_filled_does_not_show() -> None:
    one = dataclasses.replace(minimal(), ops={"A": 1, "B": 2}, defaults={"x": {"p": 1, "q": 2}})
    two = dataclasses.replace(minimal(), ops={"B": 2, "A": 1}, defaults={"x": {"q": 2, "p": 1}})
    assert one.canonical_bytes() == two.canonical_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, {"a": object()}, np.float32(1), b"x", {1, 2}])
def test_what_is_no_json_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(ArtifactError, match=r"provenance\.here"):
        dataclasses.replace(minimal(), provenance={"here": value}).canonical_bytes()


def test_a_subclass_of_a_number_or_a_string_is_written_as_the_plain_one() -> None:
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "other"

    assert canonical_bytes([np.float64(0.1), Name("n"), (True, None)]) == b'[0.1,"n",[true,null]]\n'


def edited(**changes: Any) -> bytes:
    return canonical_bytes({**sealed().to_json(), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "format version 2 is unknown, this vitrify reads version 1"),
        ({"format_version": "1"}, "format_version"),
        ({"format_version": True}, "format_version"),
        ({"surprise": 1}, "unknown fields.*surprise"),
        ({"presets": {"fast": {}}}, r"presets: missing fields \[\], unknown fields \['fast'\]"),
        ({"family": 3}, "family"),
        ({"target": "abacus"}, "abacus.*known: cpu"),
        ({"component_order": []}, "component_order"),
        ({"component_order": [1]}, "component_order"),
        ({"ops": {"A": True}}, "ops.A"),
        ({"ops": {"A": 0}}, "version 0"),
        ({"dims": {"batch": {"name": "other", "min": 1, "opt": 1, "max": 1, "step": 1}}}, "calls itself 'other'"),
        ({"dims": {"batch": {"name": "batch", "min": 3, "opt": 1, "max": 1, "step": 1}}}, "batch"),
        ({"dims": {}}, r"tensor 'x' float32\[batch, 4\] has dimensions \['batch'\] that dims does not list"),
        ({"files": {}}, "files does not list"),
        ({"files": {**sealed().to_json()["files"], "manifest.json": {"sha256": HEX, "size": 1}}}, "cannot list itself"),
        ({"files": {**sealed().to_json()["files"], "x": {"sha256": "AB" * 32, "size": 1}}}, "sha256"),
        ({"files": {**sealed().to_json()["files"], "x": {"sha256": HEX, "size": -1}}}, "size"),
        ({"files": {**sealed().to_json()["files"], "../x": {"sha256": HEX, "size": 1}}}, r"'\.\./x'"),
    ],
)
def test_a_manifest_that_contradicts_the_format_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        Manifest.from_bytes(edited(**changes), "art/manifest.json")
    assert "art/manifest.json" in str(caught.value)


def with_graphs(*names: str) -> bytes:
    manifest = sealed()
    transformer = manifest.components["transformer"]
    graphs = dict.fromkeys(names, transformer.graphs["model"])
    return dataclasses.replace(
        manifest, components={"transformer": dataclasses.replace(transformer, graphs=graphs)}
    ).canonical_bytes()


@pytest.mark.parametrize(
    "names", [("first",), ("model", "first"), (), tuple(reversed(SEGMENTS)), SEGMENTS[:-1], (*SEGMENTS, "model")]
)
def test_a_component_of_other_graphs_is_refused_by_name(names: tuple[str, ...]) -> None:
    with pytest.raises(ArtifactError, match=r"component 'transformer' has graphs .*expected \['condition', .* or 'model' alone"):
        Manifest.from_bytes(with_graphs(*names))


@pytest.mark.parametrize("names", [("model",), SEGMENTS])
def test_one_graph_or_the_segments_in_their_order_pass(names: tuple[str, ...]) -> None:
    assert tuple(Manifest.from_bytes(with_graphs(*names)).components["transformer"].graphs) == names


def keys_of(data: Any) -> set[str]:
    """The fields that the format itself names: not names that a source or a writer chose."""
    own = {"components", "dims", "graphs", "step_graphs", "ops", "tokenizers", "files", "layers", "weights"}
    free = {"config", "defaults", "packages", "measurements", "tolerances"}
    found: set[str] = set()
    if isinstance(data, list):
        return found.union(*(keys_of(item) for item in data))
    for key, value in data.items() if isinstance(data, dict) else ():
        found.add(key)
        if key not in free and not (key in own and not isinstance(value, dict)):
            found |= set().union(*map(keys_of, value.values())) if key in own else keys_of(value)
    return found


def test_the_formats_page_names_every_field() -> None:
    """A writer who follows the page is not refused."""
    manifest = sealed()
    layers = {"a.weight": LayerPrecision("int8", 0.01), "attention": LayerPrecision("bf16", 0.01)}
    precision = PrecisionSpec("int8", 0.04, 0.03, "calibration prompts", layers)
    transformer = dataclasses.replace(manifest.components["transformer"], precision=precision)
    fused = GraphFusion({"Linear": 1}, (LeftNodes("Conv", "no op of ours does this", ("v",)),))
    provenance = {
        "packages": {},
        FUSION: {"transformer.model": fused.to_json()},
        SOURCE: SourceRecord("a/b", {"x": HEX}).to_json(),
    }
    whole = dataclasses.replace(manifest, components={"transformer": transformer}, provenance=provenance)
    fields = keys_of(whole.to_json()) - {"transformer.model"}
    page = FORMAT.read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    assert fields - named == set()
    assert {"invariant_work", "measured_on", "reason", "max_length", "sha256"} <= fields


def test_a_missing_field_is_refused_by_name() -> None:
    data = sealed().to_json()
    del data["ops"]
    with pytest.raises(ArtifactError, match=r"missing fields \['ops'\]"):
        Manifest.from_bytes(canonical_bytes(data))


def test_a_path_outside_is_refused_wherever_it_stands() -> None:
    outside = "../../etc/passwd"
    manifest, files = sealed(), {**sealed().files, outside: FileEntry(HEX, 1)}
    transformer = manifest.components["transformer"]
    graph = dataclasses.replace(transformer.graphs["model"], path=outside)
    for bad in (
        dataclasses.replace(manifest, tokenizers={"t": TokenizerSpec("t", "C", outside, 1, 0, "")}),
        dataclasses.replace(manifest, step_graphs={"euler": graph}),
        dataclasses.replace(manifest, components={"transformer": dataclasses.replace(transformer, graphs={"model": graph})}),
        dataclasses.replace(manifest, components={"transformer": dataclasses.replace(transformer, weights=(outside,))}),
        dataclasses.replace(manifest, files=files),
    ):
        with pytest.raises(ArtifactError, match=r"passwd"):
            Manifest.from_bytes(bad.canonical_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "./a",
        "a/./b",
        "..",
        "a/../b",
        "a\\b",
        "C:/a",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "\ud800",
        "a" * 256,
        "a/" * 600 + "a",
    ],
)
def test_paths_that_could_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(ArtifactError, match="expected a relative POSIX path"):
        check_path(path)


@pytest.mark.parametrize("path", ["a", "a/b.c", "...", "a..b/c", "ä/日本.json", "-a", " a"])
def test_ordinary_paths_pass(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a":1,"a":2}', "'a' stands twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "beyond float64"),
        (b"1" * 5000, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nested"),
    ],
)
def test_hostile_json_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        parse(text, "file.json")


def test_depth_is_counted_alike_by_the_writer_and_the_reader() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert parse(canonical_bytes(value), "x") == value
    with pytest.raises(ArtifactError, match="nested"):
        canonical_bytes([value])
    with pytest.raises(ArtifactError, match="nested"):
        parse(json.dumps([value]).encode(), "x")


def test_another_spelling_of_the_same_manifest_is_refused() -> None:
    with pytest.raises(ArtifactError, match="canonical"):
        Manifest.from_bytes(json.dumps(sealed().to_json(), indent=1).encode())


def test_a_manifest_over_the_cap_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ArtifactError, match="at most"):
        Manifest.from_bytes(b" " * (64 * 2**20 + 1))


FUZZ = settings(derandomize=True, database=None, deadline=None, max_examples=150)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `value`."""
    found = []
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, child in items:
        found += [(value, key), *places(child)]
    return found


@FUZZ
@given(st.data())
def test_any_value_anywhere_in_a_manifest_is_read_or_refused_by_an_artifact_error(data: st.DataObject) -> None:
    tree = json.loads(sealed().canonical_bytes())
    container, key = data.draw(st.sampled_from(places(tree)))
    container[key] = data.draw(VALUES)
    with contextlib.suppress(ArtifactError):
        text = canonical_bytes(tree)
        assert Manifest.from_bytes(text).canonical_bytes() == text


@FUZZ
@given(st.integers(min_value=0), st.binary(max_size=6), st.integers(min_value=0, max_value=6))
def test_any_bytes_anywhere_in_a_manifest_are_read_or_refused_by_an_artifact_error(at: int, new: bytes, removed: int) -> None:
    text = sealed().canonical_bytes()
    at %= len(text)
    broken = text[:at] + new + text[at + removed :]
    with contextlib.suppress(ArtifactError):
        assert Manifest.from_bytes(broken).canonical_bytes() == broken


@FUZZ
@given(VALUES)
def test_canonical_json_is_ascii_and_comes_back_the_same(value: Any) -> None:
    text = canonical_bytes(value)
    assert text.isascii()
    assert text.endswith(b"\n")
    assert canonical_bytes(parse(text, "x")) == text
    assert json.loads(text) == value


def test_a_shape_may_name_a_sum_of_dimensions_but_no_unknown_one() -> None:
    manifest = sealed()
    transformer = manifest.components["transformer"]
    first = transformer.graphs["model"]

    def with_shape(shape: tuple[int | str, ...]) -> bytes:
        graph = dataclasses.replace(first, outputs=(dataclasses.replace(first.outputs[0], shape=shape),))
        component = dataclasses.replace(transformer, graphs={"model": graph})
        return dataclasses.replace(manifest, components={"transformer": component}).canonical_bytes()

    Manifest.from_bytes(with_shape(("batch + batch", 3)))
    with pytest.raises(ArtifactError, match=r"graph 'transformer\.model': tensor 'y' .* \['tokens'\]"):
        Manifest.from_bytes(with_shape(("batch + tokens", 3)))
