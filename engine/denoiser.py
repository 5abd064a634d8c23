"""The denoiser in segments: condition once per request, then embed → first → rest → finish in every step.

The only file that knows what the segments are. Export verifies through it what the runtime will run.
A segment's input is found by its name: fed by the caller, or the output of an earlier segment. What is
known before the loop lies in one modulation table per loop segment, `[steps, batch, width]` float32;
a step binds its rows of it without a copy.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrify.engine.errors import BackendError, RequestError, SpecError
from vitrify.engine.session import Array, Backend, Plan, Session, SessionHolder, aligned_empty
from vitrify.engine.specs import LOOP_SEGMENTS, SEGMENTS, ComponentSpec, Dim, TensorSpec

__all__ = [
    "CONDITION_DIM",
    "CONDITION_ROWS",
    "LOOP_SEGMENTS",
    "RESIDUAL_DIFF",
    "SEGMENTS",
    "Denoiser",
    "DenoiserPlan",
    "Hidden",
    "HiddenTensors",
    "hidden_tensors",
]

CONDITION_ROWS = "condition_rows"
CONDITION_DIM = Dim(CONDITION_ROWS, 1, 28, 64)
"""What the exporter compiles for, and what a denoiser without a manifest takes: condition's rows of one call."""
RESIDUAL_DIFF = "residual_diff"
"""The step graph over the hidden states around block 0: its residual, and how far that has moved."""
_IDLE_PLANS = 4


class Denoiser:
    """The opened segments of one component.

    root: the artifact's folder, which the graphs' paths are relative to.
    keep_loop, keep_condition: whether the sessions stay open between requests.
    condition_rows: the rows that `condition` was compiled for, as the manifest has it.
    """

    def __init__(
        self,
        backend: Backend,
        root: Path,
        spec: ComponentSpec,
        *,
        keep_loop: bool = True,
        keep_condition: bool = True,
        condition_rows: Dim = CONDITION_DIM,
    ) -> None:
        if tuple(spec.graphs) != SEGMENTS:
            raise SpecError(f"component {spec.name!r} has graphs {list(spec.graphs)}, expected the segments {list(SEGMENTS)}")
        _check_read(spec)
        self.spec = spec
        self._condition_rows = condition_rows

        def holder(segment: str, keep: bool) -> SessionHolder:
            graph = spec.graphs[segment]
            return SessionHolder(lambda: backend.open(root / graph.path, graph), keep)

        self._condition = holder("condition", keep_condition)
        self._loop = {segment: holder(segment, keep_loop) for segment in LOOP_SEGMENTS}
        self._keep_loop = keep_loop
        self._closed = False
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[int, ...], DenoiserPlan]] = []

    @contextlib.contextmanager
    def plan(self, *, batch: int, image_tokens: int, text_tokens: int, steps: int) -> Iterator[DenoiserPlan]:
        """A plan for one request: from the pool of idle ones where its dims fit, else a new one."""
        key = (batch, image_tokens, text_tokens, steps)
        with contextlib.ExitStack() as stack:
            sessions = {name: stack.enter_context(holder.use()) for name, holder in self._loop.items()}
            plan = self._take(key, sessions)
            try:
                yield plan
            finally:
                with self._lock:
                    # An idle plan holds its engine's memory: none outlives the sessions.
                    if self._keep_loop and not self._closed:
                        self._idle.append((key, plan))
                        del self._idle[:-_IDLE_PLANS]
                del plan  # sessions that close here can give the engine's memory back

    def _take(self, key: tuple[int, ...], sessions: Mapping[str, Session]) -> DenoiserPlan:
        with self._lock:
            for position, (found, plan) in enumerate(self._idle):
                if found == key:
                    del self._idle[position]
                    return plan
        batch, image_tokens, text_tokens, steps = key
        dims = {"batch": batch, "image_tokens": image_tokens, "text_tokens": text_tokens}
        return DenoiserPlan(self.spec, self._condition, sessions, dims, steps, self._condition_rows)

    @property
    def open_segments(self) -> tuple[str, ...]:
        """The segments whose sessions are open now, in running order."""
        holders = {"condition": self._condition, **self._loop}
        return tuple(name for name in SEGMENTS if holders[name].is_open)

    def close(self) -> None:
        """Close all sessions once nobody uses them."""
        with self._lock:
            self._closed = True
            self._idle.clear()
        for holder in (self._condition, *self._loop.values()):
            holder.close()


@dataclass(frozen=True)
class Hidden:
    """The image's hidden states in a plan's own memory, [batch, image_tokens, width] each.

    embedded: what `embed` gives. first: after the first block. last: after all of them; `finish` reads it.
    """

    embedded: Array
    first: Array
    last: Array


