"""The graph passes, one file each, and their order as one list."""

from __future__ import annotations

import onnx_ir as ir

from vitrify.export.passes.borders import name_borders
from vitrify.export.passes.clean import clean, sweep
from vitrify.export.passes.hoist import find_invariants
from vitrify.export.passes.linear import linears_as_gemm
from vitrify.export.passes.rotary import rotary_as_op
from vitrify.export.passes.segments import cut
from vitrify.export.passes.shapes import positional_reshapes
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.trace import TracedGraph

__all__ = ["run_passes"]


def run_passes(traced: TracedGraph, recipe: ComponentRecipe) -> dict[str, ir.Model]:
    """The component's graphs in running order: {"model": …}, or a denoiser's segments. `traced` is used up."""
    model, parameters = traced.model, frozenset(traced.parameters)
    for run in (
        clean,
        name_borders,
        positional_reshapes,
        rotary_as_op,
        lambda m: linears_as_gemm(m, parameters),
        sweep,
    ):
        run(model)
    if recipe.segments is None:
        return {"model": model}
    parts = cut(model, recipe, find_invariants(model, recipe), parameters)
    for part in parts.values():
        sweep(part)
    return parts
