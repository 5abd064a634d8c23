"""Plans and holders, on an engine that is a Python function."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError, SpecError
from vitrify.engine.session import ROW_ALIGNMENT_BYTES, Array, Plan, Session, SessionHolder, aligned_empty, check_signature
from vitrify.engine.specs import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "toy.onnx",
    (TensorSpec("x", DType.FLOAT32, ("rows", 3)), TensorSpec("ids", DType.INT64, ("rows",))),
    (TensorSpec("y", DType.FLOAT32, ("rows", 3)), TensorSpec("z", DType.FLOAT32, ("rows + more",))),
)


class FunctionPlan(Plan):
    """Keeps what it was told, and runs y = 2 x."""

    def __init__(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        super().__init__(spec, dims)
        self.bound: dict[str, Array] = {}

    def _bind(self, name: str, array: Array) -> None:
        self.bound[name] = array

    def run(self) -> None:
        np.multiply(self.bound["x"], 2, out=self.bound["y"])


class FunctionSession(Session):
    closed = 0

    def plan(self, dims: Mapping[str, int]) -> FunctionPlan:
        return FunctionPlan(self.spec, dims)

    def close(self) -> None:
        self.closed += 1


def plan(rows: int = 4, more: int = 2) -> FunctionPlan:
    return FunctionSession(SPEC).plan({"rows": rows, "more": more})


# ---- memory


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 64), (7, 1, 9)])
@pytest.mark.parametrize("dtype", ["float32", "bool", "int64"])
def test_memory_starts_on_256_bytes(shape: tuple[int, ...], dtype: str) -> None:
    arrays = [aligned_empty(shape, np.dtype(dtype)) for _ in range(8)]
    for array in arrays:
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % ROW_ALIGNMENT_BYTES == 0 or array.size == 0
    places = sorted((a.ctypes.data, a.nbytes) for a in arrays if a.size)
    assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(places))


def test_arrays_are_made_when_asked_for_and_once() -> None:
    made = plan()
    assert made.allocated_bytes == 0
    x = made.array("x")
    assert x is made.array("x") is made.bound["x"]
    assert (x.shape, str(x.dtype)) == ((4, 3), "float32")
    assert made.allocated_bytes == 48
    made.ready()
    assert set(made.bound) == {"x", "ids", "y", "z"}
    assert made.array("z").shape == (6,)
    assert made.allocated_bytes == 48 + 32 + 48 + 24
    made.run()
    np.testing.assert_array_equal(made.array("y"), 2 * x)


def test_shared_memory_is_counted_once() -> None:
    left, right = plan(), plan()
    right.bind("x", left.array("y"))
    left.ready()
    right.ready()
    before = left.allocated_bytes
    left.bind("x", right.array("y"))
    assert left.allocated_bytes == before == right.allocated_bytes


def test_two_buffers_are_swapped_without_a_copy() -> None:
    made, a, b = plan(), np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)
    for source, target in ((a, b), (b, a), (a, b)):
        made.bind("x", source)
        made.bind("y", target)
        made.ready()
        made.run()
    assert made.bound["y"] is b
    np.testing.assert_array_equal(b, 8 * np.ones((4, 3)))


# ---- what a plan refuses


def transposed() -> Array:
    return np.zeros((3, 4), np.float32).T


def read_only() -> Array:
    array = np.zeros((4, 3), np.float32)
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("nothing", np.zeros((4, 3), np.float32), r"toy.onnx has no input or output 'nothing'; it has x, ids, y, z"),
        ("x", np.zeros((4, 2), np.float32), r"toy.onnx: 'x' got float32\[4, 2\], expected contiguous float32\[4, 3\]"),
        ("x", np.zeros(12, np.float32), r"'x' got float32\[12\], expected contiguous float32\[4, 3\]"),
        ("x", np.zeros((4, 3)), r"'x' got float64\[4, 3\], expected contiguous float32"),
        ("x", np.zeros((4, 3), ">f4"), r"'x' got >f4\[4, 3\]"),
        ("ids", np.zeros(4, np.int32), r"'ids' got int32\[4\], expected contiguous int64\[4\]"),
        ("x", transposed(), r"'x' got float32\[4, 3\] \(not contiguous\), expected contiguous"),
        ("x", np.zeros((4, 6), np.float32)[:, ::2], r"\(not contiguous\)"),
        ("y", read_only(), r"output 'y' got a read-only array"),
        ("z", np.zeros(4, np.float32), r"'z' got float32\[4\], expected contiguous float32\[6\]"),
    ],
)
def test_memory_that_does_not_fit_is_refused_by_name(name: str, array: Array, message: str) -> None:
    made = plan()
    with pytest.raises(SpecError, match=message):
        made.bind(name, array)
    assert name not in made.bound
    with pytest.raises(SpecError, match=message):
        made.switch(name, [array])


def test_a_read_only_input_is_welcome() -> None:
    made = plan()
    made.bind("x", read_only())
    made.ready()


@pytest.mark.parametrize("name", ["x", "z"])
def test_an_output_in_anothers_memory_is_refused(name: str) -> None:
    made = plan(rows=4, more=8)
    memory = np.zeros(16, np.float32)
    made.bind("y", memory[:12].reshape(4, 3))
    made.bind(name, memory[4:].reshape(4, 3) if name == "x" else memory[4:])
    with pytest.raises(SpecError, match=r"output '(y|z)' shares memory with '(x|y|z)'"):
        made.ready()


def test_inputs_may_share_memory() -> None:
    spec = GraphSpec("two.onnx", (SPEC.inputs[0], TensorSpec("w", DType.FLOAT32, ("rows", 3))), (SPEC.outputs[0],))
    made = FunctionPlan(spec, {"rows": 4})
    memory = np.zeros((4, 3), np.float32)
    made.bind("x", memory)
    made.bind("w", memory)
    made.ready()


def test_a_dimension_without_a_value_is_named() -> None:
    with pytest.raises(SpecError, match=r"tensor 'z' float32\[rows \+ more\]: no value for dims \['more'\]; given: {'rows': 4}"):
        FunctionSession(SPEC).plan({"rows": 4})


def test_a_switch_moves_one_name_among_prepared_arrays() -> None:
    made = plan()
    rows = np.arange(36, dtype=np.float32).reshape(3, 4, 3)
    point = made.switch("x", list(rows))
    assert "x" not in made.bound, "nothing moves before the switch is used"
    made.ready()
    for index in (2, 0, 1, 1):
        point(index)
        made.run()
        assert np.shares_memory(made.array("x"), rows[index])
        np.testing.assert_array_equal(made.array("y"), 2 * rows[index])


# ---- signatures


def test_a_file_that_is_not_what_the_manifest_says_is_refused_with_both_sides() -> None:
    check_signature(SPEC, SPEC.inputs, SPEC.outputs)
    changed = [
        (SPEC.inputs[::-1], SPEC.outputs),
        (SPEC.inputs[:1], SPEC.outputs),
        (SPEC.inputs, (SPEC.outputs[0], TensorSpec("z", DType.FLOAT32, ("rows",)))),
        ((TensorSpec("x", DType.FLOAT16, ("rows", 3)), SPEC.inputs[1]), SPEC.outputs),
        ((TensorSpec("X", DType.FLOAT32, ("rows", 3)), SPEC.inputs[1]), SPEC.outputs),
    ]
    for inputs, outputs in changed:
        with pytest.raises(
            SpecError, match=r"toy.onnx: its (inputs|outputs) are \[.*\], the manifest says \[.*'.*export the artifact"
        ):
            check_signature(SPEC, inputs, outputs)


# ---- holders


class Opener:
    """Opens sessions and remembers them."""

    def __init__(self) -> None:
        self.opened: list[FunctionSession] = []

    def __call__(self) -> FunctionSession:
        self.opened.append(FunctionSession(SPEC))
        return self.opened[-1]

    @property
    def closed(self) -> list[int]:
        return [session.closed for session in self.opened]


def test_a_kept_session_opens_once_at_its_first_use() -> None:
    opener = Opener()
    holder = SessionHolder(opener, keep=True)
    assert not opener.opened
    for _ in range(3):
        with holder.use() as session:
            assert session is opener.opened[0]
            assert holder.is_open
    assert opener.closed == [0]
    holder.close()
    assert opener.closed == [1]
    assert holder.is_open is False


def test_a_session_not_kept_closes_with_its_last_user() -> None:
    opener = Opener()
    holder = SessionHolder(opener, keep=False)
    with holder.use() as one:
        with holder.use() as two:
            assert one is two
        assert opener.closed == [0]
    assert opener.closed == [1]
    assert not holder.is_open
    with holder.use() as again:
        assert again is not one
    assert opener.closed == [1, 1]


@pytest.mark.parametrize("keep", [False, True])
def test_closed_while_in_use_it_lives_until_the_last_user_leaves(keep: bool) -> None:
    opener = Opener()
    holder = SessionHolder(opener, keep=keep)
    with holder.use():
        holder.close()
        assert opener.closed == [0]
        with pytest.raises(BackendError, match="this pipeline is closed; load the artifact again"), holder.use():
            pytest.fail("opened")
        assert opener.closed == [0]
    assert opener.closed == [1]
    holder.close()
    assert opener.closed == [1]


@pytest.mark.parametrize("keep", [False, True])
def test_a_user_that_fails_leaves_as_any_other(keep: bool) -> None:
    opener = Opener()
    holder = SessionHolder(opener, keep=keep)
    with pytest.raises(KeyError), holder.use():
        raise KeyError
    assert opener.closed == [0 if keep else 1]
    holder.close()
    assert opener.closed == [1]


def test_a_session_that_does_not_open_is_tried_again() -> None:
    tries: list[Callable[[], FunctionSession]] = [Opener(), Opener()]

    def opener() -> FunctionSession:
        if len(tries) == 2:
            tries.pop()
            raise BackendError("no memory")
        return tries[0]()

    holder = SessionHolder(opener, keep=True)
    with pytest.raises(BackendError, match="no memory"), holder.use():
        pytest.fail("opened")
    assert not holder.is_open
    with holder.use():
        assert holder.is_open


@pytest.mark.parametrize("keep", [False, True])
def test_many_threads_share_one_session_and_lose_none(keep: bool) -> None:
    opener, inside, most = Opener(), 0, 0
    holder = SessionHolder(opener, keep=keep)
    lock, start = threading.Lock(), threading.Barrier(8)

    def work() -> None:
        nonlocal inside, most
        start.wait()
        for _ in range(200):
            with holder.use() as session:
                with lock:
                    inside += 1
                    most = max(most, inside)
                assert isinstance(session, FunctionSession)
                assert session.closed == 0
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holder.close()
    assert set(opener.closed) == {1}
    assert len(opener.opened) == 1 if keep else len(opener.opened) >= 1


def test_an_array_beyond_all_memory_is_a_named_error() -> None:
    for shape in ((2**40, 2**30), (2**62, 2**62)):
        with pytest.raises(BackendError, match=r"no memory for float32\[.* bytes; ask for fewer"):
            aligned_empty(shape, np.dtype(np.float32))
