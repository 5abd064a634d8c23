"""The launcher against a recording libcuda: every launch byte for byte, and what it refuses. Needs no GPU and no CUDA."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.gpu_cases import CASES
from tests.kernels.gpu_reference import tensor_dtypes
from vitrify.engine import cubins, native_library
from vitrify.engine.dtypes import DType
from vitrify.kernels import registry
from vitrify.kernels.aot import cubin
from vitrify.kernels.aot.compile import compile_variant
from vitrify.kernels.aot.description import HIDDEN_ARGUMENTS, Integer, Variant
from vitrify.kernels.aot.manifest import describe
from vitrify.kernels.aot.programs import programs, variants
from vitrify.kernels.aot.resolve import ResolvedLaunch, grid, resolve, scratch_elements
from vitrify.kernels.aot.targets import arch
from vitrify.kernels.aot.tiles import tile

HERE = Path(__file__).parent
STREAM = 0x5EED0

# Runs calls (standard input, JSON) through the library, in a process whose libcuda is the recording one.
PROGRAM = """
import ctypes, json, sys
work = json.load(sys.stdin)
library = ctypes.CDLL(work["library"])
library.vitrify_gpu_open.restype = ctypes.c_void_p
library.vitrify_error.restype = ctypes.c_char_p
class Call(ctypes.Structure):
    _fields_ = [("op", ctypes.c_char_p), ("version", ctypes.c_int64), ("activation", ctypes.c_char_p)] + [
        (name, kind) for part in ("number", "real", "tensor")
        for name, kind in ((part + "_count", ctypes.c_int), (part + "_names", ctypes.c_void_p), (part + "s", ctypes.c_void_p))]
def array(kind, values):
    return (kind * max(len(values), 1))(*values)
gpu = library.vitrify_gpu_open(work["folder"].encode())
answers = [] if gpu else [library.vitrify_error().decode()]
for given in work["calls"] if gpu else ():
    call = Call(given["op"].encode(), given["version"], given["activation"].encode())
    kept = []
    for part, kind in (("number", ctypes.c_int64), ("real", ctypes.c_double), ("tensor", ctypes.c_void_p)):
        pairs = given[part + "s"]
        kept += [array(ctypes.c_char_p, [name.encode() for name in pairs]), array(kind, list(pairs.values()))]
        setattr(call, part + "_count", len(pairs))
        setattr(call, part + "_names", ctypes.addressof(kept[-2]))
        setattr(call, part + "s", ctypes.addressof(kept[-1]))
    scratch, name, size = {}, ctypes.c_char_p(), ctypes.c_int64()
    while library.vitrify_gpu_scratch(ctypes.c_void_p(gpu), ctypes.byref(call), len(scratch),
                                      ctypes.byref(name), ctypes.byref(size)) == 1:
        scratch[name.value.decode()] = size.value
    done = library.vitrify_gpu_run(ctypes.c_void_p(gpu), ctypes.byref(call), ctypes.c_void_p(work["stream"]))
    answers.append(library.vitrify_error().decode() if done else scratch)
library.vitrify_gpu_close(ctypes.c_void_p(gpu)) if gpu else None
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recording libcuda.so.1."""
    folder = tmp_path_factory.mktemp("fake")
    words = ["c++", "-std=c++17", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(HERE / "fake_libcuda.cpp")]
    subprocess.run(words, check=True)
    return folder


def image_of(variant: Variant, arch_name: str, shared_bytes: int = 512) -> cubins.Image:
    """As if compiled: the parameters lie as in a C structure."""
    sizes = tile(variant, arch_name)
    structure = structure_of(variant)
    fields = [(getattr(structure, name).offset, getattr(structure, name).size) for name, _kind in structure._fields_]
    name = f"{variant.name}.{arch_name}"
    return cubins.Image(
        file=name,
        bytes=len(name),
        sha256="",
        entry=variant.kernel.function.split(":")[1],
        tile=sizes.sizes,
        num_warps=sizes.num_warps,
        num_stages=sizes.num_stages,
        shared_bytes=shared_bytes,
        parameters=tuple(fields),
    )


def structure_of(variant: Variant) -> type[ctypes.Structure]:
    """The parameters as C lays them out."""
    visible = [(p.name, ctypes.c_int32 if isinstance(p, Integer) else ctypes.c_void_p) for p in variant.kernel.parameters]
    hidden = [(name, ctypes.c_void_p) for name in HIDDEN_ARGUMENTS]
    return type("Parameters", (ctypes.Structure,), {"_fields_": visible + hidden})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant for sm_80, sm_89, sm_90 and as PTX; an image's text is its name."""
    where = tmp_path_factory.mktemp("cubins")
    write_manifest(where, variants())
    return where


