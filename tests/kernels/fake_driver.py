"""Runs calls of the launcher in a process whose libcuda.so.1 is the recording one (fake_libcuda.cpp)."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kernels.gpu_cases import CASES
from tests.kernels.gpu_reference import tensor_dtypes
from vitrify.engine import cubins, native_library
from vitrify.engine.dtypes import DType
from vitrify.kernels import registry
from vitrify.kernels.aot.description import HIDDEN_ARGUMENTS, Integer, Variant
from vitrify.kernels.aot.manifest import describe
from vitrify.kernels.aot.programs import programs
from vitrify.kernels.aot.resolve import ResolvedLaunch, grid, resolve
from vitrify.kernels.aot.tiles import built, tile

__all__ = [
    "STREAM",
    "call_of",
    "compile_fake",
    "expected",
    "image_of",
    "launches",
    "run",
    "structure_of",
    "surroundings",
    "tables",
    "write_manifest",
]

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
    while (more := library.vitrify_gpu_scratch(ctypes.c_void_p(gpu), ctypes.byref(call), len(scratch),
                                               ctypes.byref(name), ctypes.byref(size))) == 1:
        scratch[name.value.decode()] = size.value
    failed = more or library.vitrify_gpu_run(ctypes.c_void_p(gpu), ctypes.byref(call), ctypes.c_void_p(work["stream"]))
    answers.append(library.vitrify_error().decode() if failed else scratch)
library.vitrify_gpu_close(ctypes.c_void_p(gpu)) if gpu else None
print(json.dumps(answers))
"""


def compile_fake(folder: Path) -> Path:
    """Puts the recording libcuda.so.1 into `folder`."""
    source = Path(__file__).parent / "fake_libcuda.cpp"
    subprocess.run(["c++", "-std=c++17", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
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


def write_manifest(where: Path, chosen: tuple[Variant, ...]) -> None:
    images = {
        v.name: {
            **{name: image_of(v, name) for name in ("sm_80", "sm_89", "sm_90") if built(v, name)},
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
    fake: Path, folder: Path, calls: list[dict[str, Any]], tmp_path: Path, library: Path | None = None, **environment: str
) -> tuple[list[Any], list[dict[str, Any]]]:
    """What the library answers to each call, and what the driver was asked."""
    log = tmp_path / "log"
    log.write_text("")
    (tmp_path / "parameters").write_text(tables(calls))
    work = {"library": str(library or native_library.path()), "folder": str(folder), "calls": calls, "stream": STREAM}
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        input=json.dumps(work),
        env={**os.environ, **surroundings(fake, log, tmp_path / "parameters"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in log.read_text().splitlines()]


def surroundings(fake: Path, log: Path, parameters: Path) -> dict[str, str]:
    """The environment in which libcuda.so.1 is the recording one, an sm_80."""
    return {
        "FAKE_CUDA_LOG": str(log),
        "FAKE_CUDA_CAPABILITY": "8.0",
        "FAKE_CUDA_SHARED": str(163 * 1024),
        "FAKE_CUDA_PARAMETERS": str(parameters),
        "LD_LIBRARY_PATH": str(fake),
    }


def tables(calls: list[dict[str, Any]]) -> str:
    """What the images of these calls take, as the recording libcuda reads it."""
    rows: dict[str, str] = {}
    for call in calls:
        for launch in launches(call) if call["op"] in programs() else ():
            image = image_of(launch.variant, "sm_80")
            rows[launch.variant.name] = " ".join(f"{offset}:{size}" for offset, size in image.parameters)
    return "".join(f"{name} {row}\n" for name, row in rows.items())


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
