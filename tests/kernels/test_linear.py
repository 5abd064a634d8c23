"""The Linear family: reference, body and native kernel against float64, at every level and for every weight dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from tests.compare import assert_close
from tests.kernels.op_models import one_op_model, session
from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.engine.native_kernel import NativeKernel
from vitrify.kernels import registry

Array = NDArray[Any]

FAMILY = ("Linear", "LinearNoBias", "LinearGelu", "LinearGatedResidual", "Linear2GatedResidual")
OPS = tuple(name + precision for precision in ("", "Bf16", "Int8") for name in FAMILY)
WEIGHTS = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
TOLERANCE = registry.contract("Linear").tolerances[DType.FLOAT32]
GATE_AT = 5
FEWEST_SPLIT = 16
"""Tokens from which on the tile unit multiplies float32, split into bfloat16 (kernels/linear/README.md)."""

# batch, tokens, in, out: rows and columns beside the tiles' and panels' sizes, features beside the blocks'.
SIZES = [
    (1, 1, 1, 1),
    (3, 1, 31, 33),
    (1, 63, 193, 31),
    (2, 123, 192, 192),
    (1, 1025, 257, 64),
    (3, 5, 1100, 193),
    (1, 15, 64, 1056),
    (1, 40, 9000, 70),
]
SMALL = [size for size in SIZES if np.prod(size) <= 10_000_000]


def inputs(op: str, size: tuple[int, int, int, int], dtype: np.dtype[Any] = WEIGHTS[0]) -> dict[str, Array]:
    """By name, in the contract's order. Of two parts of x the first has a third of the features."""
    batch, tokens, features, out = size
    rng = np.random.default_rng([FAMILY.index(family(op)), *size])

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    weight = normal(out, features) / np.sqrt(np.float32(features))
    weight_scale = np.full(out, np.nan, np.float32)
    if op.endswith("Int8"):
        weight_scale = np.abs(weight).max(axis=1, initial=1e-30) / np.float32(127)
        weight = np.rint(weight / weight_scale[:, None]).astype(np.int8)
    else:
        weight = weight.astype(dtype)
    # Columns beside the gate that would be noticed.
    modulation = np.full((batch, GATE_AT + out + 2), np.nan, np.float32)
    modulation[:, GATE_AT : GATE_AT + out] = normal(batch, out)
    everything = {"x": normal(batch, tokens, features), "weight": weight, "weight_scale": weight_scale, "bias": normal(out)}
    everything |= {"modulation": modulation, "residual": normal(batch, tokens, out)}
    if "x_0" in names(op):
        first = features // 3
        x = everything["x"]
        everything |= {"x_0": np.ascontiguousarray(x[..., :first]), "x_1": np.ascontiguousarray(x[..., first:])}
    return {name: everything[name] for name in names(op)}


def family(op: str) -> str:
    return op.removesuffix("Bf16").removesuffix("Int8")


def names(op: str) -> list[str]:
    return [tensor.name for tensor in registry.contract(op).inputs]


def attributes(op: str) -> dict[str, int]:
    return {"gate_at": GATE_AT} if registry.contract(op).attributes else {}


def exact(op: str, given: dict[str, Array]) -> Array:
    """In float64 but for what the op rounds, by numpy: nothing of the reference's."""
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    x = given["x"] if "x" in given else np.concatenate((given["x_0"], given["x_1"]), axis=-1)
    weight = wide["weight"]
    scale: Any = 1.0
    if op.endswith("Bf16"):
        x, weight = x.astype(ml_dtypes.bfloat16), given["weight"].astype(ml_dtypes.bfloat16).astype(np.float64)
    if op.endswith("Int8"):
        largest = np.abs(x).max(axis=-1, keepdims=True, initial=1e-30)
        x = np.rint(x * (np.float32(127) / largest))
        scale = largest.astype(np.float64) / 127 * wide["weight_scale"]
    y = x.astype(np.float64) @ weight.T * scale + wide.get("bias", 0)
    if family(op) == "LinearGelu":
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    if "residual" in wide:
        gate = wide["modulation"][:, None, GATE_AT : GATE_AT + y.shape[-1]]
        y = wide["residual"] + gate * y
    return np.asarray(y)