def write_manifest(where: Path, chosen: tuple[Variant, ...]) -> None:
    images = {
        v.name: {
            **{name: image_of(v, name) for name in ("sm_80", "sm_89", "sm_90")},
            "sm_80_ptx": dataclasses.replace(image_of(v, "sm_80"), file=f"{v.name}.ptx", bytes=len(f"{v.name}.ptx")),
        }
        for v in chosen
    }
    for of_variant in images.values():
        for image in of_variant.values():
            (where / image.file).write_text(image.file)
    (where / cubins.MANIFEST).write_bytes(describe("none", images, chosen).canonical_bytes())


def call_of(op: str, activation: DType, **changes: Any) -> dict[str, Any]:
    case = CASES[op]
    numbers = {**case.dims, **{k: v for k, v in case.attributes.items() if isinstance(v, int)}}
    names = tensor_dtypes(op, activation)
    return {
        "op": op,
        "version": registry.contract(op).version,
        "activation": activation.value,
        "numbers": numbers,
        "reals": {k: v for k, v in case.attributes.items() if isinstance(v, float)},
        "tensors": {name: 0x7F0000000000 + 4096 * i for i, name in enumerate(names)},
        **changes,
    }


def run(
    fake: Path, folder: Path, calls: list[dict[str, Any]], tmp_path: Path, **environment: str
) -> tuple[list[Any], list[dict[str, Any]]]:
    """What the library answers to each call, and what the driver was asked."""
    log = tmp_path / "log"
    log.write_text("")
    if "FAKE_CUDA_PARAMETERS" not in environment:
        rows: dict[str, str] = {}
        for call in calls:
            for launch in launches(call) if call["op"] in programs() else ():
                image = image_of(launch.variant, "sm_80")
                rows[image.entry] = " ".join(f"{offset}:{size}" for offset, size in image.parameters)
        (tmp_path / "parameters").write_text("".join(f"{entry} {row}\n" for entry, row in rows.items()))
    defaults = {
        "FAKE_CUDA_LOG": str(log),
        "FAKE_CUDA_CAPABILITY": "8.0",
        "FAKE_CUDA_SHARED": str(163 * 1024),
        "FAKE_CUDA_PARAMETERS": str(tmp_path / "parameters"),
        "LD_LIBRARY_PATH": str(fake),
    }
    work = {"library": str(native_library.path()), "folder": str(folder), "calls": calls, "stream": STREAM}
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        input=json.dumps(work),
        env={**os.environ, **defaults, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in log.read_text().splitlines()]


def launches(call: Mapping[str, Any]) -> tuple[ResolvedLaunch, ...]:
    """What the manifest's Python reader makes of a call."""
    case = CASES[call["op"]]
    return resolve(programs()[call["op"]], DType(call["activation"]), case.dims, case.attributes)


def expected(call: Mapping[str, Any], arch_name: str = "sm_80") -> list[dict[str, Any]]:
    """The launches that the driver must be asked for, parameters packed by ctypes."""
    found = []
    for launch in launches(call):
        values = [call["tensors"][a] if isinstance(a, str) else a for a in launch.arguments]
        sizes = tile(launch.variant, arch_name)
        found.append(
            {
                "call": "launch",
                "entry": launch.variant.kernel.function.split(":")[1],
                "grid": list(grid(launch, sizes.sizes)),
                "block": [32 * sizes.num_warps, 1, 1],
                "shared": 512,
                "stream": STREAM,
                "parameters": bytes(structure_of(launch.variant)(*values)).hex(),
            }
        )
    return found


def test_every_op_has_gpu_kernels_and_a_case() -> None:
    assert {contract.name for contract in registry.contracts()} == set(programs()) == set(CASES)


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
        (lambda data: data.update(format=9), "format 9, this library reads 1"),
        (lambda data: data["kernels"].pop("taylor_predict_1"), "launches 'taylor_predict_1', which is no kernel of it"),
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
