"""The straight line from a folder to an artifact, on the toy family: what is written, what is refused, and that no half stays."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.toy_family import NAME, write_toy
from vitrify.engine.artifact import Artifact, ArtifactWriter, disk
from vitrify.engine.denoiser import SEGMENTS
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ArtifactError, CompileError, ParityError
from vitrify.engine.source_record import SourceRecord, source_of
from vitrify.export import compile as compile_module
from vitrify.export.compile import compile_pipeline, plan_pipeline
from vitrify.export.options import ExportOptions, Range

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).parents[2]
ENCODER, DENOISER = "encoder/model.safetensors", "denoiser/diffusion_pytorch_model.safetensors"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def source(toy_source: Path, tmp_path: Path) -> Path:
    """A copy of the toy that a test may change."""
    return Path(shutil.copytree(toy_source, tmp_path / "source"))


def edit(path: Path, **fields: Any) -> None:
    data = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


# ---- what is written


def test_the_artifact_says_all_about_itself(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "art"
    asked = ExportOptions(
        batch=Range.parse("1:2:6", "batch"), max_sequence_length=Range.parse("2:4:8", "x"), defaults={"num_inference_steps": 7}
    )
    artifact_id = compile_pipeline(source, out, asked)
    opened = Artifact.open(out, verify="full")
    manifest = opened.manifest
    assert opened.id == artifact_id == hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest()
    assert (manifest.family, manifest.pipeline_class, manifest.target) == ("toy", NAME, "cpu")
    assert list(manifest.components) == ["encoder", "denoiser"]
    encoder, denoiser = manifest.components.values()
    assert list(encoder.graphs) == ["model"]
    assert list(denoiser.graphs) == list(SEGMENTS)
    assert (encoder.encoding, denoiser.encoding) == (DType.BFLOAT16, DType.BFLOAT16)
    assert (encoder.class_name, dict(encoder.config)) == ("ToyEncoder", {"width": 8})
    for spec, output in ((encoder, "prompt_embeds"), (denoiser, "noise_pred")):
        assert spec.parity.checked
        assert spec.parity.method == "whole"
        assert dict(spec.parity.tolerances) == {output: 1e-4}
        assert 0 < spec.parity.measurements[output] <= 1e-6
        header = load_file(source / spec.weights[0])
        assert sum(g.parameters for g in spec.graphs.values()) == sum(t.numel() for t in header.values())
        assert sum(g.parameter_bytes for g in spec.graphs.values()) == 2 * sum(t.numel() for t in header.values())
    assert (manifest.dims["batch"].max, manifest.dims["prompts"].max, manifest.dims["text_tokens"].opt) == (6, 6, 4)
    assert manifest.scheduler.class_name == "FlowMatchEulerDiscreteScheduler"
    assert dict(manifest.scheduler.config) == {"shift": 1.5}
    assert manifest.defaults["num_inference_steps"] == 7
    packages = manifest.provenance["packages"]
    assert packages["torch"] == metadata.version("torch").partition("+")[0]
    assert {"diffusers", "onnx", "onnxruntime", "onnxscript", "transformers"} <= set(packages)
    hashes = {path: hashlib.sha256((source / path).read_bytes()).hexdigest() for path in (ENCODER, DENOISER)}
    assert source_of(manifest.provenance) == SourceRecord(None, hashes)


def test_weights_are_the_sources_bytes_once_and_graphs_are_small(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "art"
    compile_pipeline(source, out)
    for name in (ENCODER, DENOISER):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert (out / "source" / "LICENSE").read_text() == "Do as you like."
    assert (out / "source" / "README.md").read_text() == "# A toy"
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert written == {
        *("manifest.json", "manifest.sha256", "source/LICENSE", "source/README.md", ENCODER, DENOISER, "encoder/model.onnx"),
        "step/residual_diff.onnx",
        *(f"denoiser/{segment}.onnx" for segment in SEGMENTS),
    }
    values = [t.float().numpy().astype("<f4").tobytes() for t in load_file(source / DENOISER).values() if t.numel() > 8]
    graphs = b"".join(p.read_bytes() for p in out.rglob("*.onnx"))
    assert not [v for v in values if v in graphs]
    assert not [name for name in (str(tmp_path), str(ROOT), os.environ.get("HOME", "/nowhere/")) if name.encode() in graphs]


def test_progress_names_component_and_phase(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    compile_pipeline(source, tmp_path / "art", progress=lambda *at: seen.append(at))
    traced = [(name, phase) for name in ("encoder", "denoiser") for phase in ("trace", "passes")]
    written = [(name, phase) for name in ("encoder", "denoiser") for phase in ("weights", "parity: whole")]
    assert seen == [*traced, *written, ("artifact", "seal")]


def test_the_same_source_gives_the_same_bytes_wherever_it_lies(source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(source, moved)
    ids = {compile_pipeline(folder, tmp_path / name) for folder, name in ((source, "one"), (moved, "two"), (source, "three/art"))}
    assert len(ids) == 1
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two") == snapshot(tmp_path / "three" / "art")


@pytest.mark.parametrize(("dtype", "encoding"), [(torch.float32, "float32"), (torch.float16, "float16")])
def test_weights_of_other_types_stay_in_theirs(tmp_path: Path, dtype: torch.dtype, encoding: str) -> None:
    source, out = write_toy(tmp_path / "source", dtype), tmp_path / "art"
    compile_pipeline(source, out)
    manifest = Artifact.open(out).manifest
    assert {spec.encoding.value for spec in manifest.components.values()} == {encoding}
    assert (out / DENOISER).read_bytes() == (source / DENOISER).read_bytes()


def test_types_may_be_mixed_in_a_component(source: Path, tmp_path: Path) -> None:
    weights = load_file(source / DENOISER)
    for name in weights:
        if name.endswith("bias"):
            weights[name] = weights[name].float()
    save_file(weights, source / DENOISER)
    compile_pipeline(source, tmp_path / "art")
    assert Artifact.open(tmp_path / "art").manifest.components["denoiser"].encoding is DType.BFLOAT16


def shard(source: Path, infix: str = "") -> list[str]:
    """The denoiser's weights in two files and an index."""
    weights = load_file(source / DENOISER)
    (source / DENOISER).unlink()
    names = sorted(weights)
    halves = [names[::2], names[1::2]]
    stem = f"diffusion_pytorch_model{infix}"
    files = [f"{stem}-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        save_file({name: weights[name] for name in half}, source / "denoiser" / file)
    index = {"metadata": {}, "weight_map": {name: file for file, half in zip(files, halves, strict=True) for name in half}}
    name = "diffusion_pytorch_model.safetensors.index" + (infix + ".json" if infix else ".json")
    (source / "denoiser" / name).write_text(json.dumps(index))
    return files


def test_shards_stay_shards(source: Path, tmp_path: Path) -> None:
    files, out = shard(source), tmp_path / "art"
    compile_pipeline(source, out)
    assert Artifact.open(out).manifest.components["denoiser"].weights == tuple(f"denoiser/{file}" for file in files)
    assert all((out / "denoiser" / file).read_bytes() == (source / "denoiser" / file).read_bytes() for file in files)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_variant_is_taken_under_its_own_names(source: Path, tmp_path: Path, sharded: bool) -> None:
    plain = {name: (source / name).read_bytes() for name in (ENCODER, DENOISER)}
    (source / ENCODER).rename(source / "encoder" / "model.fp16.safetensors")
    if sharded:
        expected = tuple(f"denoiser/{file}" for file in shard(source, ".fp16"))
    else:
        expected = ("denoiser/diffusion_pytorch_model.fp16.safetensors",)
        (source / DENOISER).rename(source / expected[0])
    for name in plain:
        (source / name).write_bytes(b"not these")
    compile_pipeline(source, tmp_path / "art", ExportOptions(variant="fp16"))
    manifest = Artifact.open(tmp_path / "art").manifest
    assert manifest.components["denoiser"].weights == expected
    assert manifest.components["encoder"].weights == ("encoder/model.fp16.safetensors",)


def test_no_parity_is_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module, "verify_component", lambda *_, **__: pytest.fail("compared"))
    compile_pipeline(source, tmp_path / "art", ExportOptions(parity=False))
    for spec in Artifact.open(tmp_path / "art").manifest.components.values():
        assert not spec.parity.checked
        assert not spec.parity.measurements


