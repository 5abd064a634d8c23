"""The FusedAttention family in both precisions: reference, body and native kernel against float64, at every level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from tests.compare import assert_close
from tests.kernels.op_models import one_op_model, session
from tests.kernels.op_runs import Array, native, others
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.kernels import registry

OPS = ("FusedAttention", "FusedAttentionBias", "FusedAttentionNormRotary", "FusedAttention2NormRotary")
BF16 = "Bf16"
TOLERANCE = registry.contract("FusedAttention").tolerances[DType.FLOAT32]
ROUNDED_TOLERANCE = registry.contract("FusedAttentionBf16").tolerances[DType.FLOAT32]
EPSILON = 1e-6


@dataclass(frozen=True)
class Case:
    """keys: of the ops that have them apart from the tokens. first: tokens of part 0, of the op with two parts."""

    op: str
    batch: int
    tokens: int
    heads: int
    head_dim: int
    keys: int = 0
    first: int = 0
    causal: int = 0
    precision: str = ""

    @property
    def name(self) -> str:
        return self.op + self.precision

    @property
    def tolerance(self) -> float:
        return ROUNDED_TOLERANCE if self.precision else TOLERANCE

    def __str__(self) -> str:
        sizes = f"{self.name} b{self.batch} t{self.tokens} h{self.heads}x{self.head_dim}"
        return sizes + "".join(f" {n}{v}" for n, v in (("k", self.keys), ("first", self.first), ("causal", self.causal)) if v)


# Tokens and keys beside the sizes of tiles, registers and blocks; head dims in use and their neighbours.
CASES = [
    Case("FusedAttention", 1, 1, 1, 1, keys=1),
    Case("FusedAttention", 2, 63, 2, 16, keys=123),
    Case("FusedAttention", 1, 123, 3, 31, keys=63),
    Case("FusedAttention", 1, 1, 2, 64, keys=1025),
    Case("FusedAttention", 1, 1025, 1, 33, keys=17),
    Case("FusedAttention", 1, 97, 1, 127, keys=193),
    Case("FusedAttention", 1, 50, 1, 512, keys=385),
    Case("FusedAttention", 1, 33, 2, 96, keys=1025),
    Case("FusedAttention", 2, 77, 2, 64, keys=77, causal=1),
    Case("FusedAttention", 1, 400, 1, 15, keys=400, causal=1),
    Case("FusedAttention", 1, 10, 2, 32, keys=5, causal=1),
    Case("FusedAttention", 1, 5, 2, 32, keys=300, causal=1),
    Case("FusedAttentionBias", 2, 63, 4, 64, keys=63),
    Case("FusedAttentionBias", 1, 123, 2, 16, keys=201),
    Case("FusedAttentionBias", 1, 1, 3, 65, keys=1),
    Case("FusedAttentionNormRotary", 1, 1, 2, 2),
    Case("FusedAttentionNormRotary", 2, 63, 2, 32),
    Case("FusedAttentionNormRotary", 1, 123, 2, 62),
    Case("FusedAttentionNormRotary", 1, 200, 1, 130),
    Case("FusedAttentionNormRotary", 1, 1025, 1, 64),
    Case("FusedAttention2NormRotary", 2, 80, 2, 32, first=16),
    Case("FusedAttention2NormRotary", 1, 64, 1, 64, first=1),
    Case("FusedAttention2NormRotary", 1, 186, 2, 128, first=63),
    Case("FusedAttention2NormRotary", 1, 97, 2, 34, first=96),
    Case("FusedAttention2NormRotary", 1, 1153, 1, 16, first=128),
    Case("FusedAttention2NormRotary", 1, 33, 1, 32, first=0),
    Case("FusedAttention2NormRotary", 1, 33, 1, 32, first=33),
]


IN_BOTH = [replace(case, precision=precision) for precision in ("", BF16) for case in CASES]


def attributes(case: Case) -> dict[str, int | float]:
    every = {"num_heads": case.heads, "scale": case.head_dim**-0.5, "causal": case.causal, "epsilon": EPSILON}
    return {a.name: every[a.name] for a in registry.contract(case.op).attributes}


def inputs(case: Case) -> dict[str, Array]:
    """By name, in the contract's order. Queries and keys of different sizes from token to token."""
    rng = np.random.default_rng([OPS.index(case.op), case.batch, case.tokens, case.heads, case.head_dim, case.keys, case.first])
    second = case.tokens - case.first
    sizes = {
        "batch": case.batch,
        "tokens": case.tokens,
        "keys": case.keys,
        "tokens_0": case.first,
        "tokens_1": second,
        "tokens_0 + tokens_1": case.tokens,
        "width": case.heads * case.head_dim,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "half": case.head_dim // 2,
    }
    angles = rng.uniform(-np.pi, np.pi, (case.tokens, case.head_dim // 2))
    given = {}
    for tensor in registry.contract(case.op).inputs:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in tensor.shape]
        values = {"cos": np.cos(angles), "sin": np.sin(angles)}.get(tensor.name, rng.standard_normal(shape))
        if "norm" in tensor.name:
            values = 1 + 0.3 * values
        elif tensor.name[0] in "qk":
            values = values * np.linspace(0.2, 3, shape[1])[None, :, None]
        given[tensor.name] = values.astype(np.float32)
    return given


def turned(x: Array, norm: Array, cos: Array, sin: Array) -> Array:
    """Normalised per head, each pair a complex number that another one turns. x: [batch, tokens, heads, head_dim]."""
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * norm
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)[:, None]
    return np.stack((z.real, z.imag), axis=-1).reshape(x.shape)


