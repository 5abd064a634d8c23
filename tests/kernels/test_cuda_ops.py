"""The CUDA ops as ONNX Runtime calls them, against a recording libcuda: no GPU, no CUDA, no ONNX Runtime for CUDA is needed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.fake_driver import STREAM, call_of, compile_fake, expected, surroundings, tables, write_manifest
from tests.kernels.gpu_cases import CASES
from tests.kernels.gpu_reference import tensor_dtypes
from tests.kernels.op_models import one_op_model
from vitrify.engine import cubins, native_library
from vitrify.engine.dtypes import DType
from vitrify.kernels import registry
from vitrify.kernels.aot.programs import programs, variants
from vitrify.kernels.aot.resolve import scratch_elements

CUDA = "CUDAExecutionProvider"
SCRATCH = 0x5C0000000000
HOST = Path(__file__).parent / "ort_host.py"


@dataclasses.dataclass(frozen=True)
class Installation:
    """library: a copy of the op library, with every variant's images in `cubins` beside it. fake: the libcuda's folder."""

    library: Path
    fake: Path

    def run(self, calls: list[dict[str, Any]], tmp_path: Path, **environment: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What ort_host.py says, and what the driver was asked."""
        log, parameters = tmp_path / "log", tmp_path / "parameters"
        log.write_text("")
        parameters.write_text(tables([call["launcher"] for call in calls if call["launcher"]]))
        work = {"library": str(self.library), "stream": STREAM, "calls": calls}
        done = subprocess.run(
            [sys.executable, "-S", str(HOST)],
            input=json.dumps(work),
            env={**os.environ, **surroundings(self.fake, log, parameters), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("native")
    file = native_library.path()
    assert file is not None
    library = Path(shutil.copy(file, folder))
    (folder / "cubins").mkdir()
    write_manifest(folder / "cubins", variants())
    return Installation(library, compile_fake(tmp_path_factory.mktemp("fake")))


def node(op: str, activation: DType) -> dict[str, Any]:
    """A node as ONNX Runtime runs it; `launcher`: the launcher's call that must come of it."""
    contract, case = registry.contract(op), CASES[op]
    call = call_of(op, activation)
    for i, scratch in enumerate(programs()[op].scratch):
        call["tensors"][scratch.name] = SCRATCH + (i << 20)
    dtypes = tensor_dtypes(op, activation)
    return {
        "op": op,
        "provider": CUDA,
        "inputs": {t.name: [dtypes[t.name].value, t.resolve(case.dims), call["tensors"][t.name]] for t in contract.inputs},
        "outputs": {t.name: [dtypes[t.name].value, call["tensors"][t.name]] for t in contract.outputs},
        "attributes": dict(case.attributes),
        "launcher": call,
    }


@pytest.mark.parametrize("op", sorted(CASES))
def test_a_node_becomes_launches_on_the_runtimes_stream(installation: Installation, op: str, tmp_path: Path) -> None:
    contract, case = registry.contract(op), CASES[op]
    call = node(op, DType.BFLOAT16)
    said, asked = installation.run([call], tmp_path)
    dtypes = tensor_dtypes(op, DType.BFLOAT16)
    assert said["answers"] == [[[dtypes[t.name].value, list(t.resolve(case.dims))] for t in contract.outputs]]
    assert [row for row in asked if row["call"] == "launch"] == expected(call["launcher"])
    sizes = scratch_elements(programs()[op], case.dims, case.attributes)
    allocated = [{"call": "allocate", "bytes": n * dtypes[name].itemsize, "stream": STREAM} for name, n in sizes.items()]
    freed = [{"call": "free", "address": SCRATCH + (i << 20), "stream": STREAM} for i in range(len(sizes))]
    assert [row for row in asked if row["call"] == "allocate"] == allocated
    assert asked[len(asked) - len(freed) :] == freed


Signature = tuple[str, tuple[str, ...], tuple[str, ...]]


def registered(said: dict[str, Any]) -> list[Signature]:
    """What the library gave ONNX Runtime for CUDA: op, the inputs' and the outputs' dtypes."""
    return sorted((op, tuple(taken), tuple(given)) for op, taken, given in said["registered"])


def on_gpu(op: str, activation: DType) -> Signature:
    contract, dtypes = registry.contract(op), tensor_dtypes(op, activation)
    taken, given = (tuple(dtypes[t.name].value for t in tensors) for tensors in (contract.inputs, contract.outputs))
    return op, taken, given


def on_cpu(op: str) -> list[Signature]:
    contract = registry.contract(op)
    choices = itertools.product(*(contract.dtypes.get(t.name, (t.dtype,)) for t in contract.inputs))
    return [(op, tuple(d.value for d in taken), tuple(t.dtype.value for t in contract.outputs)) for taken in choices]


def bare(signature: Signature) -> dict[str, Any]:
    """A node of these dtypes whose kernel is made, and no more."""
    op, taken, given = signature
    return {
        "op": op,
        "provider": CUDA,
        "inputs": {str(i): [dtype, [], 0] for i, dtype in enumerate(taken)},
        "outputs": {str(i): [dtype, 0] for i, dtype in enumerate(given)},
        "attributes": {},
        "launcher": None,
    }


BUILT = sorted(on_gpu(op, dtype) for op in CASES for dtype in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32))
ALL = sorted(signature for contract in registry.contracts() for signature in on_cpu(contract.name))
REFUSED = [signature for signature in ALL if signature not in BUILT]
"""Dtypes that an op has on the CPU and not on a GPU."""


def test_every_op_is_registered_for_every_dtype_of_its_kernels(installation: Installation, tmp_path: Path) -> None:
    """And for those of the CPU, which ONNX Runtime would else run there without a word."""
    said, asked = installation.run([], tmp_path)
    assert registered(said) == sorted(BUILT + REFUSED)
    assert (said["failed"], said["gpu"], asked) == ("", "", [])


def test_what_has_no_gpu_kernel_is_refused_before_the_session_opens(installation: Installation, tmp_path: Path) -> None:
    said, asked = installation.run([bare(signature) for signature in REFUSED], tmp_path)
    assert {op for op, _taken, _given in REFUSED} >= {c.name for c in registry.contracts() if c.name not in CASES}
    for (op, taken, _given), message in zip(REFUSED, said["answers"], strict=True):
        why = message.removeprefix(f"{op} (node): has no kernel for CUDAExecutionProvider: ")
        assert why != message
        assert why.endswith("; or open the session on CPUExecutionProvider")
        if registry.folder(op) == "conv":
            assert why.startswith('it has kernels for the CPU alone; kernels="portable" runs its function body; or')
        elif op.endswith(("Bf16", "Int8")):
            assert why.startswith("it rounds float32 activations, which the CPU's kernels alone do; export with --precision fp32")
        else:
            weight = taken[[t.name for t in registry.contract(op).inputs].index("weight")]
            assert why.startswith("it was built for float16, bfloat16, float32 throughout, and here x")
            assert f"weight is {weight}, " in why
    assert asked == []


def test_onnx_runtime_takes_the_ops_of_both_providers(installation: Installation, tmp_path: Path) -> None:
    """Its own registration, merging what an op takes on each; nodes on the CPU run as without a GPU."""
    ops = [contract.name for contract in registry.contracts()]
    weights = {"weight": np.ones((3, 4), np.float32), "weight_scale": np.ones(3, np.float32)}
    for op in ops:
        names = {t.name for t in registry.contract(op).inputs}
        made = {name: array for name, array in weights.items() if name in names}
        if op.endswith("Int8"):
            made["weight"] = made["weight"].astype(np.int8)
        elif "x_0" in names:
            made["weight"] = np.ones((3, 4), ml_dtypes.bfloat16)
        elif registry.folder(op) == "conv":
            made["weight"] = np.ones((3, 4, 3, 3), np.float32)
        (tmp_path / f"{op}.onnx").write_bytes(one_op_model(op, constants=made, with_body=False).SerializeToString())
    program = (
        "import sys, numpy, onnxruntime\n"
        "options = onnxruntime.SessionOptions()\n"
        "options.register_custom_ops_library(sys.argv[1])\n"
        "for op in sys.argv[2:]:\n"
        "    opened = onnxruntime.InferenceSession(f'{op}.onnx', options, providers=['CPUExecutionProvider'])\n"
        "x, bias = numpy.ones((1, 2, 4), numpy.float32), numpy.ones(3, numpy.float32)\n"
        "for op in ('Linear', 'LinearBf16'):\n"
        "    opened = onnxruntime.InferenceSession(f'{op}.onnx', options, providers=['CPUExecutionProvider'])\n"
        "    print(opened.run(None, {'x': x, 'bias': bias})[0].tolist())\n"
    )
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", program, str(installation.library), *ops],
        env={**os.environ, **surroundings(installation.fake, log, log)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str([[[5.0] * 3] * 2])] * 2
    assert not log.exists()


def test_a_partial_build_refuses_the_rest(installation: Installation, tmp_path: Path) -> None:
    """The outputs' dtype counts too: those that TaylorPredict1 takes are float32 whatever it gives."""
    (tmp_path / "cubins").mkdir()
    write_manifest(tmp_path / "cubins", tuple(v for v in variants() if v.name == "taylor_predict_1-bfloat16"))
    partial = dataclasses.replace(installation, library=Path(shutil.copy(installation.library, tmp_path)))
    calls = [bare(on_cpu(op)[0]) for op in ("TaylorPredict1", "GatedResidual")]
    said, _asked = partial.run(calls, tmp_path)
    assert registered(said) == sorted([on_gpu("TaylorPredict1", DType.BFLOAT16), *ALL])
    assert "it was built for bfloat16 throughout, and here f0 is float32" in said["answers"][0]
    assert "y is float32; or open" in said["answers"][0]
    assert "no GPU kernels of version 1 were built for it; run: vitrify kernels build" in said["answers"][1]


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32])
def test_the_dtype_of_the_activations_picks_the_kernels(installation: Installation, dtype: DType, tmp_path: Path) -> None:
    call = node("LinearGatedResidual", dtype)
    _said, asked = installation.run([call], tmp_path)
    assert asked[0] == {"call": "load", "image": f"linear_gated_residual-{dtype.value}.sm_80"[:40]}
    assert asked[2:] == expected(call["launcher"])