def test_force_replaces_an_artifact_and_only_that(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "art"
    first = compile_pipeline(source, out)
    with pytest.raises(ArtifactError, match="already there; pass --force"):
        compile_pipeline(source, out)
    assert Artifact.open(out).id == first
    second = compile_pipeline(source, out, ExportOptions(force=True, defaults={"num_inference_steps": 9}))
    assert Artifact.open(out).id == second != first
    with pytest.raises(ArtifactError, match="no artifact, so --force will not delete it"):
        compile_pipeline(source, source, ExportOptions(force=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "source"]


# ---- plan


def test_a_plan_is_the_exports_manifest_without_its_bytes(source: Path, tmp_path: Path) -> None:
    compile_pipeline(source, tmp_path / "art")
    sealed = Artifact.open(tmp_path / "art").manifest
    for name in (ENCODER, DENOISER):
        (source / name).unlink()
    before = snapshot(tmp_path)
    planned = plan_pipeline(source)
    assert snapshot(tmp_path) == before, "a plan writes nothing"
    assert planned.dims == sealed.dims
    assert planned.defaults == sealed.defaults
    assert planned.scheduler == sealed.scheduler
    assert list(planned.components) == list(sealed.components)
    for name, spec in planned.components.items():
        assert not spec.weights
        assert not spec.parity.checked
        assert spec.invariant_work == sealed.components[name].invariant_work
        for segment, graph in spec.graphs.items():
            other = sealed.components[name].graphs[segment]
            assert (graph.path, graph.inputs, graph.outputs, graph.parameters) == (
                other.path,
                other.inputs,
                other.outputs,
                other.parameters,
            )
            assert graph.parameter_bytes == 0


# ---- what is refused, with nothing left


def refused(source: Path, tmp_path: Path, kind: type[Exception], message: str, options: ExportOptions | None = None) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(kind, match=message):
        compile_pipeline(source, tmp_path / "deep" / "art", options)
    assert snapshot(tmp_path) == before


def no_scheduler(source: Path) -> None:
    shutil.rmtree(source / "scheduler")


def poison(value: float, name: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        weights = load_file(source / DENOISER)
        weights[name].view(-1)[3] = value
        save_file(weights, source / DENOISER)

    return change


def truncate(source: Path) -> None:
    file = source / DENOISER
    file.write_bytes(file.read_bytes()[:-7])


def drop_tensor(source: Path) -> None:
    weights = load_file(source / DENOISER)
    del weights["blocks.1.mix.bias"]
    save_file(weights, source / DENOISER)


def other_width(source: Path) -> None:
    edit(source / "denoiser" / "config.json", width=12)


def integers(source: Path) -> None:
    weights = load_file(source / DENOISER)
    weights["blocks.1.mix.bias"] = torch.zeros(8, dtype=torch.complex64)
    save_file(weights, source / DENOISER)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a class that is not supported": (
        lambda s: edit(s / "model_index.json", _class_name="StableDiffusionPipeline"),
        r"pipeline class StableDiffusionPipeline is unsupported; supported: FluxPipeline, ToyPipeline",
    ),
    "a missing folder": (lambda s: shutil.rmtree(s / "encoder"), r"encoder: missing; model_index.json names it as"),
    "a missing configuration": (lambda s: (s / "denoiser" / "config.json").unlink(), r"denoiser/config.json: missing"),
    "a component not named": (
        lambda s: edit(s / "model_index.json", denoiser=...), r"has no component 'denoiser'; it has: encoder, scheduler"),
    "missing weights": (lambda s: (s / DENOISER).unlink(), r"denoiser: no weights: expected"),
    "no scheduler": (no_scheduler, r"scheduler: missing"),
    "another scheduler": (
        lambda s: edit(s / "model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        r"scheduler DDIMScheduler is unsupported; supported: FlowMatchEulerDiscreteScheduler",
    ),
    "a scheduler option not obeyed": (
        lambda s: edit(s / "scheduler" / "scheduler_config.json", use_karras_sigmas=True),
        r"scheduler FlowMatchEulerDiscreteScheduler: .*use_karras_sigmas=True is not supported",
    ),
    "a scheduler option not known": (
        lambda s: edit(s / "scheduler" / "scheduler_config.json", sigma_magic=3), r"option sigma_magic=3 is unknown"),
    "truncated weights": (truncate, r"diffusion_pytorch_model.safetensors"),
    "a missing tensor": (drop_tensor, r"denoiser: 1 parameters are not in .*: blocks.1.mix.bias"),
    "another shape": (other_width, r"denoiser: \d+ tensors have another shape than .*: got \[8.*expected \[12"),
    "another type": (integers, r"'blocks.1.mix.bias' in diffusion_pytorch_model.safetensors: .*C64"),
    "NaN": (poison(float("nan"), "blocks.0.mix.weight"), r"tensor 'blocks.0.mix.weight' BF16\[8, 8\] holds NaN"),
    "infinity": (poison(float("inf"), "out.weight"), r"tensor 'out.weight' BF16\[4, 8\] holds infinity"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_source_is_refused_by_name_and_nothing_is_left(source: Path, tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    change(source)
    refused(source, tmp_path, CompileError, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(height=Range(8, 12, 16)), r"--height: 12 is not a multiple of 8; nearest are 8 and 16"),
        (ExportOptions(defaults={"height": 64}), r"--default-height 64 is outside what is compiled: 8..16 in steps of 8"),
        (ExportOptions(defaults={"width": 9}), r"--default-width 9 is outside"),
        (
            ExportOptions(defaults={"max_sequence_length": 9}),
            r"--default-max-sequence-length 9 is outside what is compiled: 2..8",
        ),
        *(
            (
                ExportOptions(defaults={"num_inference_steps": steps}),
                rf"--default-num-inference-steps {steps}: expected a whole number from 1 to 10000",
            )
            for steps in (0, 10_001, 2.0, True)
        ),
        (ExportOptions(defaults={"true_cfg_scale": math.nan}), r"--default-true-cfg-scale nan: expected a finite number"),
        (ExportOptions(defaults={"guidance_scale": math.inf}), r"--default-guidance-scale inf: expected a finite number"),
        (ExportOptions(defaults={"guidance_scale": "3"}), r"--default-guidance-scale 3: expected a finite number"),
        (ExportOptions(precision={"unet": "bf16"}), r"--precision names unet; the components are encoder, denoiser"),
        (
            ExportOptions(precision={"": "bf16"}, calibration_prompts=("a cat",)),
            r"--calibration-prompts are for int8, and no component is to be int8",
        ),
        (ExportOptions(variant="fp16"), r"no weights: .*fp16.*leave --variant out"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(source: Path, tmp_path: Path, options: ExportOptions, message: str) -> None:
    refused(source, tmp_path, CompileError, message, options)


def test_no_folder_and_no_pipeline(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path, CompileError, "is not there, expected a diffusers pipeline folder")
    refused(tmp_path, tmp_path, CompileError, "no model_index.json in it")


def test_a_graph_that_differs_from_eager_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = compile_module._traced

    def wrong(*arguments: Any) -> Any:
        made = traced(*arguments)
        if "rest" in made.models:
            layer = next(n for n in made.models["rest"].graph if n.op_type == "Linear")
            made.models["rest"].graph.insert_before(layer, negated := ir.Node("", "Neg", layer.inputs[:1], num_outputs=1))
            layer.replace_input_with(0, negated.outputs[0])
        return made

    monkeypatch.setattr(compile_module, "_traced", wrong)
    refused(source, tmp_path, ParityError, r"denoiser: noise_pred differs from eager PyTorch")


# ---- full disks, two at once, sudden death

DISK_CALLS = ("create", "write", "sync", "sync_folder", "make_folder", "rename")


class Counting:
    """Stands in for one function of `disk`: call number `fatal` acts instead; None counts alone."""

    def __init__(self, real: Callable[..., Any], fatal: int | None, act: Callable[[], None]) -> None:
        self.real, self.fatal, self.act, self.calls = real, fatal, act, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self.fatal:
            self.act()
        return self.real(*arguments)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", DISK_CALLS)
def test_a_full_disk_at_any_moment_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    quiet = ExportOptions(parity=False)
    real = getattr(disk, call)
    counter = Counting(real, None, full)
    monkeypatch.setattr(disk, call, counter)
    compile_pipeline(source, tmp_path / "whole", quiet)
    shutil.rmtree(tmp_path / "whole")
    before = snapshot(tmp_path)
    assert counter.calls >= {"create": 12, "write": 12, "sync": 12, "make_folder": 4}.get(call, 1)
    for fatal in range(1, counter.calls + 1):
        monkeypatch.setattr(disk, call, Counting(real, fatal, full))
        with pytest.raises(ArtifactError, match=r"No space left on device; nothing was written to .*art; free some space"):
            compile_pipeline(source, tmp_path / "art", quiet)
        assert snapshot(tmp_path) == before, f"{call} number {fatal}"


def test_no_write_goes_past_the_one_function(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    real = disk.write

    def count(handle: Any, data: Any) -> None:
        nonlocal written
        written += memoryview(data).nbytes
        real(handle, data)

    monkeypatch.setattr(disk, "write", count)
    compile_pipeline(source, tmp_path / "art")
    assert written == sum(p.stat().st_size for p in (tmp_path / "art").rglob("*") if p.is_file())


def test_a_second_export_to_the_same_output_fails_at_once(source: Path, tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "art") as writer:
        writer.write_bytes("a", b"b")
        phases: list[str] = []
        with pytest.raises(ArtifactError, match="art"):
            compile_pipeline(source, tmp_path / "art", progress=lambda *at: phases.append(at[1]))
        assert not phases, "before anything was traced"
        assert (writer.folder / "a").read_bytes() == b"b"


def test_of_two_exports_at_once_one_wins(source: Path, tmp_path: Path) -> None:
    compile_pipeline(source, tmp_path / "expected")
    expected = snapshot(tmp_path / "expected")
    inside, finish = threading.Event(), threading.Event()

    def pause(_component: str, phase: str) -> None:
        if phase == "seal":
            inside.set()
            finish.wait(60)

    first = threading.Thread(target=compile_pipeline, args=(source, tmp_path / "art"), kwargs={"progress": pause})
    first.start()
    assert inside.wait(60)
    with pytest.raises(ArtifactError):
        compile_pipeline(source, tmp_path / "art")
    finish.set()
    first.join()
    assert snapshot(tmp_path / "art") == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "expected", "source"]


def killed_at(moment: tuple[str, str], work: Callable[[Callable[[str, str], None]], object]) -> None:
    """Runs `work` in a forked process that dies when `moment` comes."""

    def die(*at: str) -> None:
        if at == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            work(die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "moment", [("encoder", "trace"), ("encoder", "weights"), ("denoiser", "weights"), ("artifact", "seal")], ids=" ".join
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "force"])
def test_a_killed_export_leaves_no_artifact_and_the_next_succeeds(
    source: Path, tmp_path: Path, moment: tuple[str, str], there: bool
) -> None:
    out = tmp_path / "art"
    options = ExportOptions(parity=False, force=there)
    expected = compile_pipeline(source, tmp_path / "expected", options)  # traced before the fork
    if there:
        before = compile_pipeline(source, out, ExportOptions(parity=False, defaults={"num_inference_steps": 9}))
    killed_at(moment, lambda progress: compile_pipeline(source, out, options, progress=progress))
    if there:
        assert Artifact.open(out).id == before
    else:
        assert not out.exists()
    assert compile_pipeline(source, out, options) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "expected", "source"]
    np.testing.assert_equal(snapshot(out), snapshot(tmp_path / "expected"))
