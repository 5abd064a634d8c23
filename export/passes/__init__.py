"""The graph passes, one file each, and their order as two lists: on the traced graph, and on what it is cut into."""

from __future__ import annotations

import onnx_ir as ir

from vitrify.engine.denoiser import LOOP_SEGMENTS
from vitrify.export.passes.ada_layer_norm import fuse_ada_layer_norms
from vitrify.export.passes.attention import fuse_attention
from vitrify.export.passes.borders import name_borders
from vitrify.export.passes.clean import clean, sweep
from vitrify.export.passes.conv import fuse_convs
from vitrify.export.passes.functions import attach_bodies
from vitrify.export.passes.gated_residual import fuse_gated_residuals
from vitrify.export.passes.hoist import find_invariants
from vitrify.export.passes.linear import fuse_linears
from vitrify.export.passes.rejoined import rejoin
from vitrify.export.passes.rotary import rotary_as_op
from vitrify.export.passes.segments import cut
from vitrify.export.passes.shapes import positional_reshapes
from vitrify.export.passes.spelt_out import name_what_is_spelt_out
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
        lambda m: name_what_is_spelt_out(m, parameters),
        fuse_attention,
        lambda m: fuse_linears(m, parameters),
        lambda m: fuse_convs(m, parameters),
        sweep,
    ):
        run(model)
    if recipe.segments is None:
        attach_bodies(model)
        return {"model": model}
    parts = cut(model, recipe, find_invariants(model, recipe), parameters)
    for part in parts.values():
        sweep(part)
    # What reads the modulation table waits for the cut: only then is there one.
    fuse_ada_layer_norms(parts)
    labels = frozenset(label for border in recipe.borders for label in border.labels if label is not None)
    for segment in LOOP_SEGMENTS:
        fuse_gated_residuals(parts[segment])
        rejoin(parts[segment], labels)
    for part in parts.values():
        sweep(part)
        attach_bodies(part)
    return parts
