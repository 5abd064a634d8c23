"""The Linear family, interpreted, against float64: awkward sizes with small tiles, then one case with the tiles in use."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.kernels.gpu_cases import CASES
from tests.kernels.interpreted.interpret import DTYPES, run_and_check, slow
from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.programs import programs

OPS = tuple(op for op in CASES if op.startswith("Linear"))
SMALL = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 2}


def small(op: str) -> Mapping[str, Mapping[str, int]]:
    return {launch.kernel.name: SMALL for launch in programs()[op].launches}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_epilogue(op: str, dtype: DType) -> None:
    case = CASES[op]
    run_and_check(op, dtype, case.dims, case.attributes, small(op))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 63, slow(123), slow(1025)])
@pytest.mark.parametrize(("size", "out"), [(16, 16), (48, 208), slow(192, 192)])
def test_awkward_sizes(tokens: int, size: int, out: int, dtype: DType) -> None:
    """Fewer features than a tile of them, one more block of rows than a multiple of the group, columns cut off."""
    run_and_check("Linear", dtype, {"batch": 1, "tokens": tokens, "in": size, "out": out}, tiles=small("Linear"))


@pytest.mark.parametrize(("in_0", "in_1"), [(16, 128), slow(96, 16), slow(32, 32)])
def test_two_parts_of_the_features(in_0: int, in_1: int) -> None:
    case = CASES["Linear2GatedResidual"]
    dims = {**case.dims, "in_0": in_0, "in_1": in_1}
    run_and_check("Linear2GatedResidual", DType.FLOAT16, dims, case.attributes, small("Linear2GatedResidual"))


@pytest.mark.slow
def test_the_tiles_in_use() -> None:
    run_and_check("LinearGelu", DType.BFLOAT16, {"batch": 1, "tokens": 130, "in": 144, "out": 272})
