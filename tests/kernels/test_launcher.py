"""The launcher against a recording libcuda: every launch byte for byte, and what it refuses. Needs no GPU and no CUDA."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.fake_driver import call_of, compile_fake, expected, image_of, launches, run, write_manifest
from tests.kernels.gpu_cases import CASES
from tests.kernels.gpu_reference import tensor_dtypes
from vitrify.engine import cubins
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.kernels import registry
from vitrify.kernels.aot import cubin
from vitrify.kernels.aot.compile import compile_variant
from vitrify.kernels.aot.manifest import describe
from vitrify.kernels.aot.programs import programs, variants
from vitrify.kernels.aot.resolve import resolve, scratch_elements
from vitrify.kernels.aot.targets import arch
from vitrify.kernels.aot.tiles import tile


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recording libcuda.so.1."""
    return compile_fake(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant for sm_80, sm_89, sm_90 and as PTX; an image's text is its name."""
    where = tmp_path_factory.mktemp("cubins")
    write_manifest(where, variants())
    return where


def test_every_op_has_gpu_kernels_and_a_case() -> None:
    """But for those that lower the precision of float32 activations: on a GPU the activations themselves are of a lower one.
    And for convolutions, which a GPU's own libraries do well."""
    of_the_cpu = {
        contract.name
        for contract in registry.contracts()
        if contract.name.endswith(("Bf16", "Int8")) or registry.folder(contract.name) == "conv"
    }
    assert {contract.name for contract in registry.contracts()} - of_the_cpu == set(programs()) == set(CASES)


@pytest.mark.parametrize("op", sorted(programs()))
def test_launches_are_byte_for_byte_what_the_manifest_says(fake: Path, folder: Path, op: str, tmp_path: Path) -> None:
    call = call_of(op, DType.BFLOAT16)
    (scratch,), asked = run(fake, folder, [call], tmp_path)
    assert [row for row in asked if row["call"] == "launch"] == expected(call)
    program, case = programs()[op], CASES[op]
    sizes = {name: 2 if dtype != DType.FLOAT32 else 4 for name, dtype in tensor_dtypes(op, DType.BFLOAT16).items()}
    assert scratch == {n: count * sizes[n] for n, count in scratch_elements(program, case.dims, case.attributes).items()}


def test_an_image_is_loaded_once_and_gets_its_shared_memory(fake: Path, folder: Path, tmp_path: Path) -> None:
    call = call_of("QkNormRope", DType.FLOAT16)
    _answers, asked = run(fake, folder, [call, call], tmp_path)
    (launch,) = launches(call)
    assert asked == [
        {"call": "load", "image": f"{launch.variant.name}.sm_80"[:40]},
        {"call": "attribute", "entry": "qk_norm_rope", "attribute": 8, "value": 512},
        *expected(call),
        *expected(call),
    ]


@pytest.mark.parametrize(
    ("capability", "file"),
    [("8.0", "sm_80"), ("8.6", "sm_80"), ("8.7", "sm_80"), ("8.9", "sm_89"), ("9.0", "sm_90"), ("10.3", "ptx"), ("12.0", "ptx")],
)
def test_a_gpu_gets_its_own_image_or_one_that_runs_there(
    fake: Path, folder: Path, capability: str, file: str, tmp_path: Path
) -> None:
    call = call_of("TaylorPredict1", DType.FLOAT16)
    _answers, asked = run(fake, folder, [call], tmp_path, FAKE_CUDA_CAPABILITY=capability)
    assert asked[0] == {"call": "load", "image": f"taylor_predict_1-float16.{file}"}


def test_an_empty_tensor_launches_nothing(fake: Path, folder: Path, tmp_path: Path) -> None:
    call = call_of("TaylorPredict1", DType.FLOAT16)
    call["numbers"]["tokens"] = 0
    answers, asked = run(fake, folder, [call], tmp_path)
    assert (answers, [row for row in asked if row["call"] == "launch"]) == ([{}], [])


# ---- a real cubin: what it takes is read from itself


def test_a_compiled_image_takes_what_the_launcher_packs(fake: Path, tmp_path: Path) -> None:
    variant = next(v for v in variants() if v.name == "taylor_update_2-bfloat16")
    sizes = tile(variant, "sm_80")
    compiled = compile_variant(variant, arch("sm_80"), sizes)
    image = dataclasses.replace(image_of(variant, "sm_80"), bytes=len(compiled.cubin), entry=compiled.entry)
    (tmp_path / image.file).write_bytes(compiled.cubin)
    manifest = describe("triton", {variant.name: {"sm_80": image}}, [variant])
    (tmp_path / cubins.MANIFEST).write_bytes(manifest.canonical_bytes())
    row = " ".join(f"{p.offset}:{p.size}" for p in cubin.read(compiled.cubin).parameters)
    (tmp_path / "table").write_text(f"{compiled.entry} {row}\n")
    call = call_of("TaylorUpdate2", DType.BFLOAT16)
    answers, asked = run(fake, tmp_path, [call], tmp_path, FAKE_CUDA_PARAMETERS=str(tmp_path / "table"))
    assert answers == [{}]
    assert asked[-1:] == expected(call)


# ---- what is refused, in words


def refused(fake: Path, folder: Path, call: dict[str, Any], tmp_path: Path, **environment: str) -> str:
    """The message; nothing may have been launched."""
    (message,), asked = run(fake, folder, [call], tmp_path, **environment)
    assert isinstance(message, str), message
    assert not [row for row in asked if row["call"] == "launch"]
    return message


def test_without_a_driver_that_is_said(folder: Path, tmp_path: Path) -> None:
    call = call_of("TaylorPredict1", DType.FLOAT16)
    message = refused(tmp_path, folder, call, tmp_path)  # A folder without a libcuda.
    assert message.startswith("no NVIDIA driver: libcuda.so.1: cannot open shared object file")
    assert message.endswith("install one, or run on the CPU")


def test_a_driver_that_is_too_old_is_said(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "old.cpp"
    source.write_text('extern "C" int cuInit(unsigned) { return 0; }\n')
    subprocess.run(["c++", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
    message = refused(tmp_path, folder, call_of("TaylorPredict1", DType.FLOAT16), tmp_path)
    assert message == "libcuda.so.1 has no cuGetErrorName: the NVIDIA driver must be 550 (CUDA 12.4) or newer"


@pytest.mark.parametrize("name", ["cuInit", "cuCtxGetCurrent", "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"])
def test_a_call_that_fails_is_named(fake: Path, folder: Path, name: str, tmp_path: Path) -> None:
    message = refused(fake, folder, call_of("TaylorPredict1", DType.FLOAT16), tmp_path, FAKE_CUDA_FAIL=name)
    assert message == f"{name} failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)"


def test_a_thread_without_a_context_is_said(fake: Path, folder: Path, tmp_path: Path) -> None:
    call = call_of("TaylorPredict1", DType.FLOAT16)
    assert refused(fake, folder, call, tmp_path, FAKE_CUDA_NO_CONTEXT="1") == "the calling thread has no CUDA context"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("0:8 8:8 16:8 24:4 32:8 40:8", "takes another parameter 6 than the manifest says"),
        ("0:8 8:8 16:8 24:8 32:8 40:8 48:8", "takes another parameter 3 than the manifest says"),
        ("0:8 8:8 16:8 24:4 32:8 40:8 48:8 56:8", "takes more parameters than the manifest says"),
    ],
)
def test_a_manifest_that_lies_about_an_images_parameters_is_refused(
    fake: Path, folder: Path, table: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "table").write_text(f"taylor_predict {table}\n")
    call = call_of("TaylorPredict1", DType.FLOAT16)
    said = refused(fake, folder, call, tmp_path, FAKE_CUDA_PARAMETERS=str(tmp_path / "table"))
    assert said == f"kernel taylor_predict_1: taylor_predict_1-float16.sm_80 {message}; run: vitrify kernels build"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "Nonsense"}, "Nonsense: no GPU kernels were built for it"),
        ({"version": 2}, "TaylorPredict1: the GPU kernels are of version 1, expected 2"),
        ({"activation": "float64"}, "kernel taylor_predict_1: no variant of taylor_predict_1 was built for float64"),
        ({"numbers": {"batch": 1, "tokens": 1, "width": 31}}, "elements is 31, its kernel takes multiples of 16"),
        ({"numbers": {"batch": 1, "tokens": 1 << 30, "width": 16}}, "elements is 17179869184, beyond int32"),
        ({"numbers": {"batch": 1, "tokens": 1}}, "expression 'batch * tokens * width': name 'width' is unknown"),
        ({"tensors": {"f0": 0, "f1": 0, "y": 0}}, "ahead is given 'ahead', no tensor of the op"),
        ({"tensors": {"f0": 0, "f1": 8, "y": 0, "ahead": 0}}, "f1 is not aligned to 16 bytes"),
    ],
)
def test_a_call_that_no_kernel_takes_is_named(
    fake: Path, folder: Path, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refused(fake, folder, {**call_of("TaylorPredict1", DType.FLOAT16), **change}, tmp_path)


def test_a_head_that_was_not_compiled_is_named(fake: Path, folder: Path, tmp_path: Path) -> None:
    call = call_of("FusedAttention", DType.BFLOAT16)
    call["numbers"]["num_heads"] = 4
    message = refused(fake, folder, call, tmp_path)
    assert "no variant of attention was built for bfloat16" in message
    assert "HEAD_DIM=16" in message


@pytest.mark.parametrize("op", ["FusedAttention", "FusedAttentionBias"])
def test_attention_without_keys_is_named(fake: Path, folder: Path, op: str, tmp_path: Path) -> None:
    """It would divide by a sum of nothing. With no queries either nothing is launched, and nothing is wrong."""
    call = call_of(op, DType.BFLOAT16)
    call["numbers"]["keys"] = 0
    assert "keys is 0, its kernel takes 1 or more" in refused(fake, folder, call, tmp_path)
    call["numbers"]["tokens"] = 0
    _answers, asked = run(fake, folder, [call], tmp_path)
    assert not [row for row in asked if row["call"] == "launch"]


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("GatedResidual", {"gate_at": 144}, "gate_at + width is 208, expected at most 192 (columns)"),
        ("GatedResidual", {"gate_at": -16}, "gate_at is -16, its kernel takes 0 or more"),
        ("GatedResidual", {"gate_at": 2**63 - 1}, "expression 'gate_at + width': a number beyond 64 bits"),
        ("AdaLayerNorm", {"factor_at": 144}, "factor_at + width is 208, expected at most 192 (columns)"),
        ("AdaRMSNorm", {"shift_at": 144}, "shift_at + width is 208, expected at most 192 (columns)"),
        ("LinearGatedResidual", {"gate_at": 64}, "gate_at + out is 112, expected at most 96 (columns)"),
        ("Linear2GatedResidual", {"columns": 80}, "gate_at + out is 96, expected at most 80 (columns)"),
        ("FusedAttentionBias", {"heads": 1}, "heads is 1, expected 2 (num_heads)"),
        ("FusedAttentionNormRotary", {"head_dim": 16}, "head_dim is 16, expected 32 (width / num_heads)"),
        ("FusedAttention2NormRotary", {"half": 8}, "2 * half is 16, expected 32 (head_dim)"),
        ("QkNormRope", {"num_heads": 0}, "expression 'width / num_heads': 64 / 0 is no whole number"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(
    fake: Path, folder: Path, op: str, change: dict[str, int], message: str, tmp_path: Path
) -> None:
    """A kernel would read beyond a tensor's end; both readers of the description say so."""
    call = call_of(op, DType.BFLOAT16)
    call["numbers"].update(change)
    assert message in refused(fake, folder, call, tmp_path)
    if "expected" in message:
        dims, attributes = (
            {k: call["numbers"].get(k, v) for k, v in known.items()} for known in (CASES[op].dims, CASES[op].attributes)
        )
        with pytest.raises(SpecError, match=re.escape(message)):
            resolve(programs()[op], DType.BFLOAT16, dims, attributes)


def test_scratch_beyond_64_bits_is_named(fake: Path, folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / cubins.MANIFEST).read_bytes())
    data["programs"]["ResidualDiff"]["scratch"][0]["elements"] = str(2**62)
    (tmp_path / cubins.MANIFEST).write_text(json.dumps(data))
    message = refused(fake, tmp_path, call_of("ResidualDiff", DType.BFLOAT16), tmp_path)
    assert message == f"ResidualDiff, scratch partial: a size of {2**62} elements"


def test_too_little_shared_memory_is_named(fake: Path, folder: Path, tmp_path: Path) -> None:
    call = call_of("TaylorPredict1", DType.FLOAT16)
    message = refused(fake, folder, call, tmp_path, FAKE_CUDA_SHARED="511")
    assert message == "taylor_predict_1-float16: needs 512 bytes of shared memory, this GPU gives a block 511"


def _kernel(data: dict[str, Any]) -> dict[str, Any]:
    return data["kernels"]["taylor_predict_1"]


def _image(data: dict[str, Any]) -> dict[str, Any]:
    return _kernel(data)["variants"]["taylor_predict_1-float16"]["images"]["sm_80"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: _image(data)["parameters"].pop(), "its 6 parameters are not those of the kernel's arguments"),
        (lambda data: _image(data)["parameters"][3].__setitem__(1, 8), "its 7 parameters are not those of the kernel's"),
        (lambda data: _kernel(data)["arguments"].pop(), "parameters are not those of the kernel's arguments"),
        (lambda data: _image(data).update(file="../x"), "file '../x' is no plain name"),
        (lambda data: _image(data).update(num_warps=33), "num_warps is 33, expected 1 to 32"),
        (lambda data: _image(data).update(num_warps="4"), "num_warps is a string, expected an integer"),
        (lambda data: _image(data).pop("entry"), "has no field 'entry'"),
        (lambda data: _kernel(data).update(grid=["1"] * 4), "a grid has one to three sizes"),
        (lambda data: data.update(format=9), "format 9, this library reads 3"),
        (lambda data: data["kernels"].pop("taylor_predict_1"), "launches 'taylor_predict_1', which is no kernel of it"),
        (lambda data: _kernel(data).update(arguments=[], hidden=[]), "kernel taylor_predict_1: a kernel without arguments"),
        (lambda data: data["programs"]["Linear"].update(launches=[]), "program Linear: a program without launches would leave"),
        (lambda data: data["programs"]["QkNormRope"]["conditions"][0].update(relation="<"), "relation '<', expected <= or ="),
        (lambda data: data["programs"]["QkNormRope"].pop("conditions"), "has no field 'conditions'"),
    ],
)
def test_a_manifest_that_is_not_sound_is_refused_when_opened(
    fake: Path, folder: Path, change: Callable[[Any], object], message: str, tmp_path: Path
) -> None:
    data = json.loads((folder / cubins.MANIFEST).read_bytes())
    change(data)
    (tmp_path / cubins.MANIFEST).write_text(json.dumps(data))
    (answer,), asked = run(fake, tmp_path, [], tmp_path)
    assert answer.startswith(str(tmp_path / cubins.MANIFEST))
    assert message in answer
    assert asked == []