@dataclass(frozen=True)
class HiddenTensors:
    """Which tensors hold the image's hidden states, [batch, image_tokens, width]: outputs of embed, first and rest."""

    embedded: TensorSpec
    first: TensorSpec
    last: TensorSpec


def hidden_tensors(spec: ComponentSpec) -> HiddenTensors:
    """A denoiser's hidden states by name. Raises SpecError where a segment's border holds no such tensor, or several."""

    def border(made: str, user: str, shape: tuple[int | str, ...] | None) -> TensorSpec:
        handed_on = {t.name for t in spec.graphs[user].inputs}
        states = [t for t in spec.graphs[made].outputs if t.name in handed_on and t.shape[:2] == ("batch", "image_tokens")]
        found = [t for t in states if shape is None or t.shape == shape]
        if len(found) != 1:
            names = [t.name for t in states]
            raise SpecError(f"{spec.name}: segment {user!r} takes the image's states from {names}, expected one")
        return found[0]

    last = border("rest", "finish", None)
    return HiddenTensors(border("embed", "first", last.shape), border("first", "rest", last.shape), last)


class DenoiserPlan:
    """All buffers of one lane: a lane is one denoiser call per step, over `batch` rows.

    latents: [batch, image_tokens, channels] float32, the caller's to write.
    noise_pred: [batch, image_tokens, out_channels] float32, written by `step`.
    """

    def __init__(
        self,
        spec: ComponentSpec,
        condition: SessionHolder,
        loop: Mapping[str, Session],
        dims: Mapping[str, int],
        steps: int,
        condition_rows: Dim = CONDITION_DIM,
    ) -> None:
        if steps < 1:
            raise SpecError(f"steps: got {steps}, expected at least 1")
        self.spec = spec
        self.steps = steps
        self.dims = dict(dims)
        self._condition = condition
        self._condition_rows = condition_rows
        self._plans: dict[str, Plan] = {name: session.plan(dims) for name, session in loop.items()}
        produced = {t.name: t for t in spec.graphs["condition"].outputs}
        self._tables = {name: self._table(t) for name, t in produced.items() if t.shape[:1] == (CONDITION_ROWS,)}
        self._held: dict[str, Array] = {}
        self._rows: list[Callable[[int], None]] = []
        self.latents = self._wire(_latents(spec))
        self.noise_pred = self._plans["finish"].array(spec.graphs["finish"].outputs[0].name)
        for plan in self._plans.values():
            plan.ready()

    def _table(self, tensor: TensorSpec) -> Array:
        width = tensor.shape[1]
        if len(tensor.shape) != 2 or not isinstance(width, int):
            raise SpecError(f"table {tensor.name!r} is {tensor}, expected [{CONDITION_ROWS}, width]")
        return aligned_empty((self.steps, self.dims["batch"], width), tensor.dtype.numpy)

    def _wire(self, latents: str) -> Array:
        """Give equal names equal memory, and list what moves with the step. Returns the latents' memory."""
        made = {latents: self._plans["embed"].array(latents)}
        for segment in LOOP_SEGMENTS:
            plan = self._plans[segment]
            for tensor in self.spec.graphs[segment].inputs:
                if tensor.name in self._tables:
                    table = self._tables[tensor.name]
                    self._rows.append(plan.switch(tensor.name, list(table)))
                    plan.bind(tensor.name, table[0])
                elif tensor.name in made:
                    plan.bind(tensor.name, made[tensor.name])
                elif tensor.name in self._held:
                    plan.bind(tensor.name, self._held[tensor.name])
                else:
                    self._held[tensor.name] = plan.array(tensor.name)
            for tensor in self.spec.graphs[segment].outputs:
                made[tensor.name] = plan.array(tensor.name)
        return made[latents]

    def condition(self, request: Mapping[str, Array], rows: Mapping[str, Array]) -> None:
        """Compute all that is known before the loop, for every step at once, and fill the loop's request inputs.

        request: graph input name → array without a row per step, e.g. encoder_hidden_states
            [batch, text_tokens, dim] float32, text_rotary [text_tokens, 2·dim] float32.
        rows: graph input name → [steps, batch, …], e.g. timestep [steps, batch] float32.
        Raises SpecError naming an input that is missing, unknown or of another shape, RequestError for a number of rows that
        chunks of what `condition` was compiled for do not make up.
        """
        graph = self.spec.graphs["condition"]
        self._check_names(request, rows)
        total = self.steps * self.dims["batch"]
        flat = {name: np.ascontiguousarray(array).reshape(total, *array.shape[2:]) for name, array in rows.items()}
        tables = {name: table.reshape(total, -1) for name, table in self._tables.items()}
        with self._condition.use() as session:
            for start, stop in _chunks(total, self._condition_rows):
                plan = session.plan({**self.dims, CONDITION_ROWS: stop - start})
                for tensor in graph.inputs:
                    source = flat[tensor.name][start:stop] if tensor.name in flat else np.ascontiguousarray(request[tensor.name])
                    plan.bind(tensor.name, source)
                for tensor in graph.outputs:
                    plan.bind(tensor.name, tables[tensor.name][start:stop] if tensor.name in tables else self._held[tensor.name])
                plan.run()
                del plan
        made = {t.name for t in graph.outputs}
        for name, array in self._held.items():
            if name not in made:
                given = request[name]
                if given.shape != array.shape or given.dtype != array.dtype:
                    raise SpecError(f"{name!r}: got {given.dtype}{list(given.shape)}, expected {array.dtype}{list(array.shape)}")
                array[...] = given

    def _check_names(self, request: Mapping[str, Array], rows: Mapping[str, Array]) -> None:
        graph = self.spec.graphs["condition"]
        by_row = {t.name for t in graph.inputs if t.shape[:1] == (CONDITION_ROWS,)}
        once = {t.name for t in graph.inputs} - by_row | (set(self._held) - {t.name for t in graph.outputs})
        for kind, got, expected in (("rows", set(rows), by_row), ("request", set(request), once)):
            if got != expected:
                raise SpecError(
                    f"{self.spec.name}: {kind} inputs missing {sorted(expected - got)}, unknown {sorted(got - expected)}; "
                    f"expected {sorted(expected)}"
                )
        for name, array in rows.items():
            if array.shape[:2] != (self.steps, self.dims["batch"]):
                raise SpecError(
                    f"{name!r}: got {list(array.shape)}, expected [steps={self.steps}, batch={self.dims['batch']}, …]"
                )

    def select(self, index: int) -> None:
        """Point every segment at step `index`'s rows of its table."""
        for point in self._rows:
            point(index)

    def run(self, segment: str) -> None:
        """Run one loop segment on the rows selected."""
        self._plans[segment].run()

    def step(self, index: int) -> Array:
        """A computed step: `latents` in, `noise_pred` out. index: 0-based. Raises BackendError when an engine fails."""
        if not 0 <= index < self.steps:
            raise BackendError(f"step {index} is outside this plan's {self.steps} steps")
        self.select(index)
        for plan in self._plans.values():
            plan.run()
        return self.noise_pred

    @functools.cached_property
    def hidden(self) -> Hidden:
        """Where the image's hidden states lie. Raises SpecError as `hidden_tensors` does."""
        tensors = hidden_tensors(self.spec)
        return Hidden(
            self.array("embed", tensors.embedded.name),
            self.array("first", tensors.first.name),
            self.array("rest", tensors.last.name),
        )

    def array(self, segment: str, name: str) -> Array:
        """The memory of a loop segment's input or output."""
        return self._plans[segment].array(name)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers of this plan, tables included, each counted once."""
        arrays = list(self._tables.values())
        for name, plan in self._plans.items():
            graph = self.spec.graphs[name]
            arrays += [plan.array(t.name) for t in (*graph.inputs, *graph.outputs) if t.name not in self._tables]
        return sum({a.ctypes.data: a.nbytes for a in arrays}.values())


def _check_read(spec: ComponentSpec) -> None:
    """Raises SpecError for an output of `condition` that no loop segment reads: there is no memory for it."""
    read = {t.name for segment in LOOP_SEGMENTS for t in spec.graphs[segment].inputs}
    unread = [t.name for t in spec.graphs["condition"].outputs if t.name not in read]
    if unread:
        raise SpecError(
            f"{spec.name}: condition gives {', '.join(unread)}, which no other segment reads; export the artifact again"
        )


def _chunks(total: int, rows: Dim) -> Iterator[tuple[int, int]]:
    """`total` rows as (start, stop) of what `rows` allows, the longest first. Raises RequestError where that is impossible."""
    start = 0
    while start < total:
        size = rows.longest(total - start)
        if size is None:
            raise RequestError(f"{rows.name}={total - start} is outside what this artifact was compiled for: {rows}")
        yield start, start + size
        start += size


def _latents(spec: ComponentSpec) -> str:
    """The input of `embed` that the caller writes in every step: what condition does not make, and no later segment reads."""
    made = {t.name for t in spec.graphs["condition"].outputs}
    given = [t.name for t in spec.graphs["embed"].inputs if t.name not in made]
    later = {t.name for segment in LOOP_SEGMENTS[1:] for t in spec.graphs[segment].inputs}
    own = given if len(given) == 1 else [name for name in given if name not in later]
    if len(own) != 1:
        raise SpecError(f"{spec.name}: segment 'embed' takes {own or given} from the latents, expected exactly one input")
    return own[0]
