"""AdaLayerNorm, AdaRMSNorm, GatedResidual and QkNormRope, interpreted, against float64."""

from __future__ import annotations

import pytest

from tests.kernels.gpu_cases import CASES
from tests.kernels.interpreted.interpret import DTYPES, run_and_check, slow
from vitrify.engine.dtypes import DType

EPSILON = CASES["QkNormRope"].attributes["epsilon"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [3, slow(1), slow(63), slow(1025)])
@pytest.mark.parametrize("width", [16, 304, slow(1024)])
@pytest.mark.parametrize("op", ["AdaLayerNorm", "AdaRMSNorm"])
def test_ada_norm(op: str, width: int, tokens: int, dtype: DType) -> None:
    dims = {"batch": 2, "tokens": tokens, "width": width, "columns": 3 * width}
    run_and_check(op, dtype, dims, {"factor_at": width, "shift_at": 2 * width, "epsilon": EPSILON})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 63, slow(123), slow(1025)])
@pytest.mark.parametrize("width", [16, 528])
def test_gated_residual(width: int, tokens: int, dtype: DType) -> None:
    dims = {"batch": 2, "tokens": tokens, "width": width, "columns": 2 * width}
    run_and_check("GatedResidual", dtype, dims, {"gate_at": width})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim"),
    [(1, 1, 32), (63, 2, 32), (17, 8, 34), slow(17, 8, 30), slow(123, 1, 128), slow(1025, 1, 128)],
)
def test_qk_norm_rope(tokens: int, heads: int, head_dim: int, dtype: DType) -> None:
    dims = {"batch": 2, "tokens": tokens, "width": heads * head_dim, "head_dim": head_dim, "half": head_dim // 2}
    run_and_check("QkNormRope", dtype, dims, {"num_heads": heads, "epsilon": EPSILON}, {"qk_norm_rope": {"BLOCK_T": 16}})
