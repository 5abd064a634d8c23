"""From a component in float32, written and verified, to the same in bf16 or int8."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

import onnx_ir as ir
import torch

from vitrify.engine.artifact import ArtifactWriter
from vitrify.engine.errors import CompileError
from vitrify.engine.specs import ComponentSpec, LayerPrecision, PrecisionSpec
from vitrify.export.lowering import SCALE_SUFFIX, attentions_of, layers_of, lower_graphs, lowered_spec, rewrite_files
from vitrify.export.parity import rounded_up
from vitrify.export.rounding import Runs, deciding, layer_errors, output_errors
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
    than the bound, the worst layers stay one precision above, as few as will do. How many is sought on the run that decides
    alone, then all are made; until they keep the bound, the search goes on with the one that decides now. runs: of the component
    in eager PyTorch; measured_on: what their inputs are. Raises CompileError where the bound cannot be kept.
    """
    bound = BOUNDS[precision]
    with torch.no_grad():
        fits = {name: precision if in_int8 else "bf16" for name, in_int8 in layers_of(models).items()}
        attentions = attentions_of(models)
        progress(f"error of each layer in {precision}")
        errors = layer_errors(runs, fits | dict.fromkeys(attentions, "bf16"))
        exact = {place: call() for place, call in enumerate(runs.calls)}
        fits |= dict.fromkeys((name for name in attentions if name in errors), "bf16")
        worst_first = sorted(fits, key=lambda name: (-errors[name], name))

        def with_kept(kept: int) -> dict[str, str]:
            layers = {name: _ABOVE[fits[name]] if place < kept else fits[name] for place, name in enumerate(worst_first)}
            return layers | {name: "fp32" for name in attentions if name not in errors}

        def off(kept: int, places: Collection[int]) -> dict[int, float]:
            progress(f"{kept} of {len(fits)} layers one precision above, runs made: {len(places)} of {len(exact)}")
            return output_errors(runs, with_kept(kept), {place: exact[place] for place in places})

        def keeps(kept: int, place: int) -> bool:
            return off(kept, [place])[place] <= bound

        kept = 0
        found = off(kept, exact)
        while not (error := found[decides := deciding(found)]) <= bound:
            if kept == len(fits):
                raise CompileError(
                    f"{component}: even with every layer one precision above its outputs are off by {error:.3f}, "
                    f"allowed {bound}; export it with --precision {component}=fp32"
                )
            kept = _fewest(kept, len(fits), partial(keeps, place=decides))
            found = off(kept, exact)
    layers = with_kept(kept)
    chosen = {name: LayerPrecision(layers[name], rounded_up(errors.get(name, 0.0), _TENTHS)) for name in sorted(layers)}
    return PrecisionSpec(precision, bound, rounded_up(error, _TENTHS), measured_on, chosen)


def _fewest(too_few: int, most: int, enough: Callable[[int], bool]) -> int:
    """The least number above `too_few` that is enough, or `most`: twice as many each time, then halving what is between."""
    step = 1
    while (found := min(too_few + step, most)) < most and not enough(found):
        too_few, step = found, 2 * step
    while found - too_few > 1:
        middle = (found + too_few) // 2
        if enough(middle):
            found = middle
        else:
            too_few = middle
    return found


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