def test_a_manifest_that_is_a_folder_is_refused(fake: Path, tmp_path: Path) -> None:
    (tmp_path / cubins.MANIFEST).mkdir()
    (answer,), _asked = run(fake, tmp_path, [], tmp_path)
    assert answer == f"{tmp_path / cubins.MANIFEST} cannot be read; run: vitrify kernels build"


@pytest.mark.parametrize("text", ["", "{", '{"a":1}{', "[" * 100, '{"format":1,"format":1}', '{"format":1e400}', '"\\u0041"'])
def test_what_is_no_json_is_refused(fake: Path, text: str, tmp_path: Path) -> None:
    (tmp_path / cubins.MANIFEST).write_text(text)
    (answer,), _asked = run(fake, tmp_path, [], tmp_path)
    assert "manifest.json: no JSON at byte" in answer


def test_without_a_build_the_command_is_named(fake: Path, tmp_path: Path) -> None:
    (answer,), _asked = run(fake, tmp_path, [], tmp_path)
    assert answer.endswith("manifest.json cannot be read; run: vitrify kernels build")


def test_an_image_that_is_missing_or_cut_short_is_named(fake: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / cubins.MANIFEST).write_bytes((folder / cubins.MANIFEST).read_bytes())
    call = call_of("TaylorPredict1", DType.FLOAT16)
    assert "taylor_predict_1-float16.sm_80 cannot be read" in refused(fake, tmp_path, call, tmp_path)
    (tmp_path / "taylor_predict_1-float16.sm_80").write_text("short")
    assert "has 5 bytes, the manifest says 30" in refused(fake, tmp_path, call, tmp_path)
