"""The compiled kernels on a GPU, through the launcher, against float64. Needs a GPU, and torch that knows it for its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.kernels.gpu_cases import CASES
from tests.kernels.gpu_reference import TORCH, check, inputs, outputs, tensor_dtypes
from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.kernels import registry
from vitrify.kernels.aot.build import build, select
from vitrify.kernels.aot.programs import programs
from vitrify.kernels.aot.resolve import resolve, scratch_elements
from vitrify.kernels.aot.targets import ARCH_NAMES

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU here"),
]

POINTERS = ("number", "real", "tensor")


class Call(ctypes.Structure):
    """VitrifyGpuCall of kernels/native/c_interface.h."""

    _fields_ = (
        ("op", ctypes.c_char_p),
        ("version", ctypes.c_int64),
        ("activation", ctypes.c_char_p),
        *(
            field
            for part in POINTERS
            for field in (
                (f"{part}_count", ctypes.c_int),
                (f"{part}_names", ctypes.POINTER(ctypes.c_char_p)),
                (f"{part}s", ctypes.c_void_p),
            )
        ),
    )


def call_of(
    op: str, activation: DType, values: Mapping[str, Mapping[str, int] | Mapping[str, float]], kept: list[object]
) -> Call:
    """values: part → name → value. kept: what must outlive the call."""
    call = Call(op=op.encode(), version=registry.contract(op).version, activation=activation.value.encode())
    for part, kind in zip(POINTERS, (ctypes.c_int64, ctypes.c_double, ctypes.c_void_p), strict=True):
        pairs = values[part]
        names = (ctypes.c_char_p * max(len(pairs), 1))(*(name.encode() for name in pairs))
        numbers = (kind * max(len(pairs), 1))(*pairs.values())
        kept += [names, numbers]
        setattr(call, f"{part}_count", len(pairs))
        setattr(call, f"{part}_names", names)
        setattr(call, f"{part}s", ctypes.addressof(numbers))
    return call


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.c_void_p:
    """The variants that CASES use, compiled for this GPU (or for sm_80, whose PTX the driver compiles)."""
    name = "sm_{}{}".format(*torch.cuda.get_device_capability())
    wanted = {
        launch.variant.name
        for op, program in programs().items()
        for dtype in TORCH
        for launch in resolve(program, dtype, CASES[op].dims, CASES[op].attributes)
    }
    folder: Path = tmp_path_factory.mktemp("cubins")
    build(folder, [v for v in select() if v.name in wanted], [name if name in ARCH_NAMES else "sm_80"])
    library = native_library.load()
    library.vitrify_gpu_open.restype = ctypes.c_void_p
    opened = library.vitrify_gpu_open(str(folder).encode())
    assert opened, library.vitrify_error().decode()
    return ctypes.c_void_p(opened)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("op", sorted(CASES))
def test_on_gpu_against_float64(kernels: ctypes.c_void_p, op: str, dtype: DType) -> None:
    case, dtypes = CASES[op], tensor_dtypes(op, dtype)
    given, written = inputs(op, dtype, case.dims), outputs(op, dtype, case.dims)
    scratch = {
        name: torch.full((count,), torch.nan, dtype=TORCH[dtypes[name]])
        for name, count in scratch_elements(programs()[op], case.dims, case.attributes).items()
    }
    on_gpu = {name: tensor.contiguous().cuda() for name, tensor in {**given, **written, **scratch}.items()}
    kept: list[object] = []
    whole = {k: v for k, v in case.attributes.items() if isinstance(v, int)}
    values = {
        "number": {**case.dims, **whole},
        "real": {k: v for k, v in case.attributes.items() if isinstance(v, float)},
        "tensor": {name: tensor.data_ptr() for name, tensor in on_gpu.items()},
    }
    call = call_of(op, dtype, values, kept)
    library, stream = native_library.load(), torch.cuda.current_stream().cuda_stream
    assert library.vitrify_gpu_run(kernels, ctypes.byref(call), ctypes.c_void_p(stream)) == 0, library.vitrify_error().decode()
    torch.cuda.synchronize()
    check(op, dtype, given, case.attributes, {name: on_gpu[name].cpu() for name in written}, f"{op} {dtype.value} on GPU")
