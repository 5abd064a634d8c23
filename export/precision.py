"""From a component in float32, written and verified, to the same in bf16 or int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import onnx_ir as ir
import torch

from vitrify.engine.artifact import ArtifactWriter
from vitrify.engine.errors import CompileError
from vitrify.engine.specs import ComponentSpec, LayerPrecision, PrecisionSpec
from vitrify.export.lowering import SCALE_SUFFIX, attentions_of, layers_of, lower_graphs, lowered_spec, rewrite_files
from vitrify.export.parity import rounded_up
from vitrify.export.rounding import Runs, layer_errors, output_error
from vitrify.export.source import TensorLocation, WeightFiles

__all__ = ["BOUNDS", "choose_precision", "lower_component"]

BOUNDS = {"bf16": 0.02, "int8": 0.04}
"""Precision → the relative error that a component's outputs may have."""

_TENTHS = tuple(tenth / 10 for tenth in range(10, 100))
_ABOVE = {"bf16": "fp32", "int8": "bf16"}


def choose_precision(
    component: str, models: Mapping[str, ir.Model], precision: str, runs: Runs, measured_on: str, progress: Callable[[str], None]
) -> PrecisionSpec:
    """Every linear layer's, convolution's and attention's precision, and the component's error with them.

    Convolutions, attention, and linear layers too wide for int8 are lowered to bf16 at most. Each layer's error in its precision
    is measured on its own inputs. Then all layers are lowered at once, and as long as the component's outputs are off by more
    than the bound, the worst layers stay one precision above: twice as many each time, then as few as will do. runs: of the
    component in eager PyTorch; measured_on: what their inputs are.
    Raises CompileError where the bound cannot be kept.
    """
    bound = BOUNDS[precision]
    with torch.no_grad():
        fits = {name: precision if in_int8 else "bf16" for name, in_int8 in layers_of(models).items()}
        attentions = attentions_of(models)
        progress(f"error of each layer in {precision}")
        errors = layer_errors(runs, fits | dict.fromkeys(attentions, "bf16"))
        exact = list(runs.outputs())
        fits |= dict.fromkeys((name for name in attentions if name in errors), "bf16")
        worst_first = sorted(fits, key=lambda name: (-errors[name], name))

        def tried(kept: int) -> tuple[dict[str, str], float]:
            progress(f"{kept} of {len(fits)} layers one precision above")
            layers = {name: _ABOVE[fits[name]] if place < kept else fits[name] for place, name in enumerate(worst_first)}
            layers |= {name: "fp32" for name in attentions if name not in errors}
            return layers, output_error(runs, layers, exact)

        too_few, kept = -1, 0
        layers, error = tried(kept)
        while not error <= bound and kept < len(fits):
            too_few, kept = kept, min(max(1, 2 * kept), len(fits))
            layers, error = tried(kept)
        if not error <= bound:
            raise CompileError(
                f"{component}: even with every layer one precision above its outputs are off by {error:.3f}, allowed {bound}; "
                f"export it with --precision {component}=fp32"
            )
        while kept - too_few > 1:
            middle = (kept + too_few) // 2
            found = tried(middle)
            if found[1] <= bound:
                kept, (layers, error) = middle, found
            else:
                too_few = middle
    chosen = {name: LayerPrecision(layers[name], rounded_up(errors.get(name, 0.0), _TENTHS)) for name in sorted(layers)}
    return PrecisionSpec(precision, bound, rounded_up(error, _TENTHS), measured_on, chosen)


def lower_component(
    writer: ArtifactWriter,
    spec: ComponentSpec,
    models: Mapping[str, ir.Model],
    files: WeightFiles,
    locations: Mapping[str, TensorLocation],
    chosen: PrecisionSpec,
) -> ComponentSpec:
    """Write the component's weights anew and turn `models` into the ops of the chosen precisions; gives its new spec.

    files, locations: the source's, the latter by parameter. The graphs' files are for the caller to write.
    """
    stored = {(place.file.name, place.offset): name for name, place in files.tensors.items()}
    names = {name: stored[place.file.name, place.offset] for name, place in locations.items()}
    layers = {name: layer.precision for name, layer in chosen.layers.items() if layer.precision != "fp32"}
    weights = {name: precision for name, precision in layers.items() if name in names}
    places = rewrite_files(writer, spec.name, files, {names[name]: precision for name, precision in weights.items()})
    after = {name: places[names[name]] for name in locations}
    for name, precision in weights.items():
        if precision == "int8":
            after[name + SCALE_SUFFIX] = places[names[name] + SCALE_SUFFIX]
    lower_graphs(models, layers, locations, after)
    return replace(lowered_spec(spec, models), precision=chosen)