def kernel(op: str, given: dict[str, Array]) -> NativeKernel:
    """The kernel for this weight; it has no copy of anything else."""
    return NativeKernel(op, [given[n] if n == "weight" else None for n in names(op)], attributes=attributes(op))


def run(made: NativeKernel, given: dict[str, Array], threads: int = 1) -> Array:
    """Into an output full of NaN."""
    x = given.get("x", given.get("x_0"))
    assert x is not None
    y = np.full((*x.shape[:2], given["weight"].shape[0]), np.nan, np.float32)
    made.run(list(given.values()), [y], threads=threads)
    return y


def native(op: str, given: dict[str, Array], threads: int = 1) -> Array:
    return run(kernel(op, given), given, threads)


def in_onnxruntime(op: str, given: dict[str, Array], *, library: bool, marked: bool = False) -> Array:
    """As the exporter writes it: the weight is an initializer."""
    model = one_op_model(op, attributes=attributes(op), constants={"weight": given["weight"]}, marked=marked)
    feed = {name: array for name, array in given.items() if name != "weight"}
    return np.asarray(session(model.SerializeToString(), library=library).run(None, feed)[0])


@pytest.fixture(params=native_library.cpu_levels())
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    native_library.force_cpu_level(request.param)
    yield request.param
    native_library.force_cpu_level(None)


@pytest.fixture
def amx() -> Iterator[None]:
    """The level at which float32 is split."""
    if "amx" not in native_library.cpu_levels():
        pytest.skip("needs AMX: only the tile unit multiplies float32 in parts, and no other machine can stand in for it")
    native_library.force_cpu_level("amx")
    yield
    native_library.force_cpu_level(None)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_reference_is_right(op: str, size: tuple[int, int, int, int]) -> None:
    given = inputs(op, size)
    (y,) = registry.reference(op)(*map(torch.from_numpy, given.values()), **attributes(op))
    assert_close(y.numpy(), exact(op, given), TOLERANCE, op)


@pytest.mark.parametrize("op", OPS)
def test_body_and_kernel_are_right_in_onnxruntime_and_the_evaluator(op: str) -> None:
    for size in SMALL:
        given = inputs(op, size)
        expected = exact(op, given)
        assert_close(in_onnxruntime(op, given, library=False), expected, TOLERANCE, f"{op} {size} body")
        assert_close(in_onnxruntime(op, given, library=True), expected, TOLERANCE, f"{op} {size} kernel")
        model = one_op_model(op, attributes=attributes(op))
        assert_close(ReferenceEvaluator(model).run(None, given)[0], expected, TOLERANCE, f"{op} {size} evaluator")


@pytest.mark.parametrize("op", OPS)
def test_kernel_is_right_at_every_level(op: str, cpu_level: str) -> None:
    for size in SIZES:
        given = inputs(op, size)
        assert_close(native(op, given), exact(op, given), TOLERANCE, f"{op} {size} {cpu_level}")


@pytest.mark.parametrize("dtype", WEIGHTS[1:], ids=str)
@pytest.mark.parametrize("op", ["LinearNoBias", "Linear2GatedResidualBf16"])
def test_a_weight_may_be_stored_in_fewer_bits(op: str, dtype: np.dtype[Any], cpu_level: str) -> None:
    for size in SMALL:
        given = inputs(op, size, dtype)
        assert_close(native(op, given), exact(op, given), TOLERANCE, f"{op} {size} {cpu_level}")


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_every_dtype_of_a_weight_runs_in_onnxruntime(dtype: np.dtype[Any]) -> None:
    """The marked body adds 1000: our kernel ran, and the body without the library."""
    given = inputs("LinearGatedResidual", (2, 7, 65, 40), dtype)
    expected = exact("LinearGatedResidual", given)
    ours = in_onnxruntime("LinearGatedResidual", given, library=True, marked=True)
    body = in_onnxruntime("LinearGatedResidual", given, library=False, marked=True)
    assert np.array_equal(ours, native("LinearGatedResidual", given))
    assert_close(ours, expected, TOLERANCE, f"{dtype} kernel")
    assert_close(body - 1000, expected, 1e-4, f"{dtype} marked body")


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        *((op, WEIGHTS[0]) for op in ("LinearGelu", "Linear2GatedResidual", "Linear2GatedResidualBf16", "LinearGeluInt8")),
        ("Linear", WEIGHTS[1]),
    ],
    ids=str,
)
def test_the_thread_count_changes_no_bit(op: str, dtype: np.dtype[Any], cpu_level: str) -> None:
    given = inputs(op, (2, 700, 300, 333), dtype)
    made = kernel(op, given)
    alone = run(made, given)
    for threads in (2, 3, 7):
        assert run(made, given, threads).tobytes() == alone.tobytes(), (cpu_level, threads)


