"""Parity: what was written, run by the engine that will run it, against the source's own module in eager float32.

A component that fits is compared whole. A large one is compared piece by piece between its borders, each piece fed
what eager had there, so that one block's weights are in memory at a time; and the wiring, which pieces cannot show,
by the same configuration at full depth and small width with random weights, run whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from vitrify.engine import native_library
from vitrify.engine.denoiser import CONDITION_ROWS, Denoiser
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ParityError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.session import Array, Backend, Session
from vitrify.engine.specs import ComponentSpec, GraphSpec, ParitySpec
from vitrify.export.eager import EagerModule, Scaled
from vitrify.export.graphs import component_spec
from vitrify.export.parity import BLOCK_TOLERANCE, COMPONENT_TOLERANCE, ROUNDED_TOLERANCES, Difference, difference, rounded_up
from vitrify.export.passes import run_passes
from vitrify.export.pieces import ShippedGraphs
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.rounding import Runs
from vitrify.export.source import TensorLocation
from vitrify.export.trace import trace

__all__ = ["WHOLE_LIMIT_BYTES", "kernels_that_run", "random_runs", "verify_component"]

WHOLE_LIMIT_BYTES = 512 * 2**20
_STEPS = 2
_SEED = 20240801


def verify_component(
    recipe: ComponentRecipe,
    spec: ComponentSpec,
    root: Path,
    parameters: Mapping[str, TensorLocation | Scaled],
    *,
    layers: Mapping[str, str] | None = None,
    whole_limit_bytes: int = WHOLE_LIMIT_BYTES,
    backend: OrtCpuBackend | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> ParitySpec:
    """Compare the component that lies under `root` with eager PyTorch, at the recipe's two sizes.

    parameters: the graph's parameters, where the reference reads them. layers: weight → bf16 or int8, of a component in lower
    precision; eager PyTorch then rounds in those linear layers as their ops do, and it is compared block by block if it has
    any: a rounding that falls to the other side moves an input by a quantum, and layer by layer more of them do.
    whole_limit_bytes: float32 bytes of parameters up to which a component in float32 is compared whole.
    backend: what runs the graphs; None: this machine's best kernels. Which those are is no part of the result, whose bytes
    must not depend on the machine: `kernels_that_run` says it.
    Raises ParityError naming the component, the place and both errors.
    """
    backend = backend or OrtCpuBackend()
    layers = layers or {}
    tolerances = ROUNDED_TOLERANCES if layers else (BLOCK_TOLERANCE, COMPONENT_TOLERANCE)
    float_bytes = sum(4 * int(np.prod(place.shape, dtype=np.int64)) for place in parameters.values())
    if (float_bytes <= whole_limit_bytes and not layers) or not recipe.borders:
        progress("whole")
        found = _whole(recipe, spec, root, backend, EagerModule(recipe, parameters), layers)
        return _judged(recipe.name, "whole", {name: (d, tolerances[1]) for name, d in found.items()})
    pieces = _blocks(recipe, spec, root, backend, parameters, layers, progress)
    measured = {f"block {n}": (d, tolerances[0]) for n, d in pieces.items()}
    if recipe.narrow is not None:
        progress("wiring")
        wiring = _wiring(recipe.narrow(), backend)
        measured |= {f"wiring {name}": (d, COMPONENT_TOLERANCE) for name, d in wiring.items()}
    return _judged(recipe.name, "blocks", measured)


def kernels_that_run(backend: OrtCpuBackend) -> str:
    """The kernels that a parity measured with `backend` is a parity of, in words."""
    if not backend.native_ops:
        return "the portable bodies of our ops"
    return f"our native kernels at CPU level {native_library.cpu_level()}"


def random_runs(recipe: ComponentRecipe, parameters: Mapping[str, TensorLocation | Scaled]) -> Runs:
    """The component in eager PyTorch on the random inputs that parity uses, one block's weights in memory at a time."""
    eager = EagerModule(recipe, parameters, stream=True)
    rng = np.random.default_rng(_SEED)

    def again(inputs: Mapping[str, Array]) -> torch.Tensor:
        return torch.from_numpy(eager.run(inputs)[recipe.outputs[0]])

    return Runs(eager.module, [partial(again, _inputs(recipe, dims, rng)) for dims in recipe.probe_dims], recipe.prefix)


