"""`verify`: a sealed artifact measured again, over its own weights or its source's."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from tests.export.by_hand import scale_result
from tests.export.test_compile import DENOISER, ENCODER, edit, shard
from vitrify.engine import native_library
from vitrify.engine.artifact import Artifact, ArtifactWriter, Manifest
from vitrify.engine.errors import ArtifactError, BackendError, CompileError, ParityError
from vitrify.export.cli import verify
from vitrify.export.compile import compile_pipeline
from vitrify.export.options import ExportOptions
from vitrify.export.reverify import verify_artifact

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def source(toy_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_source, tmp_path / "source"))


@pytest.fixture
def artifact(source: Path, tmp_path: Path) -> Artifact:
    compile_pipeline(source, tmp_path / "art", ExportOptions(parity=False))
    return Artifact.open(tmp_path / "art")


def sealed_again(
    artifact: Artifact, out: Path, change: Callable[[Manifest], Manifest] = lambda m: m, graph: str | None = None
) -> Artifact:
    """The same artifact with its manifest changed, or one product of a graph, sealed by someone who can."""
    with ArtifactWriter(out) as writer:
        for path in artifact.manifest.files:
            if path == graph:
                proto = onnx.load(artifact.path(path), load_external_data=False)
                scale_result(proto.graph, next(n for n in proto.graph.node if n.op_type in ("Gemm", "Linear")), 1.001)
                writer.write_bytes(path, proto.SerializeToString())
            else:
                writer.copy_file(path, artifact.path(path))
        writer.commit(change(dataclasses.replace(artifact.manifest, files={})))
    return Artifact.open(out)


@pytest.mark.parametrize("limit", [1 << 40, 0], ids=["whole", "blocks"])
@pytest.mark.parametrize("with_source", [False, True])
def test_what_was_compiled_is_verified(source: Path, artifact: Artifact, limit: int, with_source: bool) -> None:
    found = verify_artifact(artifact, source if with_source else None, whole_limit_bytes=limit)
    assert list(found) == ["encoder", "denoiser"]
    assert all(spec.checked and spec.measurements for spec in found.values())
    # Without borders a component is whole whatever its size.
    assert [spec.method for spec in found.values()] == ["whole", "blocks" if limit == 0 else "whole"]


def test_the_same_errors_as_at_export(source: Path, tmp_path: Path) -> None:
    compile_pipeline(source, tmp_path / "art")
    opened = Artifact.open(tmp_path / "art")
    assert verify_artifact(opened) == {name: spec.parity for name, spec in opened.manifest.components.items()}


def test_moved_and_read_only(artifact: Artifact, source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "else" / "where"
    moved.parent.mkdir()
    artifact.root.rename(moved)
    for path in (moved, *moved.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert verify_artifact(Artifact.open(moved, verify="full"), source)["denoiser"].checked
    finally:
        for path in (moved, *moved.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("sharded", [False, True])
def test_against_a_source_of_a_variant(source: Path, tmp_path: Path, sharded: bool) -> None:
    (source / ENCODER).rename(source / "encoder" / "model.fp16.safetensors")
    if sharded:
        shard(source, ".fp16")
    else:
        (source / DENOISER).rename(source / "denoiser" / "diffusion_pytorch_model.fp16.safetensors")
    compile_pipeline(source, tmp_path / "art", ExportOptions(variant="fp16", parity=False))
    assert verify_artifact(Artifact.open(tmp_path / "art"), source)["denoiser"].checked


def flip(file: Path, at: int = -5) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda s: flip(s / DENOISER), ArtifactError, r"diffusion_pytorch_model.safetensors: not what the artifact was"),
        (lambda s: flip(s / ENCODER), ArtifactError, r"encoder/model.safetensors: not what the artifact was"),
        (lambda s: (s / DENOISER).unlink(), ArtifactError, r"diffusion_pytorch_model.safetensors: missing"),
        (lambda s: edit(s / "denoiser" / "config.json", extra=7), ArtifactError, r"extra is 7, sealed None"),
        (lambda s: edit(s / "encoder" / "config.json", width=9), ArtifactError, r"source/encoder: .*width is 9, sealed 8"),
        (lambda s: (s / "model_index.json").unlink(), CompileError, r"no model_index.json"),
        (lambda s: shutil.rmtree(s / "encoder"), CompileError, r"encoder: missing"),
    ],
)  # fmt: skip
def test_another_source_is_named(
    source: Path, artifact: Artifact, change: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    change(source)
    with pytest.raises(kind, match=message):
        verify_artifact(artifact, source)


@pytest.mark.parametrize("limit", [1 << 40, 0], ids=["whole", "blocks"])
@pytest.mark.parametrize("graph", ["denoiser/rest", "denoiser/condition", "denoiser/finish", "encoder/model"])
def test_a_graph_sealed_wrong_fails(artifact: Artifact, tmp_path: Path, graph: str, limit: int) -> None:
    """Hashes alone would say that all is well."""
    wrong = sealed_again(artifact, tmp_path / "wrong", graph=f"{graph}.onnx")
    with pytest.raises(ParityError, match=rf"^{graph.split('/')[0]}: .* differs from eager PyTorch"):
        verify_artifact(wrong, whole_limit_bytes=limit)


def without_component(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, components={"denoiser": manifest.components["denoiser"]})


def without_dim(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, dims={k: v for k, v in manifest.dims.items() if k != "height"})


def of_another_class(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, pipeline_class="NoPipeline")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (without_component, ArtifactError, r"no component 'encoder'; it has denoiser"),
        (without_dim, ArtifactError, r"no dimension 'height'"),
        (of_another_class, CompileError, r"pipeline class NoPipeline is unsupported; supported: FluxPipeline, ToyPipeline"),
    ],
)  # fmt: skip
def test_a_manifest_that_lacks_something_is_an_error_by_name(
    artifact: Artifact, tmp_path: Path, change: Callable[[Manifest], Manifest], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        verify_artifact(sealed_again(artifact, tmp_path / "other", change))


# ---- the command


def test_the_command_prints_each_component(artifact: Artifact, source: Path) -> None:
    result = CliRunner().invoke(verify, [str(artifact.root), "--against", str(source)], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"id {artifact.id[:16]}" in result.output
    assert "denoiser: parity whole, worst noise_pred" in result.output
    assert "(allowed 1e-04)" in result.output


def test_the_command_in_json(artifact: Artifact) -> None:
    result = CliRunner().invoke(verify, [str(artifact.root), "--json"], catch_exceptions=False)
    report = json.loads(result.output)
    assert report["id"] == artifact.id
    assert report["parity"]["denoiser"]["checked"]
    bare = json.loads(CliRunner().invoke(verify, [str(artifact.root), "--json", "--no-parity"]).output)
    assert "parity" not in bare


def test_the_command_reads_every_byte(artifact: Artifact) -> None:
    flip(artifact.root / DENOISER)
    with pytest.raises(ArtifactError, match=r"diffusion_pytorch_model.safetensors: sha256 is"):
        CliRunner().invoke(verify, [str(artifact.root), "--no-parity"], catch_exceptions=False)


def levels() -> list[str]:
    """The native library says which kernels ran, the portable bodies have no level."""
    return [f"our native kernels at CPU level {native_library.cpu_level()}"] if native_library.path() is not None else []


@pytest.mark.parametrize("kernels", ["portable", "native"])
def test_the_kernels_are_chosen_and_named(artifact: Artifact, kernels: str) -> None:
    words = [str(artifact.root), "--kernels", kernels]
    report = json.loads(CliRunner().invoke(verify, [*words, "--json"], catch_exceptions=False).output)
    assert report["kernels"] == (levels()[0] if kernels == "native" else "the portable bodies of our ops")
    assert report["parity"]["denoiser"]["checked"]
    assert f"parity was measured with {report['kernels']}" in CliRunner().invoke(verify, words).output


def test_what_was_measured_with_says_nothing_in_the_artifact(source: Path, tmp_path: Path, artifact: Artifact) -> None:
    """Its bytes depend on the source and the options alone, not on the machine's kernels."""
    compile_pipeline(source, tmp_path / "measured")
    for path in (artifact.root, tmp_path / "measured"):
        text = (path / "manifest.json").read_text()
        assert not [word for word in (*levels(), "cpu_level", "portable") if word in text]


@pytest.mark.parametrize("words", [["--against", "source"], ["--kernels", "native"]])
def test_an_option_of_a_parity_that_is_not_measured_is_a_usage_error(artifact: Artifact, words: list[str]) -> None:
    result = CliRunner().invoke(verify, [str(artifact.root), "--no-parity", *words])
    assert result.exit_code == 2
    assert "--against and --kernels say how parity is measured" in result.output


def test_without_pytorch_it_is_said_before_the_hashes(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vitrify.export.reverify")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    opened: list[object] = []
    monkeypatch.setattr(Artifact, "open", lambda *args, **_: opened.append(args))
    with pytest.raises(BackendError, match=r"needs onnx_ir, which is not installed; nothing was checked: .*--no-parity"):
        CliRunner().invoke(verify, [str(artifact.root)], catch_exceptions=False)
    assert not opened