def test_scratch_is_freed_when_a_launch_fails(installation: Installation, tmp_path: Path) -> None:
    said, asked = installation.run([node("FusedAttentionNormRotary", DType.FLOAT16)], tmp_path, FAKE_CUDA_FAIL="cuLaunchKernel")
    assert said["answers"] == ["FusedAttentionNormRotary (node): cuLaunchKernel failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)"]
    assert [row["call"] for row in asked if row["call"] in ("allocate", "free")] == ["allocate", "allocate", "free", "free"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda call: call["inputs"]["q"][1].pop(), "q has rank 2, expected 3"),
        (lambda call: call["inputs"]["v"][1].__setitem__(1, 7), "v has 7 along keys, expected 123"),
        (lambda call: call["attributes"].pop("num_heads"), "attribute num_heads is missing"),
        (lambda call: call["attributes"].update(num_heads=4), "no variant of attention was built for bfloat16"),
        (lambda call: call["inputs"]["k"].__setitem__(2, 8), "k is not aligned to 16 bytes"),
    ],
)
def test_what_no_kernel_takes_is_named(installation: Installation, change: Any, message: str, tmp_path: Path) -> None:
    call = node("FusedAttention", DType.BFLOAT16)
    for row in call["inputs"].values():
        row[1] = list(row[1])
    change(call)
    said, asked = installation.run([call], tmp_path)
    assert said["answers"][0].startswith("FusedAttention (node): ")
    assert message in said["answers"][0]
    assert [row for row in asked if row["call"] == "launch"] == []


