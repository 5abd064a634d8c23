"""Loop-invariant code motion over the denoising loop: what a request knows before its first step.

Rules, over the roles that the recipe gives to the graph's inputs (request, step, latents):
(1) a node that depends on request inputs alone is hoisted;
(2) so is one that depends on step inputs and whose values have no token dimension: all steps' values fit a table;
(3) a node stays when anything it reads stays; nodes on constants or sizes alone stay with their readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitrify.engine.errors import CompileError
from vitrify.export.recipe import ComponentRecipe, Role

__all__ = ["BATCH", "Invariants", "find_invariants"]

BATCH = "batch"
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Invariants:
    """What `find_invariants` found.

    roles: value → the roles it depends on; empty for constants, parameters and sizes.
    hoisted: nodes known before the loop, in graph order.
    rowed: hoisted values with one row per step and sample (the dimension `batch` counts steps × batch there).
    """

    roles: Mapping[ir.Value, frozenset[Role]]
    hoisted: frozenset[ir.Node]
    rowed: frozenset[ir.Value]


def find_invariants(model: ir.Model, recipe: ComponentRecipe) -> Invariants:
    """Apply the rules to `model`. Raises CompileError where a value would be needed per step and once at the same time."""
    assert recipe.segments is not None
    by_name = {i.name: i.role for i in recipe.inputs}
    roles: dict[ir.Value, frozenset[Role]] = {}
    for value in model.graph.inputs:
        roles[value] = frozenset({by_name[value.name]}) if value.name in by_name else frozenset()
    hoisted: list[ir.Node] = []
    movable: set[ir.Value] = set()
    for node in model.graph:
        read = [v for v in node.inputs if v is not None]
        found: frozenset[Role] = frozenset()
        if node.op_type != "Shape":
            found = found.union(*(roles.get(v, frozenset()) for v in read))
        for value in node.outputs:
            roles[value] = found
        if found and "latents" not in found and all(_known(v, roles, movable) for v in read):
            large = any(_has_dim(v, recipe.segments.token_dims) for v in node.outputs)
            if found == {"request"} or not large:
                hoisted.append(node)
                movable.update(node.outputs)
    return Invariants(roles, frozenset(hoisted), _rowed(model, hoisted, roles, recipe.segments.token_dims))


def _known(value: ir.Value, roles: Mapping[ir.Value, frozenset[Role]], movable: set[ir.Value]) -> bool:
    return not roles.get(value) or value in movable or (value.producer() is None and "latents" not in roles[value])


def _has_dim(value: ir.Value, names: tuple[str, ...]) -> bool:
    """Whether a value has one of these dimensions; an unknown shape counts as large."""
    if value.shape is None:
        return True
    found = {name for d in value.shape if not isinstance(d, int) for name in _NAME.findall(d.value or "unknown")}
    return bool(found & {*names, "unknown"})


def _rowed(
    model: ir.Model, hoisted: list[ir.Node], roles: Mapping[ir.Value, frozenset[Role]], token_dims: tuple[str, ...]
) -> frozenset[ir.Value]:
    """Values per step, and those that meet them element by element: these need a row per step too."""
    rowed = {v for node in hoisted for v in node.outputs if "step" in roles[v]}
    rowed |= {v for v in model.graph.inputs if roles[v] == {"step"}}
    changed = True
    while changed:
        changed = False
        for node in reversed(hoisted):
            touched = any(v in rowed for v in (*node.inputs, *node.outputs) if v is not None)
            if not touched:
                continue
            for value in (*node.inputs, *node.outputs):
                if value is not None and value not in rowed and roles.get(value) and _has_dim(value, (BATCH,)):
                    rowed.add(value)
                    changed = True
    for value in rowed:
        if roles[value] == {"request"} and _has_dim(value, token_dims):
            raise CompileError(f"{value.name!r} is known once per request but meets values that change with the step")
    return frozenset(rowed)
