"""A backend around another that tells a clock how long each `Plan.run` took; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vitrify.bench.measure import Clock, now
from vitrify.engine.session import Array, Backend, Plan, Session
from vitrify.engine.specs import GraphSpec

__all__ = ["TimedBackend"]


class TimedBackend(Backend):
    """Opens graphs with `inner`. clock: hears every run under the graph's path without its ending (`transformer/rest`)."""

    def __init__(self, inner: Backend, clock: Clock) -> None:
        self.name = inner.name
        self._inner = inner
        self._clock = clock

    @property
    def native_ops(self) -> Mapping[str, int]:
        return self._inner.native_ops

    def open(self, path: Path, spec: GraphSpec) -> Session:
        return _TimedSession(self._inner.open(path, spec), self._clock)


class _TimedSession(Session):
    def __init__(self, inner: Session, clock: Clock) -> None:
        super().__init__(inner.spec)
        self._inner = inner
        self._clock = clock

    def plan(self, dims: Mapping[str, int]) -> Plan:
        return _TimedPlan(self._inner.plan(dims), self._clock)

    def close(self) -> None:
        self._inner.close()


class _TimedPlan(Plan):
    """Every member is the inner plan's, so that nothing is kept or checked twice."""

    def __init__(self, inner: Plan, clock: Clock) -> None:
        super().__init__(inner.spec, inner.dims)
        self._inner = inner
        self._add = clock.add
        self._name = inner.spec.path.removesuffix(".onnx")

    def array(self, name: str) -> Array:
        return self._inner.array(name)

    def bind(self, name: str, array: Array) -> None:
        self._inner.bind(name, array)

    def switch(self, name: str, arrays: Sequence[Array]) -> Callable[[int], None]:
        return self._inner.switch(name, arrays)

    def ready(self) -> None:
        self._inner.ready()

    @property
    def allocated_bytes(self) -> int:
        return self._inner.allocated_bytes

    def _bind(self, name: str, array: Array) -> None:
        self._inner.bind(name, array)

    def run(self) -> None:
        start = now()
        self._inner.run()
        self._add(self._name, now() - start)