def test_without_a_driver_the_ops_are_those_of_the_cpu(installation: Installation, tmp_path: Path) -> None:
    said, _asked = installation.run([], tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert (said["registered"], said["failed"]) == ([], "")
    assert said["gpu"].startswith("no NVIDIA driver: libcuda.so.1: cannot open shared object file")


def test_without_a_build_the_command_is_named(installation: Installation, tmp_path: Path) -> None:
    alone = dataclasses.replace(installation, library=Path(shutil.copy(installation.library, tmp_path)))
    said, asked = alone.run([bare(ALL[0])], tmp_path)
    assert (registered(said), said["failed"], asked) == (ALL, "", [])
    assert said["gpu"] == "no GPU kernels were built; run: vitrify kernels build"
    assert said["answers"][0].endswith(f"{CUDA}: {said['gpu']}; or open the session on CPUExecutionProvider")


def test_a_damaged_build_is_an_error_where_there_is_a_gpu(installation: Installation, tmp_path: Path) -> None:
    library = Path(shutil.copy(installation.library, tmp_path))
    (tmp_path / "cubins").mkdir()
    data = json.loads((installation.library.parent / "cubins" / cubins.MANIFEST).read_bytes())
    data["kernels"]["taylor_predict_1"]["arguments"].pop()
    (tmp_path / "cubins" / cubins.MANIFEST).write_text(json.dumps(data))
    damaged = dataclasses.replace(installation, library=library)
    said, _asked = damaged.run([], tmp_path)
    assert said["failed"] == said["gpu"] or said["gpu"] in said["failed"]
    assert "parameters are not those of the kernel's arguments" in said["failed"]
    assert (said["registered"]) == []
    said, _asked = damaged.run([], tmp_path, LD_LIBRARY_PATH=str(tmp_path))  # Nobody needs it where there is none.
    assert said["failed"] == ""
