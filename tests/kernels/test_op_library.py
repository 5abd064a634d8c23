"""The op library in ONNX Runtime: whose code runs, on which threads, and what it says of wrong input."""

from __future__ import annotations

import _ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.kernels.op_models import one_op_model, session
from vitrify.engine import native_library
from vitrify.engine.errors import BackendError
from vitrify.engine.native_kernel import NativeKernel
from vitrify.kernels import registry


def arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    sizes = {"h1": (2, 5, 8), "h0": (2, 5, 8), "r_ref": (2, 5, 8), **shapes}
    return {name: rng.standard_normal(size, dtype=np.float32) for name, size in sizes.items()}


def test_the_marked_body_tells_whose_code_ran() -> None:
    """Without the library the body runs, which adds 1000; with it our kernel does, which does not."""
    model, feed = one_op_model("ResidualDiff", marked=True).SerializeToString(), arrays()
    true = feed["h1"] - feed["h0"]
    by_body = session(model, library=False).run(["r"], feed)[0]
    by_kernel = session(model, library=True).run(["r"], feed)[0]
    assert np.array_equal(by_body, true + np.float32(1000))
    assert np.array_equal(by_kernel, true)


def test_several_sessions_share_the_library() -> None:
    model, feed = one_op_model("ResidualDiff", with_body=False).SerializeToString(), arrays()
    first, second = session(model, library=True), session(model, library=True)
    expected = first.run(None, feed)
    del first
    for actual, wanted in zip(second.run(None, feed), expected, strict=True):
        assert np.array_equal(actual, wanted)


def test_shapes_are_inferred_by_name() -> None:
    model = one_op_model("ResidualDiff", with_body=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    outputs = session(model.SerializeToString(), library=True).get_outputs()
    assert [output.shape for output in outputs] == [["batch", "tokens", "width"], ["batch", 2]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"h0": (2, 5, 9)}, "ResidualDiff: h0 has 9 along width, expected 8"),
        ({"r_ref": (1, 5, 8)}, "ResidualDiff: r_ref has 1 along batch, expected 2"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    model = one_op_model("ResidualDiff", with_body=False)
    # Distinct names in the graph, so that the session's own check of its inputs lets them through.
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{axis}"
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    opened = session(model.SerializeToString(), library=True)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match=message):
        opened.run(None, arrays(**shapes))


@pytest.mark.parametrize("file", ["libvitrify_ops.so", "unrelated.so", "text.so"])
def test_a_library_of_another_build_is_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours with another interface version, a library that is none of ours, a file that is no library."""
    built = native_library.path()
    assert built is not None
    other = tmp_path / file
    if file == "libvitrify_ops.so":
        other.write_bytes(built.read_bytes())
        monkeypatch.setattr(native_library, "_ABI_VERSION", 99)
    elif file == "unrelated.so":
        other = Path(_ctypes.__file__)
    else:
        other.write_text("no library")
    monkeypatch.setattr(native_library, "path", lambda: other)
    native_library._load.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"interface version (1|none), expected|does not load"):
            native_library.load()
    finally:
        native_library._load.cache_clear()


THREADS = """
import sys
import numpy as np, onnxruntime
from tests.kernels.op_models import one_op_model, session
from vitrify.engine import native_library
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[1])
options.register_custom_ops_library(str(native_library.path()))
session = onnxruntime.InferenceSession(one_op_model("ResidualDiff", with_body=False).SerializeToString(), options)
rng = np.random.default_rng(1)
feed = {name: rng.standard_normal((2, 1025, 257), dtype=np.float32) for name in ("h1", "h0", "r_ref")}
print(session.run(["sums"], feed)[0].tobytes().hex())
"""


def test_the_thread_count_changes_no_bit() -> None:
    printed = {
        subprocess.run([sys.executable, "-c", THREADS, threads], capture_output=True, text=True, check=True).stdout
        for threads in ("1", "2", "5")
    }
    assert len(printed) == 1
    assert len(next(iter(printed)).strip()) == 2 * 2 * 2 * 4  # two rows of two float32, in hexadecimal


def test_an_unknown_level_lists_those_of_this_machine() -> None:
    with pytest.raises(BackendError, match=r"CPU level 'sse9' is not available here; available: scalar"):
        native_library.force_cpu_level("sse9")


def test_a_forced_level_is_the_one_that_runs() -> None:
    for level in native_library.cpu_levels():
        native_library.force_cpu_level(level)
        assert native_library.cpu_level() == level
    native_library.force_cpu_level(None)
    assert native_library.cpu_level() == native_library.cpu_levels()[-1]


def test_the_library_exports_nothing_but_its_interface() -> None:
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(native_library.path())], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listing.splitlines()}
    assert {name for name in names if not name.startswith("vitrify_")} == {"RegisterCustomOps"}


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        # With the 2000 columns added, beyond 64 bits: a place before the table.
        (
            "LinearGatedResidual",
            {"gate_at": 2**63 - 1024},
            "attribute gate_at is 9.22.*e\\+18, expected a whole number below 2\\^53",
        ),
        ("LinearGatedResidual", {"gate_at": 0.5}, "attribute gate_at is 0.5, expected a whole number"),
        ("LinearGatedResidual", {"gate_at": -1}, "attribute gate_at is -1, expected 0 or more"),
        ("GatedResidual", {"gate_at": float("nan")}, "attribute gate_at is -?nan, expected a whole number"),
        (
            "AdaLayerNorm",
            {"factor_at": 0, "shift_at": 0, "epsilon": float("nan")},
            "attribute epsilon is -?nan, expected a finite",
        ),
        ("AdaRMSNorm", {"factor_at": 0, "shift_at": 0, "epsilon": -1.0}, "attribute epsilon is -1.000000, expected 0 or more"),
        ("QkNormRope", {"num_heads": 1, "epsilon": -1.0}, "attribute epsilon is -1.000000, expected 0 or more"),
        (
            "FusedAttention",
            {"num_heads": 1, "causal": 0, "scale": 1e300},
            "attribute scale is 1.*e\\+300, expected a finite float32",
        ),
    ],
)
def test_attributes_that_are_no_numbers_of_their_kind_are_named(op: str, attributes: dict[str, float], message: str) -> None:
    weight = np.ones((2000, 8), np.float32)
    constants = [weight if tensor.name == "weight" else None for tensor in registry.contract(op).inputs]
    with pytest.raises(BackendError, match=f"{op}: {message}"):
        NativeKernel(op, constants, attributes=attributes)


def test_an_attribute_beyond_a_doubles_whole_numbers_is_named_when_the_session_opens() -> None:
    constants = {"weight": np.ones((2000, 8), np.float32)}
    model = one_op_model("LinearGatedResidual", attributes={"gate_at": 2**63 - 1}, constants=constants, with_body=False)
    with pytest.raises(
        onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException, match=r"attribute gate_at is 9\.22.*below 2\^53"
    ):
        session(model.SerializeToString(), library=True)
