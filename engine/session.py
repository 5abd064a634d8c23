"""Backend → Session → Plan: how every engine is driven, whatever runs inside.

A backend opens graphs; a session is one opened graph; a plan is a session with buffers for one set of
dimension values. Everything that can be wrong is found when a session opens or a plan is made:
`Plan.run` checks nothing and allocates nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.errors import BackendError, SpecError
from vitrify.engine.specs import GraphSpec, TensorSpec

__all__ = ["ROW_ALIGNMENT_BYTES", "Array", "Backend", "Plan", "Session", "SessionHolder", "aligned_empty"]

Array = npt.NDArray[Any]

ROW_ALIGNMENT_BYTES = 256


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised C-contiguous array whose first byte lies on a 256-byte border.

    Raises BackendError with the bytes asked for where memory ends.
    """
    count = math.prod(shape) * dtype.itemsize
    try:
        raw = np.empty(count + ROW_ALIGNMENT_BYTES, dtype=np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than an address can say
        raise BackendError(f"no memory for {dtype}{list(shape)}, {count} bytes; ask for fewer rows, steps or pixels") from None
    start = -raw.ctypes.data % ROW_ALIGNMENT_BYTES
    return raw[start : start + count].view(dtype).reshape(shape)


class Plan(ABC):
    """A session's buffers for one set of dimension values; it belongs to one request at a time."""

    def __init__(self, spec: GraphSpec, dims: Mapping[str, int]) -> None:
        self.spec = spec
        self.dims = dict(dims)
        self._shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            t.name: (t.resolve(dims), t.dtype.numpy) for t in (*spec.inputs, *spec.outputs)
        }
        self._outputs = {t.name for t in spec.outputs}
        self._arrays: dict[str, Array] = {}

    def array(self, name: str) -> Array:
        """The memory of input or output `name`, allocated at its first use; its shape and dtype are the graph's."""
        if name not in self._arrays:
            shape, dtype = self._expected(name)
            self.bind(name, aligned_empty(shape, dtype))
        return self._arrays[name]

    def bind(self, name: str, array: Array) -> None:
        """Let input or output `name` live in `array` from now on (no copy).

        Raises SpecError unless shape and dtype are the graph's and the memory is C-contiguous and, for an output, writeable.
        """
        self._check(name, array)
        self._arrays[name] = array
        self._bind(name, array)

    def switch(self, name: str, arrays: Sequence[Array]) -> Callable[[int], None]:
        """A function that lets input or output `name` live in the array of the index it is called with, as often as wanted.

        The arrays are checked here, as by `bind`; the function checks nothing.
        """
        for array in arrays:
            self._check(name, array)
        binders = [self._binder(name, array) for array in arrays]

        def point(index: int) -> None:
            self._arrays[name] = arrays[index]
            binders[index]()

        return point

    def ready(self) -> None:
        """Allocate what nobody has bound, so that `run` finds all in place.

        Raises SpecError where an output lies in the memory of an input or of another output.
        """
        for name in self._shapes:
            self.array(name)
        for output in self._outputs:
            for name, array in self._arrays.items():
                if name != output and np.may_share_memory(array, self._arrays[output]):
                    raise SpecError(f"{self.spec.path}: output {output!r} shares memory with {name!r}; bind each to its own")

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all bound buffers, each counted once."""
        return sum({a.ctypes.data: a.nbytes for a in self._arrays.values()}.values())

    def _check(self, name: str, array: Array) -> None:
        shape, dtype = self._expected(name)
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise SpecError(
                f"{self.spec.path}: {name!r} got {array.dtype}{list(array.shape)}"
                f"{'' if array.flags.c_contiguous else ' (not contiguous)'}, expected contiguous {dtype}{list(shape)}"
            )
        if name in self._outputs and not array.flags.writeable:
            raise SpecError(f"{self.spec.path}: output {name!r} got a read-only array; pass memory that can be written")

    def _expected(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if name not in self._shapes:
            raise SpecError(f"{self.spec.path} has no input or output {name!r}; it has {', '.join(self._shapes)}")
        return self._shapes[name]

    @abstractmethod
    def _bind(self, name: str, array: Array) -> None:
        """Tell the engine where `name` lives."""

    def _binder(self, name: str, array: Array) -> Callable[[], object]:
        """`_bind`, prepared: engines that can do part of it ahead override this."""
        return functools.partial(self._bind, name, array)

    @abstractmethod
    def run(self) -> None:
        """Run the graph on the bound memory. Raises BackendError when the engine fails."""


class Session(ABC):
    """One opened graph. It may be used by several plans, in several threads."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec

    @abstractmethod
    def plan(self, dims: Mapping[str, int]) -> Plan:
        """A plan for these dimension values. Raises SpecError naming what is missing."""

    @abstractmethod
    def close(self) -> None:
        """Give back the engine's memory; plans of this session are dead afterwards."""


class Backend(ABC):
    """Opens graphs for one device."""

    name: str

    @abstractmethod
    def open(self, path: Path, spec: GraphSpec) -> Session:
        """Open the graph at `path`. Raises BackendError, or SpecError when the file is not what `spec` says."""

    @property
    @abstractmethod
    def native_ops(self) -> Mapping[str, int]:
        """Our ops that run as native kernels here: name → version; empty where their bodies run instead."""


def check_signature(spec: GraphSpec, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Hold a file's real inputs and outputs against its spec. Raises SpecError with both sides."""
    for kind, real, expected in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
        if [(t.name, t.dtype, t.shape) for t in real] != [(t.name, t.dtype, t.shape) for t in expected]:
            raise SpecError(
                f"{spec.path}: its {kind} are {[f'{t.name}: {t}' for t in real]}, "
                f"the manifest says {[f'{t.name}: {t}' for t in expected]}; export the artifact again"
            )


class SessionHolder:
    """A session that opens at its first use and closes when its last user leaves, or stays if `keep`."""

    def __init__(self, opener: Callable[[], Session], keep: bool) -> None:
        self._opener = opener
        self._keep = keep
        self._lock = threading.Lock()
        self._users = 0
        self._session: Session | None = None
        self._closed = False

    @contextlib.contextmanager
    def use(self) -> Iterator[Session]:
        """The open session, for as long as the `with` block lasts."""
        with self._lock:
            if self._closed:
                raise BackendError("this pipeline is closed; load the artifact again")
            if self._session is None:
                self._session = self._opener()
            session = self._session
            self._users += 1
        try:
            yield session
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and (self._closed or not self._keep):
                    self._drop()

    @property
    def is_open(self) -> bool:
        """Whether a session is open now."""
        return self._session is not None

    def close(self) -> None:
        """Close now, or when the last user leaves; later uses are a BackendError."""
        with self._lock:
            self._closed = True
            if self._users == 0:
                self._drop()

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
