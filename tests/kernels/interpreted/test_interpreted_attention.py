"""FusedAttention, interpreted, against float64: every signature, awkward token counts and head widths, the tiles in use."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from tests.kernels.gpu_cases import CASES
from tests.kernels.gpu_reference import check, inputs
from tests.kernels.interpreted.interpret import DTYPES, interpret, run_and_check, slow
from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import as_float32
from vitrify.kernels.aot.programs import programs

OPS = tuple(op for op in CASES if op.startswith("FusedAttention"))
SMALL = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_TAIL": 16}
EPSILON = CASES["QkNormRope"].attributes["epsilon"]


def small(op: str) -> Mapping[str, Mapping[str, int]]:
    tiles = {launch.kernel.name: SMALL for launch in programs()[op].launches}
    return {**tiles, "qk_norm_rope": {"BLOCK_T": 16}, "query_norm_rope": {"BLOCK_T": 16}}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_signature(op: str, dtype: DType) -> None:
    case = CASES[op]
    run_and_check(op, dtype, case.dims, case.attributes, small(op))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (1, 1025), (63, 123), slow(123, 63), slow(1025, 1), slow(64, 64)])
@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [(1, 32), (16, 33), *(slow(16, near) for near in (31, 63, 65)), *(slow(1, used) for used in (64, 96, 128, 512))],
)
def test_awkward_tokens_and_heads(tokens: int, keys: int, heads: int, head_dim: int, dtype: DType) -> None:
    """The head widths in use and their neighbours."""
    dims = {"batch": 1, "tokens": tokens, "keys": keys, "width": heads * head_dim}
    attributes = {"num_heads": heads, "scale": as_float32(head_dim**-0.5), "causal": 0}
    run_and_check("FusedAttention", dtype, dims, attributes, small("FusedAttention"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32])
def test_many_tokens_and_keys(dtype: DType) -> None:
    dims = {"batch": 1, "tokens": 1025, "keys": 1025, "width": 64}
    attributes = {"num_heads": 1, "scale": 0.125, "causal": 0}
    run_and_check("FusedAttention", dtype, dims, attributes, small("FusedAttention"))


@pytest.mark.parametrize("tokens", [1, 63, slow(16), slow(123), slow(1025)])
def test_causal(tokens: int) -> None:
    dims = {"batch": 2, "tokens": tokens, "keys": tokens, "width": 64}
    attributes = {"num_heads": 2, "scale": as_float32(32**-0.5), "causal": 1}
    run_and_check("FusedAttention", DType.BFLOAT16, dims, attributes, small("FusedAttention"))


@pytest.mark.parametrize(("tokens_0", "tokens_1"), [(1, 1), (63, 1), slow(16, 123), slow(33, 96), slow(1, 1025), slow(123, 1025)])
def test_two_parts(tokens_0: int, tokens_1: int) -> None:
    dims = {"batch": 2, "tokens_0": tokens_0, "tokens_1": tokens_1, "width": 64, "head_dim": 32, "half": 16}
    op = "FusedAttention2NormRotary"
    run_and_check(op, DType.BFLOAT16, dims, CASES[op].attributes, small(op))


@pytest.mark.parametrize("head_dim", [34, slow(30)])
def test_norm_and_rotary_of_heads_that_are_no_power_of_two(head_dim: int) -> None:
    op = "FusedAttentionNormRotary"
    dims = {"batch": 1, "tokens": 63, "width": 8 * head_dim, "head_dim": head_dim, "half": head_dim // 2}
    attributes = {"num_heads": 8, "scale": as_float32(head_dim**-0.5), "epsilon": EPSILON}
    run_and_check(op, DType.FLOAT16, dims, attributes, small(op))


@pytest.mark.slow
def test_the_tiles_in_use() -> None:
    op = "FusedAttention2NormRotary"
    dims = {"batch": 1, "tokens_0": 63, "tokens_1": 200, "width": 128, "head_dim": 128, "half": 64}
    run_and_check(op, DType.BFLOAT16, dims, {"num_heads": 1, "scale": as_float32(128**-0.5), "epsilon": EPSILON})


def test_large_scores_neither_overflow_nor_vanish() -> None:
    """Scores of several hundred: without the running maximum exp2 would be infinite."""
    op, dims = "FusedAttention", {"batch": 1, "tokens": 63, "keys": 123, "width": 32}
    attributes = {"num_heads": 1, "scale": 4.0, "causal": 0}
    given = {**inputs(op, DType.FLOAT32, dims)}
    given["q"] = 8 * given["q"]
    got = interpret(op, DType.FLOAT32, given, attributes, small(op))
    assert (given["q"] @ given["k"].mT).abs().max() * 4 > 400
    check(op, DType.FLOAT32, given, attributes, got, "large scores")
    assert torch.isfinite(got["out"]).all()
