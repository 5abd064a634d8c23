"""The CPU backend: what it opens, what it refuses, and the one thread pool of a process."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vitrify.engine import native_library, ort
from vitrify.engine.backends import backend as backend_by_name
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError, SpecError
from vitrify.engine.ort import OrtCpuBackend, installed_flavour
from vitrify.engine.specs import GraphSpec, TensorSpec

F32 = DType.FLOAT32


@pytest.fixture(scope="module")
def backend() -> OrtCpuBackend:
    return OrtCpuBackend(kernels="portable")


def model(folder: Path, text: str) -> Path:
    """One graph in ONNX's text form, as a file."""
    path = folder / "toy.onnx"
    path.write_bytes(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}').SerializeToString())
    return path


def spec(*, x: tuple[int | str, ...] = ("rows", 3), y: tuple[int | str, ...] = ("rows", 3), dtype: DType = F32) -> GraphSpec:
    return GraphSpec("part/toy.onnx", (TensorSpec("x", dtype, x),), (TensorSpec("y", dtype, y),))


DOUBLE = "(float[rows,3] x) => (float[rows,3] y) { y = Add(x, x) }"

# ---- which ONNX Runtime


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if not name.startswith("onnxruntime"):
            return real(name)
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return "1.32.0"

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_exactly_one_distribution_is_what_is_wanted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    installed(monkeypatch, name)
    assert installed_flavour() == name


def test_without_onnx_runtime_the_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(
        BackendError, match=r"not installed; run: pip install 'vitrify\[cpu\]' .* or pip install 'vitrify\[cuda\]'"
    ):
        OrtCpuBackend()


def test_with_both_distributions_the_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(
        BackendError, match=r"both installed .* run: pip uninstall -y onnxruntime onnxruntime-gpu, then exactly one"
    ):
        OrtCpuBackend()


def test_an_onnx_runtime_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"installed but does not load: .*; reinstall it: pip install 'vitrify\[cpu\]'"):
        OrtCpuBackend()


def test_backends_by_name() -> None:
    assert isinstance(backend_by_name("cpu", kernels="portable"), OrtCpuBackend)
    with pytest.raises(BackendError, match="backend 'tpu' is unknown; known: cpu"):
        backend_by_name("tpu")


