"""Opening an artifact: damage of every kind is found and named, and nothing outside the folder is touched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.engine.artifact_samples import (
    STEP,
    WEIGHTS,
    build,
    external_initializer,
    good_graph,
    linear_graph,
    sample_manifest,
    step_graph,
    weights_bytes,
)
from vitrify.engine.artifact import Artifact, ArtifactWriter, canonical_bytes
from vitrify.engine.artifact.onnx_external import ExternalTensor, external_tensors
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ArtifactError, SpecError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.specs import GraphSpec, TensorSpec


@pytest.fixture
def art(tmp_path: Path) -> Path:
    build(tmp_path / "art")
    return tmp_path / "art"


@pytest.mark.parametrize("verify", ["Full", "ful", None, True])
def test_an_unknown_way_to_verify_is_refused(art: Path, verify: Any) -> None:
    with pytest.raises(SpecError, match=f"verify={verify!r} is unknown; known: load, full"):
        Artifact.open(art, verify=verify)


def every_file(art: Path) -> list[Path]:
    return sorted(path for path in art.rglob("*") if path.is_file())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def reseal(art: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the manifest as an attacker would: with a right hash."""
    data = Artifact.open(art).manifest.to_json()
    edit(data)
    text = canonical_bytes(data)
    (art / "manifest.json").write_bytes(text)
    (art / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")


def replace(art: Path, name: str, data: bytes) -> None:
    """Puts other bytes in a listed file and makes the manifest agree."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    reseal(art, edit)
    (art / name).write_bytes(data)


def test_an_artifact_opens_with_the_id_that_the_writer_gave(tmp_path: Path) -> None:
    artifact_id = build(tmp_path / "art")
    for verify in ("load", "full"):
        artifact = Artifact.open(tmp_path / "art", verify=verify)
        assert artifact.id == artifact_id == hashlib.sha256((tmp_path / "art" / "manifest.json").read_bytes()).hexdigest()
        assert artifact.manifest.components["transformer"].class_name == "FluxTransformer2DModel"
    assert artifact.path(STEP).read_bytes() == (tmp_path / "art" / STEP).read_bytes()


def test_a_moved_read_only_artifact_and_one_behind_a_link_open(art: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(art, moved)
    for path in [moved, *moved.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert Artifact.open(link, verify="full").root == moved


def test_a_flipped_byte_in_every_file_is_found_by_load(art: Path) -> None:
    for path in every_file(art):
        good = path.read_bytes()
        for at in {0, len(good) // 2, len(good) - 1}:
            flip(path, at)
            with pytest.raises(ArtifactError, match=r"manifest\.json" if path.name == "manifest.sha256" else path.name):
                Artifact.open(art)
            path.write_bytes(good)
    Artifact.open(art)


def test_beyond_the_limit_a_flipped_byte_is_found_by_full_alone(art: Path) -> None:
    weights = art / WEIGHTS
    size = weights.stat().st_size
    flip(weights, size - 1)
    assert Artifact.open(art, hash_limit_bytes=size).root == art
    with pytest.raises(ArtifactError, match="sha256"):
        Artifact.open(art, hash_limit_bytes=size + 1)
    with pytest.raises(ArtifactError, match="sha256"):
        Artifact.open(art, verify="full", hash_limit_bytes=0)


def test_full_finds_a_flipped_byte_in_every_file_with_the_limit_at_zero(art: Path) -> None:
    for path in every_file(art):
        flip(path, path.stat().st_size // 2)
        with pytest.raises(ArtifactError):
            Artifact.open(art, verify="full", hash_limit_bytes=0)
        flip(path, path.stat().st_size // 2)
    seen: list[int] = []
    Artifact.open(art, verify="full", hash_limit_bytes=0, progress=seen.append)
    assert sum(seen) == sum(path.stat().st_size for path in every_file(art) if not path.name.startswith("manifest."))


@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_a_file_of_another_size_or_gone_is_named(art: Path, change: str) -> None:
    for path in every_file(art):
        good = path.read_bytes()
        if change == "gone":
            path.unlink()
        else:
            path.write_bytes(good[:-1] if change == "shorter" else good + b"x")
        with pytest.raises(ArtifactError, match=r"manifest\.(json|sha256)" if path.parent == art else path.name):
            Artifact.open(art, hash_limit_bytes=0)
        path.write_bytes(good)


def test_what_the_manifest_does_not_list_is_refused(art: Path) -> None:
    for path in (art / "extra.bin", art / "transformer" / "extra.onnx"):
        path.write_bytes(b"x")
        with pytest.raises(ArtifactError, match=rf"{path.name}: a file that the manifest does not list"):
            Artifact.open(art)
        path.unlink()
    (art / "more").mkdir()
    with pytest.raises(ArtifactError, match="more: a folder"):
        Artifact.open(art)


@pytest.mark.parametrize("name", [STEP, "manifest.json", "manifest.sha256", "transformer"])
def test_a_link_in_the_folder_is_refused_even_to_the_same_bytes(art: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (art / name).rename(outside)
    (art / name).symlink_to(outside)
    with pytest.raises(ArtifactError, match=name.rpartition("/")[2]):
        Artifact.open(art)


def test_a_pipe_in_the_folder_is_refused_without_waiting_on_it(art: Path) -> None:
    (art / STEP).unlink()
    os.mkfifo(art / STEP)
    with pytest.raises(ArtifactError, match="no regular file"):
        Artifact.open(art)


def test_what_is_no_artifact_is_said_in_words(tmp_path: Path, art: Path) -> None:
    with pytest.raises(ArtifactError, match="not there"):
        Artifact.open(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="a file, expected an artifact folder"):
        Artifact.open(art / STEP)
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "model_index.json").write_text("{}")
    with pytest.raises(ArtifactError, match="diffusers folder, compile it"):
        Artifact.open(tmp_path / "diffusers")
    for bad in ("/", "a\0b"):
        with pytest.raises(ArtifactError):
            Artifact.open(bad)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ArtifactError):
        Artifact.open(loop)


def test_a_file_that_may_not_be_read_is_named(art: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read: Permission denied"):
        Artifact.open(art)


def test_path_gives_listed_files_alone(art: Path) -> None:
    artifact = Artifact.open(art)
    for bad in ("../art/" + STEP, "/etc/passwd", "transformer", "manifest.json", "step/../" + STEP, ""):
        with pytest.raises(ArtifactError):
            artifact.path(bad)


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "transformer/../../secret", "..\\secret", "C:secret"])
def test_a_resealed_manifest_cannot_name_a_file_outside(art: Path, tmp_path: Path, outside: str) -> None:
    (tmp_path / "secret").write_bytes(b"x")

    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"][outside] = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
        manifest["tokenizers"]["tokenizer"]["path"] = outside

    reseal(art, edit)
    with pytest.raises(ArtifactError, match="expected a relative POSIX path"):
        Artifact.open(art)


def test_a_manifest_over_the_cap_is_not_read(art: Path) -> None:
    with (art / "manifest.json").open("r+b") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(ArtifactError, match="larger than"):
        Artifact.open(art)


def test_damaged_weights_with_a_right_hash_are_refused(art: Path) -> None:
    replace(art, WEIGHTS, weights_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"diffusion_pytorch_model\.safetensors: truncated.*export it again"):
        Artifact.open(art)


SIZE = len(weights_bytes())


@pytest.mark.parametrize(
    ("location", "offset", "length", "words"),
    [
        (Path(WEIGHTS).name, SIZE - 24, 25, "whose data are"),
        (Path(WEIGHTS).name, 0, 24, "whose data are"),
        (Path(WEIGHTS).name, SIZE + 1, 0, "whose data are"),
        (Path(WEIGHTS).name, 10**18, 10**18, "whose data are"),
        ("first.onnx", 0, 1, "expected one of"),
        ("../tokenizer/tokenizer.json", 0, 1, "expected a relative POSIX path"),
        ("/etc/passwd", 0, 1, "expected a relative POSIX path"),
        ("", 0, 1, "expected a relative POSIX path"),
    ],
)
def test_a_graph_may_point_only_into_its_components_weights(
    art: Path, location: str, offset: int, length: int, words: str
) -> None:
    replace(art, "transformer/first.onnx", linear_graph([external_initializer("proj.bias", [6], location, offset, length)]))
    with pytest.raises(ArtifactError, match=words) as caught:
        Artifact.open(art)
    assert "first.onnx" in str(caught.value)
    assert "proj.bias" in str(caught.value)


def test_a_step_graph_may_point_nowhere(art: Path) -> None:
    replace(art, STEP, linear_graph([external_initializer("w", [1], "euler.onnx", 0, 4)]))
    with pytest.raises(ArtifactError, match=r"expected one of \[\]"):
        Artifact.open(art)


def test_the_writer_publishes_nothing_that_the_reader_refuses(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "art") as writer:
        writer.write_bytes("transformer/first.onnx", good_graph())
        writer.write_bytes(WEIGHTS, weights_bytes())
        writer.write_bytes(STEP, b"")
        with pytest.raises(ArtifactError, match=r"no valid artifact.*tokenizer"):
            writer.commit(sample_manifest())
    assert list(tmp_path.iterdir()) == []


def test_external_tensors_are_found_wherever_onnx_allows_them() -> None:
    def tensor(name: str) -> TensorProto:
        return external_initializer(name, [2], f"{name}.bin", 8, 8)

    inner = helper.make_graph([], "inner", [], [], initializer=[tensor("in_subgraph")])
    constant = helper.make_node("Constant", [], ["c"], value=tensor("in_attribute"))
    branch = helper.make_node("If", ["cond"], ["d"], then_branch=inner, else_branch=helper.make_graph([], "e", [], []))
    function = helper.make_function("f", "F", [], ["c"], [constant], [helper.make_opsetid("", 23)])
    graph = helper.make_graph(
        [constant, branch], "g", [], [], initializer=[helper.make_tensor("plain", 1, [1], [1.0]), tensor("top")]
    )
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("values", 1, [1], [1.0]), helper.make_tensor("indices", 7, [1], [0]), [4]
    )
    sparse.values.CopyFrom(tensor("in_sparse"))
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph, functions=[function])
    found = external_tensors(model.SerializeToString(), "model.onnx")
    names = ["in_attribute", "in_subgraph", "top", "in_sparse", "in_attribute"]
    assert found == [ExternalTensor(name, f"{name}.bin", 8, 8) for name in names]


def test_an_external_tensor_without_offset_and_length_is_the_whole_file() -> None:
    tensor = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    assert external_tensors(linear_graph([tensor]), "x") == [ExternalTensor("w", "w.bin", 0, None)]


def test_broken_protobuf_is_refused_and_nothing_else_escapes(art: Path) -> None:
    good = good_graph()
    for at in range(len(good)):
        for value in (0x00, 0x7F, 0xFF):
            broken = good[:at] + bytes([value]) + good[at + 1 :]
            with contextlib.suppress(ArtifactError):
                external_tensors(broken, "model.onnx")
    with pytest.raises(ArtifactError, match="damaged"):
        external_tensors(b"\xff" * 20 + b"location", "model.onnx")
    replace(art, "transformer/first.onnx", good[:-3])
    with pytest.raises(ArtifactError, match=r"first\.onnx"):
        Artifact.open(art)


def varint(value: int) -> bytes:
    text = b""
    while value > 0x7F:
        text, value = text + bytes([value & 0x7F | 0x80]), value >> 7
    return text + bytes([value])


def field(number: int, content: bytes, tag_bits_above: int = 0) -> bytes:
    """A field that holds a message. tag_bits_above: what stands above the tag's 32 bits, which protobuf in C++ cuts off."""
    return varint((number << 3 | 2) + (tag_bits_above << 32)) + varint(len(content)) + content


def graph_that_points_into_the_header() -> bytes:
    return linear_graph([external_initializer("proj.bias", [6], Path(WEIGHTS).name, 0, 24)])


@pytest.mark.parametrize("above", [1, 4, 2**31])
def test_a_graph_hidden_behind_a_tag_of_more_than_32_bits_is_refused(art: Path, above: int) -> None:
    """ONNX Runtime reads the graph; whoever compares the whole tag sees an unknown field."""
    model = onnx.ModelProto.FromString(graph_that_points_into_the_header())
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    hidden = model.SerializeToString() + field(7, graph, above)
    replace(art, "transformer/first.onnx", hidden)
    with pytest.raises(ArtifactError, match=r"first\.onnx: a .*(tag|number) at byte"):
        Artifact.open(art, verify="full")


def test_the_spelling_that_hid_a_graph_is_the_one_that_onnx_runtime_reads(tmp_path: Path) -> None:
    """Else the test above would hold off what nobody reads."""
    model = onnx.ModelProto.FromString(step_graph())
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    hidden = model.SerializeToString() + field(7, graph, 1)
    a, b, c = (TensorSpec(name, DType.FLOAT32, ("n",)) for name in "abc")
    spec = GraphSpec("hidden.onnx", (a, b), (c,))
    with contextlib.closing(OrtCpuBackend(kernels="portable").open_bytes(hidden, tmp_path, spec)) as session:
        session.plan({"n": 1})


def test_a_tensor_in_two_parts_that_protobuf_would_merge_is_refused() -> None:
    """The second part has no location of its own, and would move the first one's offset."""
    first, second = TensorProto(name="w", data_type=1, dims=[2]), TensorProto(data_location=TensorProto.EXTERNAL)
    first.external_data.add(key="location", value=Path(WEIGHTS).name)
    second.external_data.add(key="offset", value="0")
    parts = field(5, first.SerializeToString()) + field(5, second.SerializeToString())
    merged = onnx.AttributeProto.FromString(parts)
    assert [entry.key for entry in merged.t.external_data] == ["location", "offset"]
    node = onnx.NodeProto(op_type="Constant").SerializeToString() + field(5, parts)
    with pytest.raises(ArtifactError, match=r"Attribute holds two of field 5 \(Tensor\), expected one"):
        external_tensors(field(7, field(1, node)), "x")


def test_a_number_of_more_than_64_bits_is_refused() -> None:
    assert external_tensors(b"\x08" + b"\xff" * 9 + b"\x01", "x") == []
    with pytest.raises(ArtifactError, match="expected 64 bits"):
        external_tensors(b"\x08" + b"\xff" * 9 + b"\x02", "x")


def test_numbers_of_external_data_that_are_none_are_refused() -> None:
    for key in ("offset", "length"):
        for text in ("-1", "1.0", "", "²", "9" * 40):
            tensor = TensorProto(name="w", data_type=1, data_location=TensorProto.EXTERNAL)
            tensor.external_data.add(key="location", value="w.bin")
            tensor.external_data.add(key=key, value=text)
            with pytest.raises(ArtifactError, match=f"external {key}"):
                external_tensors(linear_graph([tensor]), "x")


def test_the_samples_graph_is_what_onnx_itself_reads(art: Path) -> None:
    model = onnx.load(art / "transformer" / "first.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert arrays["proj.weight"].tobytes() == weights_bytes()[-96:]
