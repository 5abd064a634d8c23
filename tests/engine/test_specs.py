"""Descriptions: what they hold to be true, and JSON there and back without trust."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.engine.specs import ComponentSpec, Dim, GraphSpec, ParitySpec, TensorSpec, check_target

# ---- strategies

NAMES = st.text(string.ascii_letters + string.digits + "_./", min_size=1, max_size=12)


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    step, low = draw(st.integers(1, 64)), draw(st.integers(1, 4096))
    opt, top = sorted(draw(st.tuples(st.integers(0, 40), st.integers(0, 40))))
    return Dim(draw(NAMES), low, low + opt * step, low + top * step, step)


TENSORS = st.builds(
    TensorSpec, NAMES, st.sampled_from(DType), st.lists(st.one_of(st.integers(0, 1 << 40), NAMES), max_size=4).map(tuple)
)
GRAPHS = st.builds(
    GraphSpec,
    NAMES,
    st.lists(TENSORS, max_size=3).map(tuple),
    st.lists(TENSORS, max_size=3).map(tuple),
    st.integers(0, 1 << 50),
    st.integers(0, 1 << 50),
)
ERRORS = st.dictionaries(NAMES, st.floats(0, 1), max_size=3)
PARITIES = st.builds(ParitySpec, st.booleans(), st.sampled_from(["whole", "blocks"]), ERRORS, ERRORS)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
COMPONENTS = st.builds(
    ComponentSpec,
    NAMES,
    NAMES,
    st.sampled_from(DType),
    st.dictionaries(st.text(max_size=8), JSON, max_size=3),
    st.dictionaries(NAMES, GRAPHS, max_size=3),
    st.lists(NAMES, max_size=3).map(tuple),
    PARITIES,
    st.lists(NAMES, max_size=2).map(tuple),
)
READERS: list[tuple[type[Any], st.SearchStrategy[Any]]] = [
    (Dim, dims()),
    (TensorSpec, TENSORS),
    (GraphSpec, GRAPHS),
    (ParitySpec, PARITIES),
    (ComponentSpec, COMPONENTS),
]


@pytest.mark.parametrize(("kind", "strategy"), READERS, ids=[kind.__name__ for kind, _ in READERS])
@given(data=st.data())
def test_there_and_back(kind: type[Any], strategy: st.SearchStrategy[Any], data: st.DataObject) -> None:
    spec = data.draw(strategy)
    text = json.dumps(spec.to_json(), sort_keys=True)
    back = kind.from_json(json.loads(text))
    assert back == spec
    assert json.dumps(back.to_json(), sort_keys=True) == text
    if isinstance(spec, ComponentSpec):
        assert list(back.graphs) == list(spec.graphs), "segments keep their running order"


@pytest.mark.parametrize("kind", [kind for kind, _ in READERS])
@given(data=JSON)
def test_json_that_is_something_else_is_a_spec_error(kind: type[Any], data: Any) -> None:
    with pytest.raises(SpecError, match=kind.__name__.removesuffix("Spec").lower()):
        kind.from_json(data)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


@pytest.mark.parametrize(("kind", "strategy"), READERS, ids=[kind.__name__ for kind, _ in READERS])
@settings(max_examples=60)
@given(data=st.data())
def test_one_damaged_place_gives_a_spec_or_a_spec_error(
    kind: type[Any], strategy: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    whole = json.loads(json.dumps(data.draw(strategy).to_json()))
    path = data.draw(st.sampled_from(places(whole)))
    owner = whole
    for key in path[:-1]:
        owner = owner[key]
    act = data.draw(st.sampled_from(["replace", "drop", "add"]))
    if act == "replace":
        owner[path[-1]] = data.draw(JSON)
    elif act == "drop":
        del owner[path[-1]]
    elif isinstance(owner, dict):
        owner[data.draw(st.text(max_size=5))] = data.draw(JSON)
    else:
        owner.append(data.draw(JSON))
    try:
        spec = kind.from_json(whole)
    except SpecError:
        return
    assert kind.from_json(json.loads(json.dumps(spec.to_json()))) == spec


# ---- by example


def changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {**data, **fields}


DIM = Dim("height", 256, 512, 1024, 16).to_json()
TENSOR = TensorSpec("x", DType.FLOAT32, ("batch", 3)).to_json()
GRAPH = GraphSpec("a.onnx", (TensorSpec("x", DType.FLOAT32, ("batch",)),), ()).to_json()
COMPONENT = ComponentSpec("vae", "Vae", DType.FLOAT32, {}, {"a": GraphSpec("a", (), ()), "b": GraphSpec("b", (), ())}, (),
                          ParitySpec(False)).to_json()  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Dim, {**DIM, "min": 0}, r"dim 'height': got min=0 opt=512 max=1024 step=16, expected 1 <= min"),
        (Dim, {**DIM, "opt": 2048}, r"opt=2048"),
        (Dim, {**DIM, "step": 0}, r"step=0"),
        (Dim, {**DIM, "max": 1025}, r"opt=512 and max=1025 must lie whole steps of 16 above 256"),
        (Dim, {**DIM, "min": True}, r"dim.min: got bool 'True', expected int"),
        (Dim, {**DIM, "min": 256.0}, r"dim.min: got float"),
        (Dim, {k: v for k, v in DIM.items() if k != "step"}, r"missing fields \['step'\], unknown fields \[\]"),
        (Dim, {**DIM, "extra": 1}, r"missing fields \[\], unknown fields \['extra'\]"),
        (TensorSpec, {**TENSOR, "shape": [-1]}, r"tensor.shape: got -1, expected a size >= 0 or a dimension's name"),
        (TensorSpec, {**TENSOR, "shape": [True]}, r"got True"),
        (TensorSpec, {**TENSOR, "shape": [None]}, r"got None"),
        (TensorSpec, {**TENSOR, "shape": "batch"}, r"tensor.shape: got str 'batch', expected list"),
        (TensorSpec, {**TENSOR, "dtype": "float8"}, r"dtype 'float8' is unknown; known: float32"),
        (GraphSpec, {**GRAPH, "inputs": [TENSOR, 3]}, r"graph.inputs\[1\]: got int '3', expected dict"),
        (
            ComponentSpec,
            {**COMPONENT, "graph_order": ["a"]},
            r"graph_order: got \['a'\], expected the keys of graphs \['a', 'b'\]",
        ),
        (ComponentSpec, {**COMPONENT, "graph_order": ["a", "a", "b"]}, r"graph_order"),
        (ComponentSpec, {**COMPONENT, "graph_order": [["a"], "b"]}, r"graph_order: got list"),
        (ComponentSpec, {**COMPONENT, "weights": [1]}, r"component.weights: got int '1', expected str"),
    ],
)
def test_the_message_says_where_and_what(kind: type[Any], data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        kind.from_json(data)


def test_a_dimension_knows_its_raster() -> None:
    dim = Dim("height", 256, 512, 1024, 16)
    assert [v for v in range(1100) if dim.allows(v)] == list(range(256, 1025, 16))
    assert dim.nearest(1000) == (992, 1008)
    assert dim.nearest(992) == (992,)
    assert dim.nearest(5) == (256,)
    assert dim.nearest(5000) == (1024,)
    assert str(dim) == "256..1024 in steps of 16"
    assert (str(Dim("n", 1, 2, 4)), str(Dim("n", 3, 3, 3))) == ("1..4", "3")


@given(dims(), st.integers(-100, 10_000))
def test_the_longest_value_is_the_last_allowed_one_up_to_it(dim: Dim, value: int) -> None:
    below = [n for n in range(dim.min, dim.max + 1, dim.step) if n <= value]
    assert dim.longest(value) == (below[-1] if below else None)


@given(dims(), st.integers(-100, 10_000))
def test_the_nearest_values_are_allowed_and_near(dim: Dim, value: int) -> None:
    near = dim.nearest(value)
    assert near
    assert all(dim.allows(n) for n in near)
    if dim.allows(value):
        assert near == (value,)
    others = range(dim.min, dim.max + 1, dim.step)
    assert min(abs(n - value) for n in others) == min(abs(n - value) for n in near)


def test_shapes_resolve_with_sums() -> None:
    tensor = TensorSpec("x", DType.FLOAT32, (1, "text_tokens + image_tokens", "batch", 3))
    assert tensor.resolve({"batch": 2, "text_tokens": 5, "image_tokens": 7, "more": 1}) == (1, 12, 2, 3)
    with pytest.raises(SpecError, match=r"no value for dims \['image_tokens', 'batch'\]; given: {'text_tokens': 5}"):
        tensor.resolve({"text_tokens": 5})


@pytest.mark.parametrize("text", ["cpu", "cuda", "tensorrt-rtx:sm89"])
def test_targets(text: str) -> None:
    assert check_target(text) == text


@pytest.mark.parametrize("text", ["", "gpu", "CPU", ":sm89", "cpu "])
def test_unknown_targets_are_refused_with_those_known(text: str) -> None:
    with pytest.raises(SpecError, match="is unknown; known: cpu, cuda, tensorrt-rtx"):
        check_target(text)
