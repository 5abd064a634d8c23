"""GatedResidual: reference, body and native kernel against float64, at every level."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_close
from tests.kernels.op_models import one_op_model, session
from tests.kernels.op_runs import Array, native, others
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.kernels import registry

OP = "GatedResidual"
TOLERANCE = registry.contract(OP).tolerances[DType.FLOAT32]
SIZES = [(1, 1, 1), (3, 1, 31), (2, 63, 192), (1, 123, 1024), (2, 1025, 65), (1, 63, 3073), (3, 7, 4)]
AT = {"gate_at": 5}


def inputs(size: tuple[int, int, int]) -> dict[str, Array]:
    batch, _tokens, width = size
    rng = np.random.default_rng(size)
    x, y = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    # Columns that are not the op's would be noticed.
    modulation = np.full((batch, width + 7), np.nan, np.float32)
    modulation[:, 5 : 5 + width] = rng.standard_normal((batch, width))
    return {"x": x, "y": y, "modulation": modulation}


def exact(given: dict[str, Array]) -> Array:
    x, y, modulation = (array.astype(np.float64) for array in given.values())
    return np.asarray(x + modulation[:, None, 5 : 5 + x.shape[2]] * y)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_is_right_at_every_level(size: tuple[int, int, int], cpu_level: str) -> None:
    given = inputs(size)
    assert_close(native(OP, given, AT)[0], exact(given), TOLERANCE, cpu_level)


def test_reference_body_and_kernel_agree_everywhere() -> None:
    for size in SIZES:
        given = inputs(size)
        for who, (out,) in others(OP, given, AT).items():
            assert_close(out, exact(given), TOLERANCE, f"{size} {who}")


def test_the_threads_and_the_batch_change_no_bit(cpu_level: str) -> None:
    given = inputs((3, 700, 63))
    (alone,) = native(OP, given, AT)
    for threads in (2, 3, 7):
        assert native(OP, given, AT, threads=threads)[0].tobytes() == alone.tobytes(), (cpu_level, threads)
    for row in range(3):
        one = {name: array[row : row + 1] for name, array in given.items()}
        assert native(OP, one, AT)[0].tobytes() == alone[row : row + 1].tobytes(), (cpu_level, row)


@pytest.mark.parametrize("hostile", [np.nan, np.inf])
def test_a_hostile_value_stays_where_it_is(hostile: float, cpu_level: str) -> None:
    given = inputs((1, 30, 70))
    (clean,) = native(OP, given, AT)
    given["y"][0, 7, 69] = hostile
    (out,) = native(OP, given, AT)
    assert not np.isfinite(out[0, 7, 69]), cpu_level
    out[0, 7, 69] = clean[0, 7, 69]
    assert np.array_equal(out, clean), cpu_level


@pytest.mark.parametrize("size", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_an_empty_dimension(size: tuple[int, int, int]) -> None:
    given = inputs(size)
    assert native(OP, given, AT)[0].shape == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": (2, 3, 5)}, "GatedResidual: y has 5 along width, expected 4"),
        ({"y": (2, 4, 4)}, "GatedResidual: y has 4 along tokens, expected 3"),
        ({"modulation": (1, 11)}, "GatedResidual: modulation has 1 along batch, expected 2"),
        ({"modulation": (2, 8)}, r"modulation has 8 along columns, expected at least 5 \(gate_at\) \+ 4 \(width\)"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    given = inputs((2, 3, 4)) | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(BackendError, match=message):
        native(OP, given, AT)


def test_a_place_before_the_first_column_is_said_when_the_session_opens() -> None:
    with pytest.raises(Exception, match="attribute gate_at is -2, expected 0 or more") as raised:
        session(one_op_model(OP, attributes={"gate_at": -2}).SerializeToString(), library=True)
    assert type(raised.value).__module__.startswith("onnxruntime")
