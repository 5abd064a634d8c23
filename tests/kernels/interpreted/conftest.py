"""Triton's interpreter, in a pytest process of its own: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`.

The variable decides when a kernel is decorated: a process that interprets cannot compile. `make test` runs both.
"""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest

_HERE = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if _HERE else ["test_*.py"]

if _HERE:
    import triton.language as tl
    from triton.runtime import interpreter

    # The interpreter keeps bfloat16 as bits in uint16: its dot multiplies the bits, its cast from float32 truncates.
    _dot = interpreter.InterpreterBuilder.create_dot
    _cast = interpreter.InterpreterBuilder.cast_impl

    def _widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(handle.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):  # type: ignore[no-untyped-def]
        return _dot(self, _widened(a), _widened(b), d, input_precision, max_num_imprecise_acc)

    def cast_impl(self, src, dst_type):  # type: ignore[no-untyped-def]
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = src.data.astype(ml_dtypes.bfloat16).view(np.uint16)
            return interpreter.TensorHandle(rounded, tl.bfloat16)
        return _cast(self, src, dst_type)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.cast_impl = cast_impl


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Nothing here gains from torch's threads."""
    import torch

    torch.set_num_threads(1)