def _judged(component: str, method: str, measured: Mapping[str, tuple[Difference, float]]) -> ParitySpec:
    for name, (found, tolerance) in measured.items():
        found.check(tolerance, f"{component}: {name}")
    return ParitySpec(
        checked=True,
        method=method,
        measurements={name: rounded_up(found.relative) for name, (found, _) in measured.items()},
        tolerances={name: tolerance for name, (_, tolerance) in measured.items()},
    )


def _inputs(recipe: ComponentRecipe, dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Array]:
    """Random inputs: standard normal, a step input uniform in 0..1, integers below their bound."""
    made: dict[str, Array] = {}
    for i in recipe.inputs:
        shape = i.spec.resolve(dims)
        if i.dtype is DType.INT64:
            made[i.name] = rng.integers(0, i.upper, shape, dtype=np.int64)
        elif i.role == "step":
            made[i.name] = rng.uniform(0.0, 1.0, shape).astype(np.float32)
        else:
            made[i.name] = rng.standard_normal(shape, dtype=np.float32)
    return made


def _whole(
    recipe: ComponentRecipe,
    spec: ComponentSpec,
    root: Path,
    backend: Backend,
    eager: EagerModule,
    layers: Mapping[str, str] | None = None,
) -> dict[str, Difference]:
    """Every output's difference, the worst of both sizes."""
    found: dict[str, Difference] = {}
    rng = np.random.default_rng(_SEED)
    for dims in recipe.probe_dims:
        if recipe.segments is None:
            inputs = _inputs(recipe, dims, rng)
            with contextlib.closing(backend.open(root / spec.graphs["model"].path, spec.graphs["model"])) as session:
                results = [(_run(session, inputs, _all_dims(spec.graphs["model"], recipe, dims)), eager.run(inputs, layers))]
        else:
            results = _segmented(recipe, spec, root, backend, eager, layers, dims, rng)
        for ours, reference in results:
            for name in recipe.outputs:
                apart = difference(ours[name], reference[name], rounded=bool(layers))
                found[name] = apart | found.get(name, Difference(0.0, 0.0))
    return found


def _segmented(
    recipe: ComponentRecipe,
    spec: ComponentSpec,
    root: Path,
    backend: Backend,
    eager: EagerModule,
    layers: Mapping[str, str] | None,
    dims: Mapping[str, int],
    rng: np.random.Generator,
) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """The denoiser's steps through its segments, each with its own step inputs and latents."""
    steps = [_inputs(recipe, dims, rng) for _ in range(_STEPS)]
    roles = {i.name: i.role for i in recipe.inputs}
    latents = next(name for name, role in roles.items() if role == "latents")
    given = [{name: (value if roles[name] != "request" else steps[0][name]) for name, value in step.items()} for step in steps]
    by_row = {t.name for t in spec.graphs["condition"].inputs if t.shape[:1] == (CONDITION_ROWS,)}
    results = []
    with contextlib.closing(Denoiser(backend, root, spec)) as denoiser, denoiser.plan(**dims, steps=_STEPS) as plan:
        plan.condition(
            {name: given[0][name] for name, role in roles.items() if role == "request" and name not in by_row},
            {name: np.stack([step[name] for step in given]) for name in by_row},
        )
        for index, step in enumerate(given):
            plan.latents[...] = step[latents]
            results.append(({recipe.outputs[0]: plan.step(index).copy()}, eager.run(step, layers)))
    return results


