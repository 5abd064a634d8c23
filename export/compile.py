"""The compiler, a straight line: recipe → trace → passes → weights → graphs → verify → seal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vitrify.engine.artifact import ArtifactWriter, FileEntry, Manifest, SchedulerSpec, TokenizerSpec
from vitrify.engine.denoiser import SEGMENTS
from vitrify.engine.errors import CompileError, SpecError
from vitrify.engine.fusion import FUSION, GraphFusion, fusion_of
from vitrify.engine.scheduler_config import FLOW_MATCH_EULER, MAX_STEPS, check_flow_match_euler
from vitrify.engine.source_record import SOURCE, SourceRecord
from vitrify.engine.specs import ComponentSpec, Dim
from vitrify.export.calibration import CALIBRATION_PROMPTS, recorded_calls
from vitrify.export.families import recipe_for
from vitrify.export.fusion import graph_fusion
from vitrify.export.graphs import component_spec
from vitrify.export.options import ExportOptions
from vitrify.export.passes import run_passes
from vitrify.export.passes.external import tie_parameters
from vitrify.export.precision import choose_precision, lower_component
from vitrify.export.recipe import ComponentRecipe, Recipe
from vitrify.export.rounding import Runs
from vitrify.export.source import DiffusersFolder, TensorLocation, WeightFiles
from vitrify.export.step_graphs import StepGraph, op_versions, step_graphs
from vitrify.export.tokenizers import serialised_tokenizer
from vitrify.export.trace import trace
from vitrify.export.verify import WHOLE_LIMIT_BYTES, random_runs, verify_component
from vitrify.export.weights import copy_weights, resolve_parameters
from vitrify.kernels import registry

__all__ = ["Progress", "compile_pipeline", "plan_pipeline"]

Progress = Callable[[str, str], None]

_PACKAGES = ("diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "torch", "transformers", "vitrify")
_SCHEDULERS = {FLOW_MATCH_EULER: check_flow_match_euler}


@dataclass
class _Compiled:
    """A component on its way: its graphs, and the shapes of the parameters they read."""

    recipe: ComponentRecipe
    models: dict[str, ir.Model]
    parameters: Mapping[str, tuple[int, ...]]


def compile_pipeline(
    source: Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress = lambda _component, _phase: None,
    whole_limit_bytes: int = WHOLE_LIMIT_BYTES,
) -> str:
    """Compile the diffusers folder `source` into the artifact `out`; returns the artifact's id.

    progress: called with the component and the phase as they begin. whole_limit_bytes: see `verify_component`.
    Raises CompileError (what the source or the options must change), ParityError (a graph differs from eager PyTorch)
    or ArtifactError (`out` cannot be written); whatever is raised, `out` is as it was.
    """
    options = options or ExportOptions()
    folder = DiffusersFolder.open(source, variant=options.variant)
    recipe, scheduler = _recipe(folder, options)
    with ArtifactWriter(out, force=options.force) as writer:
        files = {c.name: folder.weights(c.name) for c in recipe.components}
        compiled = [_traced(c, progress) for c in recipe.components]
        tokenizers = {}
        for name, max_length in recipe.tokenizers.items():
            tokenizers[name], data = serialised_tokenizer(folder.component(name), max_length)
            writer.write_bytes(tokenizers[name].path, data)
        components, copied = {}, dict[str, FileEntry]()
        calls = _calibration(folder, recipe, options, progress)
        for component in compiled:
            name = component.recipe.name
            locations = resolve_parameters(component.parameters, files[name], component.recipe.aliases or {})
            progress(name, "weights")
            weights = copy_weights(writer, name, files[name])
            copied |= weights
            spec = component_spec(component.recipe, component.models, component.parameters, locations, tuple(weights))
            _write_graphs(writer, component, spec, locations)
            if options.parity:
                parity = verify_component(
                    component.recipe,
                    spec,
                    writer.folder,
                    locations,
                    whole_limit_bytes=whole_limit_bytes,
                    progress=lambda what, name=name: progress(name, f"parity: {what}"),  # type: ignore[misc]
                )
                spec = replace(spec, parity=parity)
            if options.precision_of(name) != "fp32":
                spec = _lowered(writer, component, spec, files[name], locations, calls.pop(name, None), options, progress)
                if options.parity:
                    spec = _verified_lowered(writer, component, spec, locations, whole_limit_bytes, progress)
            components[name] = spec
        steps = _step_graphs(components)
        for graph in steps.values():
            writer.write_bytes(graph.spec.path, graph.model)
        for document in folder.documents():
            writer.copy_file(f"source/{document.name}", document)
        progress("artifact", "seal")
        provenance = _provenance(folder, copied, _fused(compiled))
        return writer.commit(_manifest(recipe, components, steps, scheduler, tokenizers, provenance))


def plan_pipeline(source: Path, options: ExportOptions | None = None, *, progress: Progress = lambda _c, _p: None) -> Manifest:
    """What an export would hold: traced from the configs alone; no weights are read and nothing is written."""
    options = options or ExportOptions()
    folder = DiffusersFolder.open(source, variant=options.variant)
    recipe, scheduler = _recipe(folder, options)
    compiled = [_traced(component, progress) for component in recipe.components]
    components = {c.recipe.name: component_spec(c.recipe, c.models, c.parameters, {}, ()) for c in compiled}
    return _manifest(recipe, components, _step_graphs(components), scheduler, {}, _provenance(folder, {}, _fused(compiled)))


def _recipe(folder: DiffusersFolder, options: ExportOptions) -> tuple[Recipe, SchedulerSpec]:
    recipe = recipe_for(folder, options)
    _check_defaults(recipe)
    _check_precision(recipe, options)
    scheduler = folder.component(recipe.scheduler)
    name, config = scheduler.class_name, scheduler.config
    if name not in _SCHEDULERS:
        raise CompileError(f"scheduler {name} is unsupported; supported: {', '.join(_SCHEDULERS)}")
    try:
        _SCHEDULERS[name](config)
    except SpecError as error:
        raise CompileError(f"scheduler {name}: {error}") from error
    return recipe, SchedulerSpec(name, {k: v for k, v in config.items() if not k.startswith("_")})


def _check_defaults(recipe: Recipe) -> None:
    held: dict[str, Dim] = {
        "height": recipe.dims["height"],
        "width": recipe.dims["width"],
        "max_sequence_length": recipe.dims["text_tokens"],
    }
    for name, dim in held.items():
        value = recipe.defaults[name]
        if not dim.allows(value):
            raise CompileError(f"--default-{name.replace('_', '-')} {value} is outside what is compiled: {dim}")
    steps = recipe.defaults["num_inference_steps"]
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MAX_STEPS:
        raise CompileError(f"--default-num-inference-steps {steps}: expected a whole number from 1 to {MAX_STEPS}")
    for name in ("guidance_scale", "true_cfg_scale"):
        scale = recipe.defaults.get(name, 1.0)
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
            raise CompileError(f"--default-{name.replace('_', '-')} {scale}: expected a finite number")


def _check_precision(recipe: Recipe, options: ExportOptions) -> None:
    """Raises CompileError for a component that is not there, and for prompts that nothing would be calibrated on."""
    names = [component.name for component in recipe.components]
    unknown = sorted(set(options.precision) - {"", *names})
    if unknown:
        raise CompileError(f"--precision names {', '.join(unknown)}; the components are {', '.join(names)}")
    if options.calibration_prompts and not any(options.precision_of(name) == "int8" for name in names):
        raise CompileError(
            "--calibration-prompts are for int8, and no component is to be int8; add --precision, or leave them out"
        )


def _traced(recipe: ComponentRecipe, progress: Progress) -> _Compiled:
    progress(recipe.name, "trace")
    traced = trace(recipe)
    parameters = dict(traced.parameters)
    progress(recipe.name, "passes")
    return _Compiled(recipe, run_passes(traced, recipe), parameters)


def _write_graphs(
    writer: ArtifactWriter, component: _Compiled, spec: ComponentSpec, locations: Mapping[str, TensorLocation]
) -> None:
    for name, model in component.models.items():
        tie_parameters(model, locations, writer.folder / component.recipe.name)
        writer.write_bytes(spec.graphs[name].path, ir.to_proto(model).SerializeToString(deterministic=True))


def _lowered(
    writer: ArtifactWriter,
    component: _Compiled,
    spec: ComponentSpec,
    files: WeightFiles,
    locations: Mapping[str, TensorLocation],
    calls: Runs | None,
    options: ExportOptions,
    progress: Progress,
) -> ComponentSpec:
    """The component that was written in float32, written again in the precision asked for."""
    recipe, models = component.recipe, component.models

    def say(what: str) -> None:
        progress(recipe.name, what)

    runs, measured_on = (random_runs(recipe, locations), "random inputs") if calls is None else (calls, "calibration prompts")
    chosen = choose_precision(recipe.name, models, options.precision_of(recipe.name), runs, measured_on, say)
    say(f"weights in {chosen.name}")
    spec = lower_component(writer, spec, models, files, locations, chosen)
    for name, model in models.items():
        writer.remove(spec.graphs[name].path)
        writer.write_bytes(spec.graphs[name].path, ir.to_proto(model).SerializeToString(deterministic=True))
    return spec


def _verified_lowered(
    writer: ArtifactWriter,
    component: _Compiled,
    spec: ComponentSpec,
    locations: Mapping[str, TensorLocation],
    whole_limit_bytes: int,
    progress: Progress,
) -> ComponentSpec:
    """Its parity says both comparisons then: of the graphs in float32, and of what they became."""
    assert spec.precision is not None
    found = verify_component(
        component.recipe,
        spec,
        writer.folder,
        locations,
        layers={name: layer.precision for name, layer in spec.precision.layers.items()},
        whole_limit_bytes=whole_limit_bytes,
        progress=lambda what: progress(spec.name, f"parity: {what}"),
    )
    prefix = f"{spec.precision.name}, "
    measurements = {prefix + key: value for key, value in found.measurements.items()}
    tolerances = {prefix + key: value for key, value in found.tolerances.items()}
    parity = replace(
        spec.parity,
        measurements={**spec.parity.measurements, **measurements},
        tolerances={**spec.parity.tolerances, **tolerances},
    )
    return replace(spec, parity=parity)


def _calibration(folder: DiffusersFolder, recipe: Recipe, options: ExportOptions, progress: Progress) -> dict[str, Runs]:
    """What the components that are to be int8 are called with; nothing where there is none."""
    wanted = [c for c in recipe.components if options.precision_of(c.name) == "int8"]
    if not wanted:
        return {}
    progress("calibration", "eager diffusers pipeline")
    return recorded_calls(folder, wanted, options.calibration_prompts or CALIBRATION_PROMPTS, recipe.defaults)


def _step_graphs(components: Mapping[str, ComponentSpec]) -> dict[str, StepGraph]:
    """Of every denoiser, by name."""
    denoisers = [component for component in components.values() if tuple(component.graphs) == SEGMENTS]
    return {name: graph for denoiser in denoisers for name, graph in step_graphs(denoiser).items()}


def _fused(compiled: Iterable[_Compiled]) -> dict[str, GraphFusion]:
    """Each graph by the name that the manifest gives it."""
    return {f"{c.recipe.name}.{name}": graph_fusion(model) for c in compiled for name, model in c.models.items()}


def _manifest(
    recipe: Recipe,
    components: Mapping[str, ComponentSpec],
    steps: Mapping[str, StepGraph],
    scheduler: SchedulerSpec,
    tokenizers: Mapping[str, TokenizerSpec],
    provenance: Mapping[str, Any],
) -> Manifest:
    used = sorted({op for graph in fusion_of(provenance).values() for op in graph.ops})
    return Manifest(
        family=recipe.family,
        pipeline_class=recipe.pipeline_class,
        target="cpu",
        components=components,
        dims=recipe.dims,
        step_graphs={name: graph.spec for name, graph in steps.items()},
        ops={op: registry.contract(op).version for op in used} | op_versions(steps),
        scheduler=scheduler,
        tokenizers=tokenizers,
        defaults=recipe.defaults,
        provenance=provenance,
    )


def _provenance(folder: DiffusersFolder, weights: Mapping[str, FileEntry], fused: Mapping[str, GraphFusion]) -> dict[str, Any]:
    """Where an artifact comes from. weights: the source's files, which a `--precision` export does not keep."""
    return {
        "packages": _versions(),
        SOURCE: SourceRecord(folder.name, {path: entry.sha256 for path, entry in weights.items()}).to_json(),
        FUSION: {name: graph.to_json() for name, graph in fused.items()},
    }


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found
