"""Compiled components: callables over an artifact's graphs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact import Artifact
from vitrify.engine.component import ComponentModel
from vitrify.engine.denoiser import CONDITION_ROWS, Denoiser
from vitrify.engine.device import Device
from vitrify.engine.errors import RequestError, SpecError
from vitrify.engine.session import Backend, SessionHolder
from vitrify.engine.specs import MODEL, ComponentSpec, Dim
from vitrify.runtime.sealed import check_named

__all__ = ["KEEP", "CompiledDenoiser", "CompiledModel", "GraphModel"]

KEEP = ("all", "denoiser", "none")

Array = npt.NDArray[Any]


class GraphModel:
    """A component of one graph, run on as many rows as asked for, in chunks of what it was compiled for.

    holder: its session. dims: the artifact's dimensions.
    """

    def __init__(self, spec: ComponentSpec, holder: SessionHolder, dims: Mapping[str, Dim]) -> None:
        self._graph = spec.graphs[MODEL]
        self._holder = holder
        self._dims = dims
        firsts = {str(t.shape[0]) for t in (*self._graph.inputs, *self._graph.outputs)}
        name = min(firsts)
        if len(firsts) != 1 or name not in dims:
            raise SpecError(
                f"{self._graph.path}: first dimensions are {sorted(firsts)}, expected one of the artifact's: {list(dims)}"
            )
        self._rows = dims[name]

    def __call__(self, inputs: Mapping[str, Array], sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
        """The graph's outputs by name, for all rows of `inputs` (by name, each [rows, …] in the graph's dtype).

        sizes: dimensions that no input shows, which the caller has checked. Raises RequestError for dimensions of the inputs
        that the graph was not compiled for.
        """
        total = len(next(iter(inputs.values())))
        dims = {**(sizes or {}), **self._sizes(inputs)}
        outputs = {t.name: np.empty(t.resolve({**dims, self._rows.name: total}), t.dtype.numpy) for t in self._graph.outputs}
        with self._holder.use() as session:
            start = 0
            while start < total:
                stop = start + self._chunk(total - start)
                plan = session.plan({**dims, self._rows.name: stop - start})
                for tensor in self._graph.inputs:
                    plan.bind(tensor.name, np.ascontiguousarray(inputs[tensor.name][start:stop]))
                for name, output in outputs.items():
                    plan.bind(name, output[start:stop])
                plan.run()
                del plan  # it holds the engine's memory: a session that closes here can give it back
                start = stop
        return outputs

    def close(self) -> None:
        """Close the session once nobody uses it."""
        self._holder.close()

    def _sizes(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for tensor in self._graph.inputs:
            for name, extent in zip(tensor.shape[1:], inputs[tensor.name].shape[1:], strict=True):
                if isinstance(name, str):
                    sizes[name] = extent
        for name, size in sizes.items():
            if name in self._dims and not self._dims[name].allows(size):
                raise RequestError(f"{self._graph.path}: {name}={size} is outside what it was compiled for: {self._dims[name]}")
        return sizes

    def _chunk(self, left: int) -> int:
        size = self._rows.longest(left)
        if size is None:
            raise RequestError(f"{self._graph.path}: {self._rows.name}={left} is outside what it was compiled for: {self._rows}")
        return size


class _Closable(Protocol):
    def close(self) -> None: ...


M = TypeVar("M", bound=_Closable)


class _Compiled(ComponentModel, Generic[M]):
    """session, artifact, component, keep: the backend, where the graphs are, and which sessions stay open between requests."""

    def __init__(
        self,
        config: dict[str, Any],
        encoding: str,
        devices: Sequence[Device],
        weights: Mapping[str, Any],
        *,
        session: Backend,
        artifact: Artifact,
        component: str,
        keep: str,
    ) -> None:
        super().__init__(config, encoding, devices, weights, session=session)
        self.backend = session
        self.artifact = artifact
        self.spec = artifact.manifest.components[component]
        self.keep = keep
        self.model = self.load_model()

    @abstractmethod
    def load_model(self) -> M:
        """What `model` is."""

    def close(self) -> None:
        """Close the sessions once nobody uses them."""
        self.model.close()


class CompiledModel(_Compiled[GraphModel]):
    """A text encoder or decoder of one graph; `model` runs it. Its session stays open with keep="all" alone."""

    def load_model(self) -> GraphModel:
        """Its graph, opened at the first call."""
        if tuple(self.spec.graphs) != (MODEL,):
            raise SpecError(f"component {self.spec.name!r} has graphs {list(self.spec.graphs)}, expected {[MODEL]}")
        graph = self.spec.graphs[MODEL]
        holder = SessionHolder(lambda: self.backend.open(self.artifact.path(graph.path), graph), self.keep == "all")
        return GraphModel(self.spec, holder, self.artifact.manifest.dims)


class CompiledDenoiser(_Compiled[Denoiser]):
    """The diffusion transformer in segments; `model` is the engine's Denoiser."""

    def load_model(self) -> Denoiser:
        """Its segments, opened at the first request: the loop's stay open unless keep is "none", `condition` only with "all"."""
        dims = self.artifact.manifest.dims
        check_named("dims", dims, (CONDITION_ROWS,))
        return Denoiser(
            self.backend,
            self.artifact.root,
            self.spec,
            keep_loop=self.keep != "none",
            keep_condition=self.keep == "all",
            condition_rows=dims[CONDITION_ROWS],
        )
