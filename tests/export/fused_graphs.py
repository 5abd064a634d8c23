"""For the tests of the passes that put our ops into graphs: a pass run on a few nodes, whose results must stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from tests.export.by_hand import Array, assert_unchanged, ops
from vitrify.export.fusion import graph_fusion
from vitrify.export.passes.clean import sweep
from vitrify.export.passes.functions import attach_bodies

__all__ = ["PARAMETERS", "Dims", "fused", "reasons"]

Dims = tuple[int, ...]
PARAMETERS = frozenset({"w", "b", "v"})
"""Names that the passes take for parameters."""


def _normal(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fused(model: ir.Model, fuse: Callable[[ir.Model], object], shapes: Mapping[str, Dims]) -> list[str]:
    """The ops after the pass, which must not change what the graph computes: our ops run as their bodies."""

    def rewrite(model: ir.Model) -> None:
        fuse(model)
        sweep(model)
        attach_bodies(model)

    outputs = [(v.name, str(v.shape)) for v in model.graph.outputs]
    feeds = {name: _normal(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    assert_unchanged(model, rewrite, feeds)
    assert [(v.name, str(v.shape)) for v in model.graph.outputs] == outputs
    return ops(model)


def reasons(model: ir.Model) -> dict[str, str]:
    """Op → why it stayed."""
    return {row.op: row.reason for row in graph_fusion(model).left}
