"""QkNormRope: reference, body and native kernel against float64, at every level."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_close
from tests.kernels.op_models import one_op_model, session
from tests.kernels.op_runs import Array, native, others
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.kernels import registry

OP = "QkNormRope"
TOLERANCE = registry.contract(OP).tolerances[DType.FLOAT32]
# batch, tokens, heads, head_dim: those in use and their even neighbours.
SIZES = [
    (1, 1, 1, 2),
    (2, 63, 3, 30),
    (1, 123, 2, 32),
    (2, 5, 2, 34),
    (1, 63, 5, 62),
    (1, 1025, 2, 64),
    (1, 9, 24, 128),
    (1, 3, 1, 512),
]


def attributes(size: tuple[int, int, int, int]) -> dict[str, int | float]:
    return {"num_heads": size[2], "epsilon": 1e-6}


def inputs(size: tuple[int, int, int, int]) -> dict[str, Array]:
    batch, tokens, heads, head_dim = size
    rng = np.random.default_rng(size)
    angles = rng.uniform(-np.pi, np.pi, (tokens, head_dim // 2))
    given = {
        "x": rng.standard_normal((batch, tokens, heads * head_dim)) * np.linspace(0.1, 20, tokens)[None, :, None],
        "norm": 1 + 0.3 * rng.standard_normal(head_dim),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
    }
    return {name: array.astype(np.float32) for name, array in given.items()}


def exact(size: tuple[int, int, int, int], given: dict[str, Array]) -> Array:
    """In float64: a pair is a complex number, turned by another."""
    x, norm, cos, sin = (array.astype(np.float64) for array in given.values())
    x = x.reshape(size)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * norm
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)[:, None]
    return np.stack((turned.real, turned.imag), axis=-1).reshape(given["x"].shape)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_is_right_at_every_level(size: tuple[int, int, int, int], cpu_level: str) -> None:
    given = inputs(size)
    assert_close(native(OP, given, attributes(size))[0], exact(size, given), TOLERANCE, cpu_level)


def test_reference_body_and_kernel_agree_everywhere() -> None:
    for size in SIZES:
        given = inputs(size)
        for who, (y,) in others(OP, given, attributes(size)).items():
            assert_close(y, exact(size, given), TOLERANCE, f"{size} {who}")


def test_the_threads_and_the_batch_change_no_bit(cpu_level: str) -> None:
    size = (3, 700, 2, 34)
    given = inputs(size)
    (alone,) = native(OP, given, attributes(size))
    for threads in (2, 3, 7):
        assert native(OP, given, attributes(size), threads=threads)[0].tobytes() == alone.tobytes(), (cpu_level, threads)
    for row in range(3):
        one = given | {"x": given["x"][row : row + 1]}
        assert native(OP, one, attributes(size))[0].tobytes() == alone[row : row + 1].tobytes(), (cpu_level, row)


def test_a_hostile_value_reaches_its_head_and_no_other(cpu_level: str) -> None:
    size = (1, 5, 3, 32)
    given = inputs(size)
    (clean,) = native(OP, given, attributes(size))
    given["x"][0, 2, 40] = np.nan
    (y,) = native(OP, given, attributes(size))
    assert np.isnan(y[0, 2, 32:64]).all(), cpu_level
    y[0, 2, 32:64] = clean[0, 2, 32:64]
    assert np.array_equal(y, clean), cpu_level


@pytest.mark.parametrize("size", [(0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 2, 0)], ids=str)
def test_an_empty_dimension(size: tuple[int, int, int, int]) -> None:
    given = inputs(size)
    assert native(OP, given, attributes(size))[0].shape == given["x"].shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cos": (4, 4)}, "QkNormRope: cos has 4 along tokens, expected 3"),
        ({"sin": (3, 5)}, "QkNormRope: sin has 5 along half, expected 4"),
        ({"norm": (7,)}, "QkNormRope: norm has 7 along head_dim, expected 8, twice what cos has along half"),
        ({"x": (2, 3, 24)}, r"x has 24 along width, expected 8 \(head_dim\) for each of 2 \(num_heads\)"),
        ({"x": (2, 3, 17)}, r"x has 17 along width, expected 8 \(head_dim\) for each of 2 \(num_heads\)"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    size = (2, 3, 2, 8)
    given = inputs(size) | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(BackendError, match=message):
        native(OP, given, attributes(size))


def test_no_heads_at_all_is_said_when_the_session_opens() -> None:
    with pytest.raises(Exception, match="attribute num_heads is 0, expected 1 or more") as raised:
        session(one_op_model(OP, attributes={"num_heads": 0, "epsilon": 1e-6}).SerializeToString(), library=True)
    assert type(raised.value).__module__.startswith("onnxruntime")
