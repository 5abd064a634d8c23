"""`vitrify kernels build` and `inspect`: bytes that depend on the sources alone, builds that go on, a manifest read with care."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from vitrify.engine import cubins
from vitrify.engine.errors import ArtifactError, BackendError, CompileError, SpecError
from vitrify.kernels.aot import build as build_module
from vitrify.kernels.aot.build import build, select
from vitrify.kernels.aot.expressions import evaluate
from vitrify.kernels.aot.programs import programs
from vitrify.kernels.cli import kernels as command

KERNELS = ("residual_diff", "residual_diff_total")
OPTIONS = [word for name in KERNELS for word in ("--kernel", name)] + ["--dtype", "bfloat16", "--dtype", "float32"]
PROGRAM = "import sys; from vitrify.kernels.cli import kernels; kernels(sys.argv[1:])"


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a process of its own, with a hash seed of its own."""
    return _build(tmp_path_factory.mktemp("first"), "1")


def _build(folder: Path, seed: str) -> Path:
    words = ["build", *OPTIONS, "--arch", "sm_80", "--out", str(folder), "--quiet"]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", PROGRAM, *words], env=environment, cwd=folder, check=True, capture_output=True)
    return folder


def test_two_processes_write_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert files(_build(tmp_path, "2")) == files(built)


def test_the_manifest_says_what_the_folder_holds(built: Path) -> None:
    manifest = cubins.read_manifest(built, verify=True)
    assert set(manifest.kernels) == set(KERNELS)
    assert set(manifest.programs) == {"ResidualDiff"}
    variant = manifest.kernels["residual_diff"].variants["residual_diff-bfloat16"]
    assert set(variant.images) == {"sm_80", "sm_80_ptx"}
    assert variant.images["sm_80"].entry == "residual_diff"
    assert variant.images["sm_80"].parameters == ((0, 8), (8, 8), (16, 8), (24, 4), (32, 8), (40, 8), (48, 8), (56, 8))
    assert manifest.kernels["residual_diff"].hidden == ("global_scratch", "profile_scratch")
    assert (built / cubins.MANIFEST).read_bytes() == manifest.canonical_bytes()
    listed = {image.file for k in manifest.kernels.values() for v in k.variants.values() for image in v.images.values()}
    assert listed == {file.name for file in built.iterdir() if file.suffix in (".cubin", ".ptx")}


def test_a_second_build_compiles_nothing(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, reported = files(built), list[tuple[int, int, str]]()
    monkeypatch.setattr(build_module, "_compile", _never)
    build(built, _selected(), ["sm_80"], workers=1, report=lambda done, total, name: reported.append((done, total, name)))
    assert (files(built), reported) == (before, [])


def _selected() -> tuple[build_module.Variant, ...]:
    return tuple(variant for variant in select((), KERNELS) if variant.dtype.value != "float16")


def _never(*_: object) -> None:
    raise AssertionError("nothing is left to compile")


def test_only_what_is_damaged_is_compiled_again(built: Path, tmp_path: Path) -> None:
    for name, data in files(built).items():
        target = tmp_path / ("records" if name.endswith(".sm_80.json") else ".") / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    (tmp_path / "residual_diff-bfloat16.sm_80.cubin").write_bytes(b"cut short")
    (tmp_path / "stale.cubin").write_bytes(b"of a kernel that is gone")
    reported: list[str] = []
    build(tmp_path, _selected(), ["sm_80"], workers=1, report=lambda _done, _total, name: reported.append(name))
    assert reported == ["residual_diff-bfloat16 sm_80"]
    assert files(tmp_path) == files(built)


def test_a_failure_names_the_variant_and_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "residual_diff_total-float32.sm_80.cubin").mkdir()  # A folder where the image must go.
    with pytest.raises((CompileError, OSError)):
        build(tmp_path, select((), ("residual_diff_total",)), ["sm_80"], workers=1)
    assert not (tmp_path / cubins.MANIFEST).exists()


