"""The timed backend hears every run and changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from vitrify.bench.measure import Clock
from vitrify.bench.timed_backend import TimedBackend
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.engine.session import Array, Backend, Plan, Session
from vitrify.engine.specs import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "transformer/rest.onnx", (TensorSpec("x", DType.FLOAT32, ("rows", 2)),), (TensorSpec("y", DType.FLOAT32, ("rows", 2)),)
)


class DoublingPlan(Plan):
    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(SPEC, dims)
        self.bound: list[str] = []

    def _bind(self, name: str, array: Array) -> None:  # noqa: ARG002
        self.bound.append(name)

    def run(self) -> None:
        self.array("y")[...] = 2 * self.array("x")


class DoublingSession(Session):
    closed = False

    def plan(self, dims: Mapping[str, int]) -> Plan:
        return DoublingPlan(dims)

    def close(self) -> None:
        self.closed = True


class DoublingBackend(Backend):
    name = "double"

    @property
    def native_ops(self) -> Mapping[str, int]:
        return {"Twice": 3}

    def open(self, path: Path, spec: GraphSpec) -> Session:
        assert path == Path("rest.onnx")
        return DoublingSession(spec)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(clock: Clock) -> Session:
    backend = TimedBackend(DoublingBackend(), clock)
    assert (backend.name, backend.native_ops) == ("double", {"Twice": 3})
    return backend.open(Path("rest.onnx"), SPEC)


def test_every_run_is_heard_under_its_graphs_path(session: Session, clock: Clock) -> None:
    plan = session.plan({"rows": 3})
    plan.array("x")[...] = 4
    plan.ready()
    assert clock.take() == {}
    plan.run()
    heard = clock.take()
    assert list(heard) == ["transformer/rest"]
    assert 0 < heard["transformer/rest"] < 1
    np.testing.assert_array_equal(plan.array("y"), 8)


def test_memory_is_the_inner_plans(session: Session) -> None:
    plan = session.plan({"rows": 3})
    mine = np.ones((3, 2), np.float32)
    plan.bind("x", mine)
    assert plan.array("x") is mine
    plan.ready()
    plan.run()
    np.testing.assert_array_equal(plan.array("y"), 2)
    assert plan.allocated_bytes == 2 * mine.nbytes


def test_the_inner_plans_refusals_come_through(session: Session) -> None:
    with pytest.raises(SpecError, match="expected contiguous"):
        session.plan({"rows": 3}).bind("x", np.ones((4, 2), np.float32))
