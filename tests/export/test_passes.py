"""Each pass on small graphs: what its rules promise, what they must leave alone, and that results stay."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.export.by_hand import assert_unchanged, graph, names, ops, run, run_file
from vitrify.export.passes.borders import name_borders
from vitrify.export.passes.clean import clean, sweep
from vitrify.export.passes.external import tie_parameters
from vitrify.export.passes.functions import attach_bodies
from vitrify.export.passes.shapes import constant, positional_reshapes
from vitrify.export.source import TensorLocation

RNG_SEED = 3


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(RNG_SEED).standard_normal(shape).astype(np.float32)


# ---- clean


def test_clean_folds_constants_lifts_them_and_merges_equal_work() -> None:
    model = graph("""(float[n,2] x) => (float[n,2] y) {
        a = Constant<value = float[2] {1.0, 2.0}>()
        b = Constant<value = float[2] {3.0, 4.0}>()
        c = Add(a, b)
        same = Constant<value = float[2] {4.0, 6.0}>()
        l = Mul(x, c)
        r = Mul(x, same)
        twice = Mul(x, c)
        s = Add(l, r)
        y = Add(s, twice)
    }""")
    assert_unchanged(model, clean, {"x": normal(3, 2)})
    assert ops(model) == ["Mul", "Add", "Add"]
    assert [v.const_value.numpy().tolist() for v in model.graph.initializers.values() if v.const_value] == [[4.0, 6.0]]


def test_clean_inlines_functions() -> None:
    function = '<domain: "toy", opset_import: ["" : 23]> twice (x) => (y) { y = Add(x, x) }'
    model = graph("(float[n,2] x) => (float[n,2] y) { y = toy.twice(x) }", function)
    assert_unchanged(model, clean, {"x": normal(3, 2)})
    assert ops(model) == ["Add"]
    assert not model.functions


def test_clean_leaves_parameters_as_they_are() -> None:
    model = graph("""(float[n,2] x, float[3,2] w, float[3,2] v) => (float[n,3] y) {
        wt = Transpose<perm = [1, 0]>(w)
        vt = Transpose<perm = [1, 0]>(v)
        a = MatMul(x, wt)
        b = MatMul(x, vt)
        y = Add(a, b)
    }""")
    w = normal(3, 2)
    assert_unchanged(model, clean, {"x": normal(4, 2), "w": w, "v": w})
    assert ops(model) == ["Transpose", "Transpose", "MatMul", "MatMul", "Add"], "equal parameters are two parameters"
    assert [v.name for v in model.graph.inputs] == ["x", "w", "v"]


def test_clean_drops_identities_but_keeps_outputs_and_their_names() -> None:
    model = graph("""(float[n] x) => (float[n] y, float[n] z) {
        a = Identity(x)
        b = Relu(a)
        c = Identity(b)
        y = Identity(c)
        z = Identity(x)
    }""")
    assert_unchanged(model, clean, {"x": normal(5)})
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert "a" not in names(model)
    assert "c" not in names(model)


def test_clean_removes_what_names_the_machine() -> None:
    model = graph("(float[n] x) => (float[n] y) { y = Relu(x) }")
    node = next(iter(model.graph))
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "someone/model.py"
    node.doc_string = model.graph.doc_string = "someone"
    model.graph.metadata_props["where"] = "someone"
    clean(model)
    assert b"someone" not in ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize(
    ("text", "x"),
    [
        # a zero or a one that widens its neighbour is no no-op
        ("(float[1,4] x) => (float[3,4] y) { z = Constant<value = float[3,1] {0.0, 0.0, 0.0}>() y = Add(x, z) }", normal(1, 4)),
        ("(float[1,4] x) => (float[3,4] y) { z = Constant<value = float[3,1] {1.0, 1.0, 1.0}>() y = Mul(x, z) }", normal(1, 4)),
        ("(float[n] x) => (float[n,1] y) { z = Constant<value = float[1,1] {1.0}>() a = Mul(x, z) y = Transpose(a) }", normal(3)),
        # a cast there and back that rounds
        ("(float[n] x) => (float[n] y) { i = Cast<to = 7>(x) y = Cast<to = 1>(i) }", 10 * normal(6)),
        ("(float[n] x) => (float[n] y) { h = Cast<to = 10>(x) y = Cast<to = 1>(h) }", normal(6)),
        ("(float[n] x) => (double[n] y) { h = Cast<to = 10>(x) y = Cast<to = 11>(h) }", normal(6)),
        # two transposes that are no identity, two that are
        ("(float[2,3,4] x) => (float[a,b,c] y) { t = Transpose<perm = [1,2,0]>(x) y = Transpose<perm = [1,2,0]>(t) }",
         normal(2, 3, 4)),
        ("(float[2,3,4] x) => (float[2,3,4] y) { t = Transpose<perm = [1,2,0]>(x) y = Transpose<perm = [2,0,1]>(t) }",
         normal(2, 3, 4)),
        # reshapes on reshapes, with a copied and a deduced size
        ("""(float[2,6] x) => (float[a,b] y) {
            s = Constant<value = int64[3] {0, 2, 3}>() t = Reshape(x, s)
            u = Constant<value = int64[2] {0, -1}>() y = Reshape(t, u) }""", normal(2, 6)),
        ("""(float[2,6] x) => (float[a,b] y) {
            s = Constant<value = int64[2] {4, 3}>() t = Reshape(x, s)
            u = Constant<value = int64[2] {0, -1}>() y = Reshape(t, u) }""", normal(2, 6)),
        # an expansion that widens, and one that does not
        ("(float[1,4] x) => (float[2,4] y) { s = Constant<value = int64[2] {2, 4}>() y = Expand(x, s) }", normal(1, 4)),
        ("(float[2,4] x) => (float[2,4] y) { s = Constant<value = int64[2] {1, 1}>() y = Expand(x, s) }", normal(2, 4)),
        ("(float[2,4] x) => (float[2,4] y) { s = Constant<value = int64[1] {1}>() y = Expand(x, s) }", normal(2, 4)),
        # bounds in both orders
        ("""(float[n] x) => (float[n] y) { l = Constant<value = float {-0.2}>() h = Constant<value = float {0.4}>()
            a = Max(x, l) y = Min(a, h) }""", normal(9)),
        ("""(float[n] x) => (float[n] y) { l = Constant<value = float {0.4}>() h = Constant<value = float {-0.2}>()
            a = Max(x, l) y = Min(a, h) }""", normal(9)),
        ("""(float[2,4] x) => (float[2,1,1,4] y) { a = Constant<value = int64[1] {1}>() b = Constant<value = int64[1] {2}>()
            u = Unsqueeze(x, a) y = Unsqueeze(u, b) }""", normal(2, 4)),
        # equal operations with different attributes are different work
        ("(float[2,4] x) => (float[2,4] y) { a = Softmax<axis = 0>(x) b = Softmax<axis = 1>(x) y = Add(a, b) }", normal(2, 4)),
    ],
)  # fmt: skip
def test_clean_keeps_what_a_graph_computes(text: str, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    assert_unchanged(graph(text), clean, {"x": x})


def test_sweep_removes_what_nobody_reads_and_no_input() -> None:
    model = graph("""(float[n] x, float[n] unread) => (float[n] y) <float[1] c = {2.0}, float[1] d = {3.0}> {
        y = Mul(x, c)
        a = Mul(x, d)
        b = Relu(a)
    }""")
    assert_unchanged(model, sweep, {"x": normal(3), "unread": normal(3)})
    assert ops(model) == ["Mul"]
    assert list(model.graph.initializers) == ["c"]
    assert [v.name for v in model.graph.inputs] == ["x", "unread"]


# ---- borders


def test_a_marked_value_takes_its_label_and_the_mark_goes() -> None:
    model = graph("""(float[n,2] x) => (float[n,2] y, float[n,2] z) <float[n,2] marked> {
        a = Relu(x)
        marked = vitrify.trace.Border<label = "blocks.0/hidden">(a)
        y = Neg(marked)
        z = Abs(a)
    }""")
    name_borders(model)
    assert ops(model) == ["Relu", "Neg", "Abs"]
    assert names(model) == ["blocks.0/hidden", "y", "z"], "readers of the value and of the mark read one value"
    marked = next(iter(model.graph)).outputs[0]
    assert str(marked.shape) == "[n,2]", "a shape that only the mark knew is kept"
    np.testing.assert_array_equal(run(model, {"x": -np.ones((3, 2), np.float32)})["y"], np.zeros((3, 2)))


def test_a_graph_without_marks_stays() -> None:
    model = graph("(float[n] x) => (float[n] y) { y = Relu(x) }")
    name_borders(model)
    assert ops(model) == ["Relu"]


# ---- shapes


def reshape_target(model: ir.Model) -> list[int] | None:
    node = next(node for node in model.graph if node.op_type == "Reshape")
    target = node.inputs[1]
    return target.const_value.numpy().tolist() if target is not None and target.const_value is not None else None


@pytest.mark.parametrize(
    ("source", "target", "sizes", "expected"),
    [
        ("batch,tokens,6", "batch,tokens,2,3", "b, t, two, three", [0, 0, 2, 3]),
        ("batch,tokens,2,3", "batch,tokens,6", "b, t, six", [0, 0, 6]),
        ("batch,2,tokens,3", "batch,tokens,6", "b, t, six", [0, -1, 6]),
        ("batch,tokens,6", "tokens,batch,6", "t, b, six", None),
        ("batch,tokens,6", "batch,tokens,0,6", "b, t, zero, six", None),
        ("?,tokens,6", "?,tokens,2,3", "b, t, two, three", [-1, 0, 2, 3]),
        ("?,?,6", "?,?,2,3", "b, t, two, three", None),
    ],
)
def test_reshape_targets_by_position(source: str, target: str, sizes: str, expected: list[int] | None) -> None:
    model = graph(f"""(float[{source}] x, float[batch,tokens] like) => (float[{target}] y)
        <int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] six = {{6}}, int64[1] zero = {{0}}> {{
        b = Shape<start = 0, end = 1>(like)
        t = Shape<start = 1, end = 2>(like)
        s = Concat<axis = 0>({sizes})
        y = Reshape<allowzero = 1>(x, s)
    }}""")
    positional_reshapes(model)
    assert reshape_target(model) == expected


def test_reshapes_by_position_compute_the_same() -> None:
    model = graph("""(float[batch,tokens,6] x, float[batch,tokens] like) => (float[batch,tokens,2,3] y)
        <int64[1] two = {2}, int64[1] three = {3}> {
        b = Shape<start = 0, end = 1>(like)
        t = Shape<start = 1, end = 2>(like)
        s = Concat<axis = 0>(b, t, two, three)
        y = Reshape<allowzero = 1>(x, s)
    }""")

    def rewrite(model: ir.Model) -> None:
        positional_reshapes(model)
        sweep(model)

    assert_unchanged(model, rewrite, {"x": normal(4, 5, 6), "like": normal(4, 5)}, {"x": normal(1, 1, 6), "like": normal(1, 1)})
    assert ops(model) == ["Reshape"]


def test_a_reshape_to_a_constant_stays_as_traced() -> None:
    model = graph("""(float[batch,6] x) => (float[batch,2,3] y) <int64[3] s = {-1, 2, 3}> { y = Reshape<allowzero = 1>(x, s) }""")
    positional_reshapes(model)
    assert reshape_target(model) == [-1, 2, 3]
    assert next(iter(model.graph)).attributes["allowzero"].as_int() == 1


def test_one_constant_serves_every_reshape_of_a_form() -> None:
    model = graph("(float[n] x) => (float[n] y) { y = Relu(x) }")
    assert constant(model.graph, "two", [1, 2]) is constant(model.graph, "two", [1, 2])
    assert len(model.graph.initializers) == 1


# ---- external


@pytest.mark.parametrize(("stored", "casts"), [("F32", 0), ("BF16", 1), ("F16", 1), ("F64", 1)])
def test_parameters_are_read_from_the_file_as_stored(tmp_path: Path, stored: str, casts: int) -> None:
    dtype = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}[stored]
    values = normal(2, 3).astype(dtype)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"header.." + values.tobytes() + b"more")
    model = graph("(float[n,3] x, float[2,3] w) => (float[n,3] y, float[2,3] z) { s = ReduceSum(w) y = Mul(x, s) z = Neg(w) }")
    tie_parameters(model, {"w": TensorLocation(file, stored, (2, 3), 8, values.nbytes)}, tmp_path)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert ops(model).count("Cast") == casts, "lifted once, however many read it"
    value = model.graph.initializers["w"]
    external = value.const_value
    assert isinstance(external, ir.ExternalTensor)
    assert (str(external.location), external.offset, external.length) == ("weights.safetensors", 8, values.nbytes)
    assert list(external.shape) == [2, 3]
    path = tmp_path / "model.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    assert path.stat().st_size < 500
    np.testing.assert_array_equal(run_file(path, {"x": normal(1, 3)})["z"], -values.astype(np.float32))


@pytest.mark.parametrize(("stored", "casts"), [("F32", []), ("BF16", ["bias"]), ("F16", ["bias"]), ("F64", ["bias", "weight"])])
def test_an_op_of_ours_reads_its_weight_as_stored(tmp_path: Path, stored: str, casts: list[str]) -> None:
    """What its contract does not take in that dtype is lifted."""
    model = graph(
        "(float[b,t,3] x, float[5,3] weight, float[5] bias) => (float[b,t,5] y) { y = vitrify.Linear(x, weight, bias) }",
    )
    attach_bodies(model)
    dtype = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}[stored]
    weight, bias = normal(5, 3).astype(dtype), normal(5).astype(dtype)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(weight.tobytes() + bias.tobytes())
    places = {
        "weight": TensorLocation(file, stored, (5, 3), 0, weight.nbytes),
        "bias": TensorLocation(file, stored, (5,), weight.nbytes, bias.nbytes),
    }
    tie_parameters(model, places, tmp_path)
    assert sorted(str(node.inputs[0].name) for node in model.graph if node.op_type == "Cast" and node.inputs[0]) == casts
    path = tmp_path / "model.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    x = normal(2, 4, 3)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T + bias.astype(np.float64)
    np.testing.assert_allclose(run_file(path, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


def test_inputs_that_are_no_parameters_stay_inputs(tmp_path: Path) -> None:
    model = graph("(float[n,3] x) => (float[n,3] y) { y = Neg(x) }")
    tie_parameters(model, {}, tmp_path)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert not model.graph.initializers