def test_inspect_marks_its_times_as_estimates(built: Path) -> None:
    done = CliRunner().invoke(command, ["inspect", "--out", str(built), "--verify"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "ESTIMATES" in lines[0]
    assert "not measured" in lines[0]
    # 4 × 4096 × 3072 values of 2 bytes at 2.039 TB/s.
    (row,) = [line for line in lines if line.startswith("residual_diff-bfloat16") and "A100" in line]
    assert row.split()[-3:] == ["100.7", "49.4", "memory"]


def test_inspect_gives_numbers_as_json(built: Path) -> None:
    done = CliRunner().invoke(command, ["inspect", "--out", str(built), "--json"])
    rows = json.loads(done.output)
    assert {row["card"] for row in rows} == {"A100"}
    assert all(0 < row["occupancy"] <= 1 for row in rows)


def test_an_unknown_kernel_lists_the_known() -> None:
    with pytest.raises(SpecError, match=r"kernels \['nonsense'\] are unknown; known: .*residual_diff"):
        select((), ("nonsense",))


def test_without_a_build_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no GPU kernels were built; run: vitrify kernels build"):
        cubins.read_manifest(tmp_path)


def _image(data: dict[str, object]) -> dict[str, object]:
    return data["kernels"]["residual_diff"]["variants"]["residual_diff-bfloat16"]["images"]["sm_80"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=1), "format 1, this version reads 2"),
        (lambda data: data.pop("compiler"), r"missing fields \['compiler'\]"),
        (lambda data: _image(data).update(file="../evil.cubin"), "is no plain name"),
        (lambda data: _image(data).update(parameters=[[0]]), "pairs of offset and size"),
        (lambda data: _image(data).update(parameters=[[0, True]]), "got bool 'True', expected int"),
        *(
            (lambda data, value=value: _image(data).update(registers=value), "registers: got .*, expected int")
            for value in ("", [], {}, False)
        ),
        (lambda data: _image(data).update(num_warps="4"), "num_warps: got str '4', expected int"),
        (lambda data: data["kernels"].pop("residual_diff_total"), "launches 'residual_diff_total', which is no kernel"),
        (lambda data: data["kernels"]["residual_diff"]["arguments"][0].update(type="float"), "expected pointer or int32"),
    ],
)
def test_a_damaged_manifest_is_named(built: Path, tmp_path: Path, change: Callable[[object], object], message: str) -> None:
    data = json.loads((built / cubins.MANIFEST).read_bytes())
    change(data)
    (tmp_path / cubins.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message):
        cubins.read_manifest(tmp_path)


def test_an_image_that_is_not_the_manifests_is_named(built: Path, tmp_path: Path) -> None:
    (tmp_path / cubins.MANIFEST).write_bytes((built / cubins.MANIFEST).read_bytes())
    with pytest.raises(ArtifactError, match=r"residual_diff.*: No such file"):
        cubins.read_manifest(tmp_path, verify=True)
    for file in built.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    cubins.read_manifest(tmp_path, verify=True)
    (tmp_path / "residual_diff-bfloat16.sm_80.ptx").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"residual_diff-bfloat16.sm_80.ptx: not the file that manifest.json names"):
        cubins.read_manifest(tmp_path, verify=True)


# ---- the expressions of the manifest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("cdiv(tokens, 64) * 3 + 1", 7),
        ("max(2, min(tokens, 5)) - 1", 4),
        ("power(tokens)", 128),
        ("(7 + 5) / 4 % 2", 1),
        ("tokens", 123),
        ("in - 1", 79),
        ("20 - 3 - 2 * 4", 9),
    ],
)
def test_expressions(text: str, value: int) -> None:
    assert evaluate(text, {"tokens": 123, "in": 80}) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toks + 1", "name 'toks' is unknown; known: tokens"),
        ("tokens / 2", "123 / 2 is no whole number"),
        ("tokens / 0", "123 / 0 is no whole number"),
        ("cdiv(1, 0)", "must be positive"),
        ("tokens ** 2", r"a number or a name is missing before '\*'"),
        ("__import__('os')", "outside the language"),
        ("eval(1)", "function 'eval' is unknown; known: cdiv, min, max, power"),
        ("tokens.real", "'.real' is outside the language"),
        ("1.5", "'1.5' is outside the language"),
        ("1tokens", "'1tokens' is outside the language"),
        ("tokens tokens", "'tokens' is outside the language"),
        ("-1", "a number or a name is missing before '-'"),
        ("(tokens", "a parenthesis is not closed"),
        ("min(1)", "min takes 2 arguments, got 1"),
        ("min()", "a number or a name is missing"),
        ("1 +", "a number or a name is missing"),
        ("", "a number or a name is missing"),
    ],
)
def test_what_is_no_expression_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        evaluate(text, {"tokens": 123})


def test_every_program_is_sound() -> None:
    """describe() checks every expression's names; this runs it over all ops, without a compiler."""
    from vitrify.kernels.aot.manifest import describe
    from vitrify.kernels.aot.programs import variants

    image = {"file": "x", "bytes": 0, "sha256": "", "entry": "x", "num_warps": 4, "num_stages": 1, "shared_bytes": 0}
    from vitrify.kernels.aot.tiles import tile

    images = {
        v.name: {"sm_80": cubins.Image(**image, tile=tile(v, "sm_80").sizes, parameters=())}  # type: ignore[arg-type]
        for v in variants()
    }
    assert set(describe("none", images, variants()).programs) == set(programs())