def _blocks(
    recipe: ComponentRecipe,
    spec: ComponentSpec,
    root: Path,
    backend: OrtCpuBackend,
    parameters: Mapping[str, TensorLocation | Scaled],
    layers: Mapping[str, str],
    progress: Callable[[str], None],
) -> dict[str, Difference]:
    progress("eager")
    given = _eager_values(recipe, parameters, layers)
    graphs = {name: root / graph.path for name, graph in spec.graphs.items()}
    folder = next(iter(graphs.values())).parent
    found: dict[str, Difference] = {}
    pieces = ShippedGraphs(recipe, graphs).pieces()
    for piece in pieces:
        progress(piece.name)
        with contextlib.closing(backend.open_bytes(piece.model, folder, piece.spec)) as session:
            for dims, values in zip(recipe.probe_dims, given, strict=True):
                fed = {t.name: values[t.name] for t in piece.spec.inputs}
                results = _run(session, fed, _all_dims(piece.spec, recipe, dims))
                for name, result in results.items():
                    apart = difference(result, values[name], rounded=bool(layers))
                    found[piece.name] = apart | found.get(piece.name, Difference(0.0, 0.0))
    return found


def _eager_values(
    recipe: ComponentRecipe, parameters: Mapping[str, TensorLocation | Scaled], layers: Mapping[str, str]
) -> list[dict[str, Array]]:
    """Per size: the inputs, every border's values and the outputs, as eager has them; its weights are gone on return."""
    rng = np.random.default_rng(_SEED)
    eager = EagerModule(recipe, parameters, stream=True)
    inputs = [_inputs(recipe, dims, rng) for dims in recipe.probe_dims]
    return [{**given, **eager.run(given, layers)} for given in inputs]


def _wiring(narrow: ComponentRecipe, backend: OrtCpuBackend) -> dict[str, Difference]:
    """The same depth at small width, whole, through the path that ships; weights random and distinct, held in memory."""
    traced = trace(narrow)
    rng = np.random.default_rng(_SEED)
    values: dict[str, Array] = {name: _random_parameter(shape, rng) for name, shape in traced.parameters.items()}
    shapes = dict(traced.parameters)
    models = run_passes(traced, narrow)
    spec = component_spec(narrow, models, shapes, {}, ())
    for model in models.values():
        for value in [v for v in model.graph.inputs if v.name in values]:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(values[str(value.name)], name=value.name)
            model.graph.register_initializer(value)
    held = {spec.graphs[name].path: ir.to_proto(m).SerializeToString(deterministic=True) for name, m in models.items()}
    return _whole(narrow, spec, Path(), _HeldGraphs(backend, held), EagerModule(narrow, values))


def _random_parameter(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Scaled so that activations keep their size: 1/√fan-in for matrices; around one for vectors, so that norms stay norms."""
    drawn = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) < 2:
        return np.asarray(1.0 + 0.2 * drawn, dtype=np.float32)
    return np.asarray(drawn / np.sqrt(np.prod(shape[1:])), dtype=np.float32)


class _HeldGraphs(Backend):
    """A backend whose files lie in memory."""

    name = "cpu"

    def __init__(self, inner: OrtCpuBackend, graphs: Mapping[str, bytes]) -> None:
        self._inner = inner
        self._graphs = graphs

    @property
    def native_ops(self) -> Mapping[str, int]:
        return self._inner.native_ops

    def open(self, path: Path, spec: GraphSpec) -> Session:
        return self._inner.open_bytes(self._graphs[path.as_posix()], Path(), spec)


def _all_dims(spec: GraphSpec, recipe: ComponentRecipe, dims: Mapping[str, int]) -> dict[str, int]:
    """`dims` and what follows from them: the sizes of the outputs, as the module makes them."""
    known = dict(dims)
    for name in {d for t in (*spec.inputs, *spec.outputs) for d in t.shape if isinstance(d, str)}:
        if name not in known and " + " not in name:
            if name not in recipe.derived_dims:
                raise ParityError(f"{recipe.name}: {spec.path} has dimension {name!r}, for which the recipe has no probe size")
            source, factor = recipe.derived_dims[name]
            known[name] = dims[source] * factor
    return known


def _run(session: Session, inputs: Mapping[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
    plan = session.plan(dims)
    for tensor in session.spec.inputs:
        plan.bind(tensor.name, np.ascontiguousarray(inputs[tensor.name]))
    plan.ready()
    plan.run()
    return {t.name: plan.array(t.name).copy() for t in session.spec.outputs}