def bf16(x: Array) -> Array:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def exact(case: Case, given: Mapping[str, Array]) -> list[Array]:
    """In float64, by numpy: nothing of the reference's. Rounded where the op rounds."""
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    parts = ("_0", "_1") if "q_0" in wide else ("",)

    def rows(name: str) -> Array:
        joined = []
        at = 0
        for part in parts:
            x = wide[name + part]
            x = x.reshape(*x.shape[:2], case.heads, case.head_dim)
            if name != "v" and "cos" in wide:
                end = at + x.shape[1]
                x = turned(x, wide[f"{name}_norm{part}"], wide["cos"][at:end], wide["sin"][at:end])
                at = end
            joined.append(x)
        return np.concatenate(joined, axis=1)

    # The powers are of two.
    q, k, v = rows("q") * case.head_dim**-0.5 * np.log2(np.e), rows("k"), rows("v")
    if case.precision:
        q, k, v = bf16(q), bf16(k), bf16(v)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) + wide.get("bias", 0) * np.log2(np.e)
    if case.causal:
        scores[..., np.arange(scores.shape[-1]) > np.arange(scores.shape[-2])[:, None]] = -np.inf
    weights = np.exp2(scores - np.ceil(scores.max(-1, keepdims=True)))
    if case.precision:
        weights = bf16(weights)
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(case.batch, case.tokens, -1)
    return [out] if len(parts) == 1 else [out[:, : case.first], out[:, case.first :]]


@pytest.mark.parametrize("case", IN_BOTH, ids=str)
def test_kernel_is_right_at_every_level(case: Case, cpu_level: str) -> None:
    given = inputs(case)
    outputs = native(case.name, given, attributes(case))
    for i, (y, expected) in enumerate(zip(outputs, exact(case, given), strict=True)):
        assert_close(y, expected, case.tolerance, f"{cpu_level} output {i}")


@pytest.mark.parametrize("precision", ["", BF16])
@pytest.mark.parametrize("op", OPS)
def test_reference_body_and_kernel_agree_everywhere(op: str, precision: str) -> None:
    for case in IN_BOTH:
        # Part of no tokens: the evaluator cannot normalise it.
        of_another_op = (case.op, case.precision) != (op, precision)
        large = case.tokens * max(case.keys, case.tokens) > 50_000
        if of_another_op or large or (case.first in (case.tokens, 0) and "2" in op):
            continue
        given = inputs(case)
        for who, outputs in others(case.name, given, attributes(case)).items():
            for y, expected in zip(outputs, exact(case, given), strict=True):
                assert_close(y, expected, case.tolerance, f"{case} {who}")


@pytest.mark.parametrize("case", [case for case in CASES if case.tokens > 1], ids=str)
def test_rounding_costs_less_than_a_bfloat16_is_exact_to(case: Case) -> None:
    """Against the exact result: some 0.4 %, a weighted mean of numbers that are off by up to 0.4 % each."""
    given = inputs(case)
    outputs = native(case.op + BF16, given, attributes(case))
    for y, expected in zip(outputs, exact(case, given), strict=True):
        assert_close(y, expected, 1e-2, str(case))
        assert not y.size or np.abs(y - expected).max() > 0