def test_a_failure_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By its exception: ONNX Runtime itself writes nothing to stderr."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[4,2] table, int64[n] ids) => (float[n,2] rows) {
        rows = Gather(table, ids) }"""
    (tmp_path / "gather.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    inputs = (TensorSpec("table", DType.FLOAT32, (4, 2)), TensorSpec("ids", DType.INT64, ("n",)))
    spec = GraphSpec("gather.onnx", inputs, (TensorSpec("rows", DType.FLOAT32, ("n", 2)),))
    with contextlib.closing(OrtCpuBackend(kernels="portable").open(tmp_path / "gather.onnx", spec)) as session:
        plan = session.plan({"n": 1})
        plan.array("ids")[...] = 9
        plan.ready()
        with pytest.raises(BackendError, match=r"gather\.onnx failed .*out of"):
            plan.run()
    assert capfd.readouterr().err == ""


# ---- native kernels or bodies


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native_library, "path", lambda: None)
    ort._say_portable.cache_clear()
    yield
    ort._say_portable.cache_clear()


@pytest.mark.usefixtures("without_library")
def test_native_without_the_library_is_an_error() -> None:
    with pytest.raises(BackendError, match="kernels='native' was asked for, but this installation has no op library; reinstall"):
        OrtCpuBackend(kernels="native")


@pytest.mark.usefixtures("without_library")
def test_auto_without_the_library_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vitrify.engine.ort"):
        for _ in range(3):
            assert OrtCpuBackend().native_ops == {}
        assert [r.getMessage() for r in caplog.records if "portable bodies" in r.getMessage()] == [
            "no op library is installed: our ops run as their portable bodies; reinstall vitrify with a C++ compiler"
        ]
        caplog.clear()
        OrtCpuBackend(kernels="portable")
        assert not caplog.records, "who asks for the bodies need not be told"


@pytest.mark.skipif(native_library.path() is None, reason="this installation has no native op library")
def test_the_librarys_ops_are_named_unless_the_bodies_are_asked_for() -> None:
    assert OrtCpuBackend(kernels="native").native_ops == OrtCpuBackend().native_ops == native_library.ops()
    assert OrtCpuBackend(kernels="portable").native_ops == {}


def test_an_unknown_kernel_mode_is_refused() -> None:
    with pytest.raises(SpecError, match="kernels='fast' is unknown; known: auto, native, portable"):
        OrtCpuBackend(kernels="fast")  # type: ignore[arg-type]


# ---- threads: a process of its own each, for the pool is made once


def in_process(code: str) -> str:
    """What a fresh interpreter prints."""
    script = "from vitrify.engine.errors import BackendError\nfrom vitrify.engine.ort import OrtCpuBackend\n" + textwrap.dedent(
        code
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_pool_is_made_once() -> None:
    out = in_process(
        """
        for threads in (3, None, 3, 2):
            try:
                OrtCpuBackend(kernels="portable", threads=threads)
                print("ok")
            except BackendError as error:
                print(error)
        """
    ).splitlines()
    refusal = "was asked for, but this process already runs ONNX Runtime on 3: the pool is made once, by the first load()"
    assert out[:3] == ["ok"] * 3
    assert out[3] == f"threads=2 {refusal}; pass the number there"


@pytest.mark.parametrize("threads", [0, -1, 2.5, "1", True])
@pytest.mark.usefixtures("backend")
def test_what_is_no_number_of_threads_is_refused_also_once_there_is_a_pool(threads: Any) -> None:
    with pytest.raises(SpecError, match=f"threads={threads!r}: expected a whole number of at least 1, or None"):
        OrtCpuBackend(kernels="portable", threads=threads)


def test_sessions_share_the_pool(tmp_path: Path) -> None:
    """Two sessions, opened and run, have no threads beyond those of the pool."""
    path = model(tmp_path, DOUBLE)
    out = in_process(
        f"""
        import os
        from pathlib import Path
        from vitrify.engine.dtypes import DType
        from vitrify.engine.specs import GraphSpec, TensorSpec
        backend = OrtCpuBackend(kernels="portable", threads=3)
        x, y = (TensorSpec(name, DType.FLOAT32, ("rows", 3)) for name in "xy")
        spec = GraphSpec("toy.onnx", (x,), (y,))
        counts = []
        for _ in range(3):
            plan = backend.open(Path({str(path)!r}), spec).plan({{"rows": 2}})
            plan.ready()
            plan.run()
            counts.append(len(os.listdir("/proc/self/task")))
        print(len(set(counts)))
        """
    )
    assert out == "1"


# ---- opening


def test_a_graph_runs_on_bound_memory(backend: OrtCpuBackend, tmp_path: Path) -> None:
    plan = backend.open(model(tmp_path, DOUBLE), spec()).plan({"rows": 4})
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.zeros((4, 3), np.float32)
    plan.bind("x", x)
    plan.bind("y", y)
    plan.run()
    np.testing.assert_array_equal(y, 2 * x)
    x += 1
    plan.run()
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize("dtype", DType)
def test_every_type_goes_in_and_out(backend: OrtCpuBackend, tmp_path: Path, dtype: DType) -> None:
    name = onnx.TensorProto.DataType.Name(dtype.onnx).lower()
    path = model(tmp_path, f"({name}[rows,3] x) => ({name}[rows,3] y) {{ y = Identity(x) }}")
    plan = backend.open(path, spec(dtype=dtype)).plan({"rows": 2})
    values = [np.asarray([[0, 1, 1], [1, 0, 1]]).astype(dtype.numpy), np.ones((2, 3)).astype(dtype.numpy)]
    for array in values:
        plan.bind("x", array)
        plan.ready()
        plan.run()
        np.testing.assert_array_equal(plan.array("y"), array)
    targets = [np.zeros((2, 3), dtype.numpy) for _ in values]
    from_, to = plan.switch("x", values), plan.switch("y", targets)
    for index in (1, 0):
        from_(index)
        to(index)
        plan.run()
    for array, target in zip(values, targets, strict=True):
        np.testing.assert_array_equal(target, array)


def test_prepared_arrays_are_the_callers_memory(backend: OrtCpuBackend, tmp_path: Path) -> None:
    """What is written into them after they were prepared is what the graph reads."""
    plan = backend.open(model(tmp_path, DOUBLE), spec()).plan({"rows": 2})
    table = np.zeros((2, 2, 3), np.float32)
    point = plan.switch("x", list(table))
    plan.ready()
    table[...] = np.arange(12).reshape(2, 2, 3)
    for step in (1, 0):
        point(step)
        plan.run()
        np.testing.assert_array_equal(plan.array("y"), 2 * table[step])


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        (spec(x=("rows", 4)), r"part/toy.onnx: its inputs are \['x: .*the manifest says \['x: float32\[rows, 4"),
        (spec(x=("batch", 3)), r"its inputs are"),
        (spec(y=(1, 3)), r"its outputs are"),
        (spec(dtype=DType.FLOAT16), r"its inputs are \['x: float32.*the manifest says \['x: float16"),
        (GraphSpec("part/toy.onnx", (), spec().outputs), r"its inputs are .* the manifest says \[\]; export the artifact again"),
    ],
)  # fmt: skip
def test_a_file_of_another_signature_is_refused(backend: OrtCpuBackend, tmp_path: Path, claimed: GraphSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        backend.open(model(tmp_path, DOUBLE), claimed)


def test_a_type_that_no_spec_can_name_is_refused(backend: OrtCpuBackend, tmp_path: Path) -> None:
    path = model(tmp_path, "(uint16[rows,3] x) => (uint16[rows,3] y) { y = Identity(x) }")
    with pytest.raises(SpecError, match=r"part/toy.onnx: 'x' has type tensor\(uint16\), which is unsupported"):
        backend.open(path, spec())


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x00" * 100])
def test_what_is_no_model_is_a_backend_error(backend: OrtCpuBackend, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "toy.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError, match=r"part/toy.onnx: ONNX Runtime \d+\.\d+\.\d+ cannot open it"):
        backend.open(path, spec())


def test_an_op_that_no_kernel_runs_is_a_backend_error(backend: OrtCpuBackend, tmp_path: Path) -> None:
    path = model(tmp_path, "(bfloat16[rows,3] x, bfloat16[3,3] w) => (bfloat16[rows,3] y) { y = MatMul(x, w) }")
    with pytest.raises(BackendError, match=r"part/toy.onnx: .*MatMul"):
        backend.open(path, spec())


def test_an_engine_that_fails_says_with_which_sizes(backend: OrtCpuBackend, tmp_path: Path) -> None:
    path = model(tmp_path, "(float[rows,3] x) => (float[rows,3] y) <int64[1] s = {7}> { r = Gather(x, s) y = Add(x, r) }")
    plan = backend.open(path, spec()).plan({"rows": 4})
    plan.ready()
    with pytest.raises(BackendError, match=r"part/toy.onnx failed with dims {'rows': 4}: .*Gather"):
        plan.run()


def test_weights_lie_beside_a_graph_held_in_memory(backend: OrtCpuBackend, tmp_path: Path) -> None:
    values = np.asarray([1.0, 2.0, 3.0], np.float32)
    (tmp_path / "weights.bin").write_bytes(b"......" + values.tobytes())
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[rows,3] x) => (float[rows,3] y) <float[3] w = {0, 0, 0}> {
        y = Add(x, w) }"""
    )
    tensor = proto.graph.initializer[0]
    tensor.CopyFrom(onnx.TensorProto(name="w", dims=[3], data_type=1, data_location=onnx.TensorProto.EXTERNAL))
    for key, value in (("location", "weights.bin"), ("offset", "6"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    with contextlib.closing(backend.open_bytes(proto.SerializeToString(), tmp_path, spec())) as session:
        plan = session.plan({"rows": 1})
        plan.array("x")[...] = 1
        plan.ready()
        plan.run()
        np.testing.assert_array_equal(plan.array("y"), [[2.0, 3.0, 4.0]])
    with pytest.raises(BackendError, match=r"part/toy.onnx"):
        backend.open_bytes(proto.SerializeToString(), tmp_path / "elsewhere", spec())


def test_a_closed_session_plans_no_more(backend: OrtCpuBackend, tmp_path: Path) -> None:
    session = backend.open(model(tmp_path, DOUBLE), spec())
    session.close()
    session.close()
    with pytest.raises(BackendError, match=r"part/toy.onnx: the session is closed"):
        session.plan({"rows": 2})


def test_a_session_on_another_provider_is_refused() -> None:
    class Elsewhere:
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    arguments: list[Any] = [Elsewhere(), spec(), None]
    with pytest.raises(BackendError, match=r"got providers \['CUDAExecutionProvider', .*expected the CPU"):
        ort._OrtSession(*arguments)