@pytest.mark.parametrize("op", ["LinearGatedResidual", "LinearGatedResidualBf16", "LinearGatedResidualInt8"])
def test_the_batch_changes_no_bit(op: str, cpu_level: str) -> None:
    """A row's result is the same whichever rows are beside it."""
    given = inputs(op, (3, 123, 600, 193))
    made = kernel(op, given)
    together = run(made, given)
    for row in range(3):
        of_row = {n: a[row : row + 1] if n in ("x", "modulation", "residual") else a for n, a in given.items()}
        assert run(made, of_row).tobytes() == together[row : row + 1].tobytes(), cpu_level
    few = {**given, "x": given["x"][:1, :FEWEST_SPLIT], "residual": given["residual"][:1, :FEWEST_SPLIT]}
    few = {name: np.ascontiguousarray(array) for name, array in (few | {"modulation": given["modulation"][:1]}).items()}
    assert run(made, few).tobytes() == np.ascontiguousarray(together[:1, :FEWEST_SPLIT]).tobytes(), cpu_level


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("op", ["LinearGelu", "LinearGatedResidualBf16", "LinearInt8"])
def test_a_large_y_is_that_of_its_parts(op: str, offset: int, cpu_level: str) -> None:
    """From 2 MiB on y is written past the caches, but for registers that cross a cache line (offset, in floats)."""
    given = inputs(op, (2, 130, 40, 2052))
    of_one = {n: a[:1] if n in ("x", "modulation", "residual") else a for n, a in given.items()}
    made = kernel(op, given)
    memory = np.full(2 * 130 * 2052 + 32, np.nan, np.float32)
    start = -(memory.ctypes.data // 4) % 16 + offset
    y = memory[start : start + 2 * 130 * 2052].reshape(2, 130, 2052)
    made.run(list(given.values()), [y], threads=2)
    assert y[:1].tobytes() == run(made, of_one).tobytes(), cpu_level
    assert_close(y, exact(op, given), TOLERANCE)
    assert np.isnan(memory[:start]).all()
    assert np.isnan(memory[start + y.size :]).all()


def test_a_weight_in_bfloat16_is_multiplied_as_it_is(cpu_level: str) -> None:
    """Stored in fewer bits or widened beforehand: the same bits come out."""
    for tokens in (FEWEST_SPLIT - 1, 40):
        given = inputs("Linear", (1, tokens, 1300, 50), np.dtype(ml_dtypes.bfloat16))
        widened = {**given, "weight": given["weight"].astype(np.float32)}
        assert native("Linear", given).tobytes() == native("Linear", widened).tobytes(), (cpu_level, tokens)


def test_every_float16_is_widened_right(cpu_level: str) -> None:
    """All bit patterns, subnormals, infinities and NaNs among them."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1 << 10, 64)
    given = {"x": np.eye(64, dtype=np.float32)[None], "weight": np.where(np.isfinite(every), every, np.float16(0))}
    assert np.array_equal(native("LinearNoBias", given)[0].T, given["weight"].astype(np.float32)), cpu_level
    # With one feature nothing is multiplied by zero: what is not finite stays what it is.
    hostile = np.array([np.inf, -np.inf, np.nan], np.float16)[:, None]
    y = native("LinearNoBias", {"x": np.ones((1, 1, 1), np.float32), "weight": hostile})
    assert np.array_equal(y[0, 0], [np.inf, -np.inf, np.nan], equal_nan=True), cpu_level


@pytest.mark.parametrize("hostile", [np.nan, np.inf])
@pytest.mark.parametrize("op", ["LinearGelu", "LinearGeluBf16", "LinearGeluInt8"])
def test_a_hostile_value_reaches_its_row_and_no_other(op: str, hostile: float, cpu_level: str) -> None:
    given = inputs(op, (1, 30, 300, 40))
    clean = native(op, given)
    given["x"][0, 7, 299] = hostile
    y = native(op, given)
    assert not np.isfinite(y[0, 7]).all(), cpu_level
    assert np.isnan(y[0, 7]).any() or np.isinf(y[0, 7]).any(), cpu_level
    assert np.array_equal(np.delete(y, 7, axis=1), np.delete(clean, 7, axis=1)), cpu_level


def on_vector_registers(op: str, given: dict[str, Array]) -> Array:
    """At AVX-512, which multiplies float32 as it is."""
    active = native_library.cpu_level()
    native_library.force_cpu_level("avx512")
    y = native(op, given)
    native_library.force_cpu_level(active)
    return y


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.usefixtures("amx")
def test_few_tokens_are_not_split(dtype: np.dtype[Any]) -> None:
    """The same bits as on vector registers, whatever the batch; from FEWEST_SPLIT tokens on, others."""
    for tokens in (1, FEWEST_SPLIT - 1, FEWEST_SPLIT):
        given = inputs("Linear2GatedResidual", (3, tokens, 1100, 70), dtype)
        same = np.array_equal(native("Linear2GatedResidual", given), on_vector_registers("Linear2GatedResidual", given))
        assert same == (tokens < FEWEST_SPLIT), tokens


HOSTILE = {
    "inf": np.inf,
    "nan": np.nan,
    "largest": np.finfo(np.float32).max,
    "large": 2.0**51,
}
"""Of one such value the whole row, or column, is multiplied as float32."""


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.parametrize("value", HOSTILE.values(), ids=list(HOSTILE))
@pytest.mark.usefixtures("amx")
def test_what_cannot_be_split_is_multiplied_as_it_is(value: float, dtype: np.dtype[Any]) -> None:
    """Rows of x and columns of the weight: the bits of vector registers, and no other element is touched."""
    op = "Linear2GatedResidual"
    given = inputs(op, (1, 70, 1100, 100), dtype)
    clean = native(op, given)
    rows, columns = [0, 33, 34, 69], list(range(96, 100))  # The columns of one panel are multiplied alike.
    for row in rows:
        given["x_1"][0, row, 3] = value
    with np.errstate(over="ignore"):
        given["weight"][98, 40] = np.asarray(value).astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        y, expected = native(op, given), on_vector_registers(op, given)
    if dtype == np.float16 and np.isfinite(given["weight"][98, 40].astype(np.float32)):
        columns = []
    others = np.ix_([0], np.setdiff1d(np.arange(70), rows), np.setdiff1d(np.arange(100), columns))
    assert np.array_equal(y[others], clean[others])
    assert np.array_equal(y[:, rows], expected[:, rows], equal_nan=True)
    assert np.array_equal(y[:, :, columns], expected[:, :, columns], equal_nan=True)


@pytest.mark.parametrize("size", [2.0**-41, 2.0**-120, 2.0**-149])
@pytest.mark.usefixtures("amx")
def test_small_rows_and_columns_are_multiplied_as_they_are(size: float) -> None:
    """The tile unit would take what is left of them for zero."""
    given = inputs("LinearNoBias", (1, 40, 300, 64))
    given["x"][0, 3] = np.clip(given["x"][0, 3], -1, 1) * np.float32(size)
    given["weight"][40] = np.clip(given["weight"][40], -1, 1) * np.float32(size)
    given["weight"][2] = 0
    y, expected = native("LinearNoBias", given), on_vector_registers("LinearNoBias", given)
    assert np.array_equal(y[0, 3], expected[0, 3])
    assert np.array_equal(y[0, :, 40], expected[0, :, 40])
    assert not np.array_equal(y[0, 4, :32], expected[0, 4, :32])  # These were split.
    assert not y[0, :, 2].any()


def spread(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    drawn = rng.standard_normal(shape, dtype=np.float32)
    if name == "outliers":
        drawn[:, rng.random(shape[1]) < 0.01] *= 20
    if name == "wide":
        drawn = np.sign(drawn) * np.exp(rng.uniform(np.log(1e-10), np.log(1e10), shape)).astype(np.float32)
    return drawn


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.parametrize("distribution", ["gaussian", "outliers", "wide", "cancelling"])
@pytest.mark.usefixtures("amx")
def test_split_products_are_no_less_exact(distribution: str, dtype: np.dtype[Any]) -> None:
    """Than those of float32, against float64, element by element in units of Σ|x · weight|, and in the mean."""
    rng = np.random.default_rng(7)
    x = spread(distribution, rng, (96, 1536))
    weight = spread(distribution if dtype == np.float32 else "gaussian", rng, (64, 1536)).astype(dtype)
    if distribution == "cancelling":
        x[:, 768:] = x[:, :768]
        weight[:, 768:] = -weight[:, :768]
        weight[:, 0] += np.asarray(1e-3, dtype)
    given = {"x": x[None], "weight": weight}
    wide_x, wide_weight = x.astype(np.float64), weight.astype(np.float64)
    unit = np.abs(wide_x) @ np.abs(wide_weight).T
    ours, theirs = (
        np.abs(y[0] - wide_x @ wide_weight.T) / unit
        for y in (native("LinearNoBias", given), on_vector_registers("LinearNoBias", given))
    )
    assert ours.max() <= theirs.max(), (distribution, ours.max(), theirs.max())
    assert np.sqrt(np.mean(ours**2)) <= np.sqrt(np.mean(theirs**2))


@pytest.mark.usefixtures("amx")
def test_subnormal_values_among_others_lose_less_than_is_said() -> None:
    """An element of y is off by less than in · 2^-80 of the largest factors' product."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 64), dtype=np.float32) * np.float32(1e-38)
    x[:, 0] = 1
    weight = rng.standard_normal((32, 64), dtype=np.float32)
    weight[:, 0] = 0
    y = native("LinearNoBias", {"x": x[None], "weight": weight})[0]
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    assert np.abs(y - expected).max() <= 64 * 2.0**-80 * np.abs(weight).max()


@pytest.mark.parametrize("op", ["LinearInt8", "LinearBf16"])
def test_a_row_of_zeros_gives_the_bias(op: str, cpu_level: str) -> None:
    given = inputs(op, (1, 20, 70, 40))
    given["x"][0, 5] = 0
    assert np.array_equal(native(op, given)[0, 5], given["bias"]), cpu_level


def test_int8_reaches_the_ends_of_its_range(cpu_level: str) -> None:
    """Sums of the largest products, both signs; -128 is a weight too."""
    features = 6000
    weight = np.stack([np.full(features, value, np.int8) for value in (127, -127, -128)])
    x = np.stack([np.full(features, value, np.float32) for value in (2.0, -2.0)])[None]
    y = native("LinearNoBiasInt8", {"x": x, "weight": weight, "weight_scale": np.full(3, 1 / 127, np.float32)})
    expected = np.array([[1.0, -1.0, -128 / 127], [-1.0, 1.0, 128 / 127]]) * 2 * features
    assert np.allclose(y[0], expected, rtol=1e-6), cpu_level


def test_too_many_features_at_int8_are_refused() -> None:
    given = {"x": np.zeros((1, 1, 1), np.float32), "weight": np.zeros((1, 2**17 + 1), np.int8)}
    with pytest.raises(BackendError, match="LinearNoBiasInt8: weight has 131073 features, expected at most 131072"):
        kernel("LinearNoBiasInt8", {**given, "weight_scale": np.ones(1, np.float32)})


def test_the_levels_agree_in_every_precision() -> None:
    """Forced down, a machine gives the same answers within the tolerance: what is rounded is rounded alike."""
    for op in ("LinearBf16", "LinearInt8"):
        given = inputs(op, (1, 50, 700, 90))
        found = {}
        for level in native_library.cpu_levels():
            native_library.force_cpu_level(level)
            found[level] = native(op, given)
        native_library.force_cpu_level(None)
        for level, y in found.items():
            assert_close(y, found["scalar"].astype(np.float64), TOLERANCE, f"{op} {level}")


def test_gelu_is_right_over_its_whole_range(cpu_level: str) -> None:
    x = np.concatenate((np.linspace(-12, 12, 4001), [-1e30, -0.0, 0.0, 1e-30, 1e30])).astype(np.float32)
    given = {"x": x.reshape(1, -1, 1), "weight": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    y = native("LinearGelu", given).reshape(-1)
    assert np.allclose(y, expected, rtol=3e-6, atol=1e-9), cpu_level


@pytest.mark.parametrize("size", [(2, 0, 8, 4), (2, 3, 8, 0), (2, 3, 0, 4), (0, 3, 8, 4)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_an_empty_dimension(op: str, size: tuple[int, int, int, int]) -> None:
    given = inputs(op, size)
    y = native(op, given)
    assert y.shape == (*size[:2], size[3])
    assert_close(y, exact(op, given), TOLERANCE, op)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 3, 9)}, "LinearGatedResidual: x has 9 along in, expected 8|weight has 8 along in, expected 9"),
        ({"x": (2, 3)}, "LinearGatedResidual: x has rank 2, expected 3"),
        ({"bias": (5,)}, "LinearGatedResidual: bias has 5 along out, expected 4"),
        ({"residual": (2, 4, 4)}, "LinearGatedResidual: residual has 4 along tokens, expected 3"),
        ({"modulation": (3, 11)}, "LinearGatedResidual: modulation has 3 along batch, expected 2"),
        (
            {"modulation": (2, 8)},
            r"LinearGatedResidual: modulation has 8 along columns, expected at least 5 \(gate_at\) \+ 4 \(out\)",
        ),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    given = inputs("LinearGatedResidual", (2, 3, 8, 4))
    made = kernel("LinearGatedResidual", given)
    wrong = given | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    y = np.full((2, 3, 4), np.nan, np.float32)
    with pytest.raises(BackendError, match=message):
        made.run(list(wrong.values()), [y])
    assert np.isnan(y).all()


def test_parts_that_do_not_add_up_are_named() -> None:
    given = inputs("Linear2GatedResidual", (2, 3, 9, 4))
    made = kernel("Linear2GatedResidual", given)
    given["x_1"] = np.zeros((2, 3, 7), np.float32)
    with pytest.raises(BackendError, match=r"Linear2GatedResidual: weight has 9 along in_0 \+ in_1, expected 10"):
        made.run(list(given.values()), [np.zeros((2, 3, 4), np.float32)])


def test_what_is_wrong_with_a_node_is_said_when_the_session_opens() -> None:
    given = inputs("LinearGatedResidual", (2, 3, 8, 4))
    constants = {"weight": given["weight"]}
    cases = [
        (one_op_model("LinearGatedResidual", attributes=attributes("LinearGatedResidual")), "weight is not constant"),
        (
            one_op_model("LinearGatedResidual", attributes={"gate_at": -1}, constants=constants),
            "gate_at is -1, expected 0 or more",
        ),
        (
            one_op_model("LinearGatedResidual", attributes={"gate_at": 0.5}, constants=constants),
            "gate_at is a float, expected an int",
        ),
    ]
    missing = one_op_model("LinearGatedResidual", constants=constants)
    del missing.graph.node[0].attribute[:]
    cases.append((missing, "attribute gate_at is missing"))
    wrong_rank = one_op_model("LinearNoBias", constants={"weight": np.zeros((2, 2, 2), np.float32)})
    cases.append((wrong_rank, "weight has rank 3, expected 2"))
    for model, message in cases:
        with pytest.raises(Exception, match=message) as raised:
            session(model.SerializeToString(), library=True)
        assert type(raised.value).__module__.startswith("onnxruntime"), message


def test_a_weight_of_an_unknown_dtype_is_refused() -> None:
    given = inputs("Linear", (1, 2, 3, 4))
    with pytest.raises(BackendError, match="Linear: weight has dtype float64, which it may not have"):
        kernel("Linear", {**given, "weight": given["weight"].astype(np.float64)})
    model = one_op_model("Linear", constants={"weight": given["weight"].astype(np.float64)}, with_body=False)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph, match=r"Type 'tensor\(double\)' .* \(weight\)"):
        session(model.SerializeToString(), library=True)