def test_the_order_of_the_keys_changes_no_rounding(cpu_level: str) -> None:
    """Weights are rounded below a whole maximum: the one that a block of keys finds is as good as the row's. Were it not so, a
    maximum that comes late would move the result by 1e-3."""
    case = Case("FusedAttention", 1, 40, 2, 32, keys=700, precision=BF16)
    given = inputs(case)  # The keys grow from token to token.
    (rising,) = native(case.name, given, attributes(case))
    (falling,) = native(case.name, given | {name: given[name][:, ::-1].copy() for name in "kv"}, attributes(case))
    assert_close(falling, rising, 5e-5, cpu_level)


@pytest.mark.parametrize(
    "case",
    [
        Case("FusedAttention", 3, 250, 2, 40, keys=300, causal=1),
        Case("FusedAttentionBias", 3, 250, 2, 40, keys=300),
        Case("FusedAttentionNormRotary", 3, 300, 3, 32),
        Case("FusedAttention2NormRotary", 3, 300, 2, 64, first=70),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["", BF16])
def test_the_threads_and_the_batch_change_no_bit(case: Case, precision: str, cpu_level: str) -> None:
    case = replace(case, precision=precision)
    given = inputs(case)
    alone = native(case.name, given, attributes(case))
    for threads in (2, 3, 7):
        shared = native(case.name, given, attributes(case), threads=threads)
        assert [y.tobytes() for y in shared] == [y.tobytes() for y in alone], (cpu_level, threads)
    for row in range(case.batch):
        one = {name: a[row : row + 1] if a.ndim == 3 else a for name, a in given.items()}
        for y, together in zip(native(case.name, one, attributes(case)), alone, strict=True):
            assert y.tobytes() == together[row : row + 1].tobytes(), (cpu_level, row)


@pytest.mark.parametrize("precision", ["", BF16])
def test_a_part_is_what_its_tokens_say(precision: str, cpu_level: str) -> None:
    """Two parts with the same norms are one row of tokens cut in two, bit by bit."""
    case = Case("FusedAttention2NormRotary", 1, 150, 2, 32, first=37, precision=precision)
    given = inputs(case)
    given |= {"q_norm_1": given["q_norm_0"], "k_norm_1": given["k_norm_0"]}
    whole = {name: np.concatenate((given[f"{name}_0"], given[f"{name}_1"]), axis=1) for name in "qkv"}
    whole |= {"q_norm": given["q_norm_0"], "k_norm": given["k_norm_0"], "cos": given["cos"], "sin": given["sin"]}
    (together,) = native("FusedAttentionNormRotary" + precision, whole, attributes(case))
    parts = native(case.name, given, attributes(case))
    assert np.concatenate(parts, axis=1).tobytes() == together.tobytes(), cpu_level


def test_large_scores_do_not_overflow(cpu_level: str) -> None:
    """Scores of up to ±30,000, the maximum in a late block: exp of them would overflow at 89."""
    case = Case("FusedAttention", 1, 70, 1, 32, keys=500)
    given = inputs(case)
    given["q"] *= 40
    given["k"] *= np.linspace(1, 100, 500, dtype=np.float32)[None, :, None]
    (expected,) = exact(case, given)
    (y,) = native(case.op, given, attributes(case))
    assert np.isfinite(y).all(), cpu_level
    # A score of 30,000 in float32 is off by 2e-3, and so is its weight.
    assert_close(y, expected, 2e-2, cpu_level)
    # Whole numbers are exact: where one key wins by far, its value comes out.
    case = Case("FusedAttention", 1, 3, 1, 4, keys=400)
    q, k = np.zeros((1, 3, 4), np.float32), np.zeros((1, 400, 4), np.float32)
    q[..., 0], k[0, :, 0] = 1000.0, np.arange(400)
    v = np.arange(1600, dtype=np.float32).reshape(1, 400, 4)
    (y,) = native(case.op, {"q": q, "k": k, "v": v}, attributes(case))
    assert np.array_equal(y, np.broadcast_to(v[:, -1:], y.shape)), cpu_level


@pytest.mark.parametrize("precision", ["", BF16])
def test_large_scores_do_not_overflow_in_either_precision(precision: str, cpu_level: str) -> None:
    """Scores of up to 10^9, as far from each other as can be: one key wins."""
    case = Case("FusedAttention", 1, 40, 1, 32, keys=500, precision=precision)
    given = inputs(case)
    given["q"] *= 1e4
    given["k"] *= 1e4
    (y,) = native(case.name, given, attributes(case))
    assert np.isfinite(y).all(), cpu_level
    q, k = (bf16(given[name]) if precision else given[name].astype(np.float64) for name in "qk")
    winners = np.einsum("qd,kd->qk", q[0], k[0]).argmax(1)
    assert_close(y[0], given["v"][0][winners], 1e-2, cpu_level)


@pytest.mark.parametrize("precision", ["", BF16])
def test_equal_scores_give_the_mean(precision: str, cpu_level: str) -> None:
    case = Case("FusedAttention", 1, 5, 2, 32, keys=777, precision=precision)
    given = inputs(case) | {"q": np.zeros((1, 5, 64), np.float32)}
    (y,) = native(case.name, given, attributes(case))
    values = bf16(given["v"]) if precision else given["v"].astype(np.float64)
    assert_close(y, np.broadcast_to(values.mean(1, keepdims=True), y.shape), 1e-5, cpu_level)


@pytest.mark.parametrize("precision", ["", BF16])
def test_a_bias_of_minus_infinity_hides_a_key(precision: str, cpu_level: str) -> None:
    """Also where a whole block of keys is hidden from a row; what is hidden may be anything finite."""
    case = Case("FusedAttentionBias", 1, 20, 1, 16, keys=500, precision=precision)
    given = inputs(case)
    given["bias"][..., :250] = -np.inf
    given["bias"][:, :, 10:, 450:] = -np.inf
    hidden = dict(given)
    (y,) = native(case.name, hidden, attributes(case))
    hidden["k"], hidden["v"] = given["k"].copy(), given["v"].copy()
    hidden["k"][:, :250], hidden["v"][:, :250] = 1e4, 1e4
    assert native(case.name, hidden, attributes(case))[0].tobytes() == y.tobytes(), cpu_level
    assert_close(y, exact(case, given)[0], case.tolerance, cpu_level)


@pytest.mark.parametrize("precision", ["", BF16])
def test_a_causal_row_does_not_see_what_comes_later(precision: str, cpu_level: str) -> None:
    case = Case("FusedAttention", 1, 300, 1, 32, keys=300, causal=1, precision=precision)
    given = inputs(case)
    (y,) = native(case.name, given, attributes(case))
    changed = {name: array.copy() for name, array in given.items()}
    for name in "kv":
        changed[name][:, 210:] = 7
    (other,) = native(case.name, changed, attributes(case))
    assert other[:, :210].tobytes() == y[:, :210].tobytes(), cpu_level
    assert (other[:, 210:] != y[:, 210:]).any()


@pytest.mark.parametrize("hostile", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["", BF16])
def test_a_hostile_query_reaches_its_row_and_no_other(hostile: float, precision: str, cpu_level: str) -> None:
    case = Case("FusedAttention", 1, 110, 2, 32, keys=400, precision=precision)
    given = inputs(case)
    (clean,) = native(case.name, given, attributes(case))
    given["q"][0, 7, 40] = hostile
    (y,) = native(case.name, given, attributes(case))
    assert np.isnan(y[0, 7, 32:]).all(), cpu_level
    y[0, 7, 32:] = clean[0, 7, 32:]
    assert y.tobytes() == clean.tobytes(), cpu_level


@pytest.mark.parametrize("precision", ["", BF16])
def test_a_nan_among_the_keys_reaches_its_head_and_no_other(precision: str, cpu_level: str) -> None:
    for key in (0, 191, 192, 399):
        case = Case("FusedAttention", 1, 50, 2, 32, keys=400, precision=precision)
        given = inputs(case)
        (clean,) = native(case.name, given, attributes(case))
        given["k"][0, key, 3] = np.nan
        (y,) = native(case.name, given, attributes(case))
        assert np.isnan(y[..., :32]).all(), (cpu_level, key)
        assert np.array_equal(y[..., 32:], clean[..., 32:]), (cpu_level, key)


@pytest.mark.parametrize(
    "case",
    [
        Case("FusedAttention", 0, 3, 2, 8, keys=3),
        Case("FusedAttention", 2, 0, 2, 8, keys=3),
        Case("FusedAttentionBias", 1, 0, 2, 8, keys=0),
        Case("FusedAttentionNormRotary", 1, 0, 2, 8),
        Case("FusedAttention2NormRotary", 1, 0, 2, 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["", BF16])
def test_nothing_to_compute(case: Case, precision: str) -> None:
    outputs = native(case.op + precision, inputs(case), attributes(case))
    assert sum(y.size for y in outputs) == 0


WRONG = [
    ("FusedAttention", {"k": (1, 5, 24), "v": (1, 5, 24)}, {}, "k has 24 along width, expected 16"),
    ("FusedAttention", {"v": (1, 6, 16)}, {}, "v has 6 along keys, expected 5"),
    ("FusedAttention", {"k": (1, 0, 16), "v": (1, 0, 16)}, {}, "k has 0 along keys, expected 1 or more"),
    ("FusedAttention", {}, {"num_heads": 3}, r"q has 16 along width, expected a multiple .* \(num_heads = 3\)"),
    ("FusedAttention", dict.fromkeys("qkv", (1, 5, 0)), {}, "head_dim is 0, .* expected 1 to 512"),
    (
        "FusedAttention",
        dict.fromkeys("qkv", (1, 5, 1026)),
        {},
        r"head_dim is 513, width 1026 \(num_heads = 2\), .* 1 to 512",
    ),
    ("FusedAttention", {}, {"num_heads": 0}, "attribute num_heads is 0, expected 1 or more"),
    ("FusedAttention", {}, {"scale": 0.0}, "attribute scale is 0.000000, expected above 0"),
    ("FusedAttention", {}, {"scale": float("nan")}, "attribute scale is nan, expected a finite float32"),
    ("FusedAttention", {}, {"causal": 2}, "attribute causal is 2, expected 0 or 1"),
    ("FusedAttentionBias", {"bias": (1, 1, 5, 5)}, {}, "bias has 1 along heads, expected 2, num_heads"),
    ("FusedAttentionBias", {"bias": (2, 2, 5, 5)}, {}, "bias has 2 along 1, expected 1"),
    ("FusedAttentionNormRotary", {"q_norm": (4,), "k_norm": (4,)}, {}, "q_norm has 4 along head_dim, expected 8"),
    ("FusedAttentionNormRotary", {"cos": (5, 3), "sin": (5, 3)}, {}, "cos has 3 along half, expected 4, half of head_dim"),
    ("FusedAttentionNormRotary", {}, {"epsilon": -1.0}, "attribute epsilon is -1.000000, expected 0 or more"),
    ("FusedAttention2NormRotary", {"sin": (6, 4)}, {}, r"sin has 6 along tokens_0 \+ tokens_1, expected 5"),
    ("FusedAttention2NormRotary", {"k_norm_1": (6,)}, {}, "k_norm_1 has 6 along head_dim, expected 8"),
]


@pytest.mark.parametrize("precision", ["", BF16])
@pytest.mark.parametrize(("op", "shapes", "change", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_named(
    op: str, shapes: dict[str, tuple[int, ...]], change: dict[str, float], message: str, precision: str
) -> None:
    case = Case(op, 1, 5, 2, 8, keys=5, first=2)
    given = inputs(case) | {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(BackendError, match=f"{op}{precision}: {message}"):
        native(op + precision, given, attributes(case) | change)


def test_pairs_need_an_even_head() -> None:
    case = Case("FusedAttentionNormRotary", 1, 5, 2, 7)
    with pytest.raises(BackendError, match="head_dim is 7, expected an even number"):
        native(case.op, inputs(case), attributes(case))


def test_another_dtype_is_refused() -> None:
    case = Case("FusedAttention", 1, 5, 2, 8, keys=5)
    given = inputs(case)
    with pytest.raises(BackendError, match="FusedAttention: k has dtype float16, which it may not have"):
        native(case.op, given | {"k": given["k"].astype(np.float16)}, attributes(case))


def test_onnxruntime_says_what_is_wrong() -> None:
    """A head beyond the limit when the node runs, a wrong attribute when the session opens."""
    opened = session(
        one_op_model("FusedAttention", attributes={"num_heads": 1, "scale": 1.0, "causal": 0}).SerializeToString(), library=True
    )
    feed = {name: np.zeros((1, 3, 600), np.float32) for name in "qkv"}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match=r"head_dim is 600, .* 1 to 512"):
        opened.run(None, feed)
    model = one_op_model("FusedAttention", attributes={"num_heads": -1, "scale": 1.0, "causal": 0})
    with pytest.raises(Exception, match="attribute num_heads is -1, expected 1 or more") as raised:
        session(model.SerializeToString(), library=True)
    assert type(raised.value).__module__.startswith("onnxruntime")
