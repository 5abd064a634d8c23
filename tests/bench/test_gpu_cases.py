"""What `vitrify bench gpu` would time: every case is one that the op's contract and the compiled kernels take."""

from __future__ import annotations

import pytest
import torch

from vitrify.bench.gpu_cases import GPU_CASES, GpuCase
from vitrify.engine.errors import BackendError
from vitrify.kernels import registry
from vitrify.kernels.aot.programs import programs, variants
from vitrify.kernels.aot.resolve import resolve


@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: case.name)
def test_a_case_has_kernels(case: GpuCase) -> None:
    contract = registry.contract(case.op)
    dims = {term for t in contract.inputs for dim in t.shape if isinstance(dim, str) for term in dim.split(" + ")}
    assert dims == set(case.dims)
    assert {attribute.name for attribute in contract.attributes} == set(case.attributes)
    built = {variant.name for variant in variants()}
    assert {one.variant.name for one in resolve(programs()[case.op], case.dtype, case.dims, case.attributes)} <= built


def test_names_are_unique() -> None:
    assert len({case.name for case in GPU_CASES}) == len(GPU_CASES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_that_is_said() -> None:
    from vitrify.bench.gpu import measure_gpu

    with pytest.raises(BackendError, match="sees no CUDA GPU here"):
        measure_gpu()
