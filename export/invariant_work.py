"""What the loop computes again in every step though no latent reaches it: the hoist's remainder, listed for `inspect`."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from vitrify.engine.denoiser import LOOP_SEGMENTS
from vitrify.engine.errors import CompileError
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.work import NORMS, PRODUCTS_AND_ACTIVATIONS
from vitrify.kernels import registry
from vitrify.kernels.op import DOMAIN

__all__ = ["invariant_work"]

_OUR_WORK = frozenset({"attention", "conv", "linear"})
"""The folders of `kernels/` whose ops are matrix products or convolutions."""


def invariant_work(recipe: ComponentRecipe, parts: Mapping[str, ir.Model]) -> tuple[str, ...]:
    """The loop's matrix products, activations and norms without a path from the latents, as `segment/weight` or `segment/value`.

    These are what block 0 makes of the text: text tokens × this step's modulation, too large to keep for every step.
    Raises CompileError when another segment has any: the hoist has then missed something.
    """
    latents = {i.name for i in recipe.inputs if i.role == "latents"}
    handed = {i.name for i in recipe.inputs} | {v.name for part in parts.values() for v in part.graph.outputs}
    touched: set[str] = set(latents)
    found = []
    for segment in LOOP_SEGMENTS:
        graph = parts[segment].graph
        reached = {v for v in graph.inputs if v.name in touched}
        for node in graph:
            if any(v in reached for v in node.inputs if v is not None):
                reached.update(node.outputs)
            elif _is_work(node):
                given = [v for v in node.inputs if v is not None and v.producer() is None and v.const_value is None]
                weights = [str(v.name) for v in given if v.name not in handed]
                found.append((segment, next(iter(weights), str(node.outputs[0].name))))
        touched |= {str(v.name) for v in graph.outputs if v in reached}
    elsewhere = [f"{segment}/{name}" for segment, name in found if segment != "first"]
    if elsewhere:
        raise CompileError(f"{recipe.name}: known before the loop, yet computed in it: {', '.join(elsewhere[:5])}")
    return tuple(f"{segment}/{name}" for segment, name in found)


def _is_work(node: ir.Node) -> bool:
    """Whether `node` is a matrix product, an activation or a norm."""
    if node.domain == DOMAIN:
        return registry.folder(node.op_type) in _OUR_WORK
    return node.op_type in PRODUCTS_AND_ACTIVATIONS | NORMS
