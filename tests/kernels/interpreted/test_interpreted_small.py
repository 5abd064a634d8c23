"""The element-wise kernels and the reductions, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.interpreted.interpret import DTYPES, run_and_check, slow
from vitrify.engine.dtypes import DType

TAYLOR = ("TaylorUpdate1", "TaylorUpdate2", "TaylorPredict1", "TaylorPredict2")


def test_the_interpreter_rounds_bfloat16_to_nearest_even_and_multiplies_it() -> None:
    """What conftest.py patches; without it every bfloat16 result here would be wrong."""
    import triton
    import triton.language as tl

    @triton.jit
    def product(a, b, y, N: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
        i = tl.arange(0, N)
        at = i[:, None] * N + i[None, :]
        tl.store(y + at, tl.dot(tl.load(a + at), tl.load(b + at)).to(tl.bfloat16))

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((16, 16), generator=generator).bfloat16() for _ in range(2))
    y = torch.full((16, 16), torch.nan, dtype=torch.bfloat16)
    product[(1,)](a, b, y, 16)
    assert torch.equal(y, (a.float() @ b.float()).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 63, 123, slow(1025)])
def test_residual_diff(dtype: DType, tokens: int) -> None:
    run_and_check("ResidualDiff", dtype, {"batch": 2, "tokens": tokens, "width": 48})


def test_residual_diff_of_an_unchanged_residual_measures_zero() -> None:
    """In bfloat16 too: the difference is taken of what is stored."""
    from tests.kernels.gpu_reference import inputs
    from tests.kernels.interpreted.interpret import interpret

    given = inputs("ResidualDiff", DType.BFLOAT16, {"batch": 1, "tokens": 63, "width": 48})
    given["r_ref"] = (given["h1"].float() - given["h0"].float()).bfloat16()
    got = interpret("ResidualDiff", DType.BFLOAT16, given, {}, {})
    assert got["sums"][0, 0] == 0
    assert got["sums"][0, 1] > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 63, slow(123), slow(1025)])
@pytest.mark.parametrize("op", TAYLOR)
def test_taylor(op: str, dtype: DType, tokens: int) -> None:
    run_and_check(op, dtype, {"batch": 2, "tokens": tokens, "width": 48})
