"""One table against the libraries it speaks for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError


@pytest.mark.parametrize("dtype", DType)
def test_the_names_of_every_neighbour(dtype: DType) -> None:
    assert onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx) == dtype.numpy
    assert onnx.TensorProto.DataType.Name(dtype.onnx).lower().replace("float", "float32", dtype is DType.FLOAT32) in (
        dtype.value,
        {"float64": "double"}.get(dtype.value),
    )
    assert dtype.numpy.itemsize == dtype.itemsize
    assert DType.from_name(dtype.value) is dtype
    assert DType.from_numpy(dtype.numpy) is dtype
    assert DType.from_safetensors(dtype.safetensors) is dtype
    assert DType.from_onnx(dtype.onnx) is dtype
    assert str(dtype.numpy) == dtype.value


@pytest.mark.parametrize("dtype", DType)
def test_safetensors_writes_that_name(dtype: DType) -> None:
    assert f'"dtype":"{dtype.safetensors}"'.encode() in save({"t": np.zeros((2, 3), dtype.numpy)})


@pytest.mark.parametrize("dtype", DType)
def test_onnx_runtime_uses_that_name(dtype: DType) -> None:
    import onnxruntime

    from vitrify.engine.ort import OrtCpuBackend

    OrtCpuBackend(kernels="portable")  # the process's thread pool: sessions without it are refused once it is there
    name = onnx.TensorProto.DataType.Name(dtype.onnx).lower()
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({name}[2] x) => ({name}[2] y) {{ y = Identity(x) }}'
    )
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [i.type for i in session.get_inputs()] == [dtype.ort]


def test_no_two_rows_share_a_name() -> None:
    for column in ("value", "safetensors", "onnx", "ort", "numpy"):
        assert len({str(getattr(dtype, column)) for dtype in DType}) == len(DType)


@given(st.text())
def test_unknown_names_are_refused_with_those_known(name: str) -> None:
    if name not in {dtype.value for dtype in DType}:
        with pytest.raises(SpecError, match="known: float32, float16, bfloat16"):
            DType.from_name(name)
    if name not in {dtype.safetensors for dtype in DType}:
        with pytest.raises(SpecError, match="known: F32, F16, BF16"):
            DType.from_safetensors(name)


@given(st.integers())
def test_unknown_onnx_numbers_are_refused(code: int) -> None:
    if code not in {dtype.onnx for dtype in DType}:
        with pytest.raises(SpecError, match=f"ONNX data type {code} is unsupported"):
            DType.from_onnx(code)


@pytest.mark.parametrize("dtype", ["complex64", "U3", "object", "uint16", ">f4", "datetime64[s]"])
def test_numpy_types_without_a_counterpart_are_refused(dtype: str) -> None:
    with pytest.raises(SpecError, match="has no counterpart; known: float32"):
        DType.from_numpy(np.dtype(dtype))
