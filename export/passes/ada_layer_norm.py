"""Modulated norms as one op: norm(x) · factor + shift, factor and shift read from the modulation table.

Runs on the segments after the cut, where the table is an input.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitrify.engine.denoiser import LOOP_SEGMENTS
from vitrify.export.passes.modulation import TableEntry, table_entry
from vitrify.export.passes.patterns import dims, leave, made_by, our_node, put

__all__ = ["fuse_ada_layer_norms"]

_OPS = {"LayerNormalization": "AdaLayerNorm", "RMSNormalization": "AdaRMSNorm"}


def fuse_ada_layer_norms(parts: Mapping[str, ir.Model]) -> None:
    """Rules: (1) Add(Mul(n, f), s) becomes AdaLayerNorm or AdaRMSNorm for entries f, s of the table and n a norm over the
    last of three dimensions without weights of its own; (2) a norm that `condition` made is done again by the op if its x
    reaches the segment too: it costs nothing there; (3) values that no segment reads any more do not leave `condition`."""
    made_before = {str(v.name): v for v in parts["condition"].graph.outputs}
    for segment in LOOP_SEGMENTS:
        graph = parts[segment].graph
        for node in list(graph):
            found = _match(node)
            if found is None:
                continue
            value, factor, shift, product = found
            norm = value.producer()
            at_hand = {str(v.name): v for v in graph.inputs}
            if norm is None and str(value.name) in made_before:
                norm = made_before[str(value.name)].producer()
            x = None if norm is None else norm.inputs[0]
            if x is not None and norm is not value.producer():
                x = at_hand.get(str(x.name))
            if norm is None or x is None or not _is_plain(norm):
                leave(product, "its norm is not made in this segment, has weights of its own or is over other dimensions")
                continue
            epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
            attributes: dict[str, int | float] = {"factor_at": factor.at, "shift_at": shift.at, "epsilon": epsilon}
            put(graph, our_node(_OPS[norm.op_type], [x, factor.table], attributes), node.outputs[0])
            graph.remove(product, safe=True)
    _drop_unread(parts)


def _match(node: ir.Node) -> tuple[ir.Value, TableEntry, TableEntry, ir.Node] | None:
    """(n, f, s, the Mul) where `node` is the Add of rule 1; n may be any value of three dimensions."""
    if node.op_type != "Add":
        return None
    for position, value in enumerate(node.inputs):
        product, shift = made_by(value, "Mul"), table_entry(node.inputs[1 - position])
        if product is None or shift is None or len(product.outputs[0].uses()) != 1:
            continue
        for side, factor in enumerate(product.inputs):
            entry, norm = table_entry(factor), product.inputs[1 - side]
            shape = dims(norm)
            if entry is None or norm is None or shape is None or len(shape) != 3:
                continue
            if shape[2] == entry.width == shift.width and entry.table is shift.table:
                return norm, entry, shift, product
    return None


def _is_plain(norm: ir.Node) -> bool:
    """Whether `norm` is over the last dimension, its scale ones and its bias, if any, zeros."""
    if norm.op_type not in _OPS or norm.domain != "":
        return False
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    stash = norm.attributes["stash_type"].as_int() if "stash_type" in norm.attributes else 1
    if axis not in (-1, 2) or stash != 1:
        return False
    weights = zip(norm.inputs[1:], (1.0, 0.0), strict=False)
    return all(v is None or (v.const_value is not None and bool(np.all(v.const_value.numpy() == n))) for v, n in weights)


def _drop_unread(parts: Mapping[str, ir.Model]) -> None:
    """Rule 3."""
    read: set[str] = set()
    for segment in LOOP_SEGMENTS:
        graph = parts[segment].graph
        for value in list(graph.inputs):
            if not value.uses() and not value.is_graph_output() and str(value.name) in _given(parts):
                graph.inputs.remove(value)
        read |= {str(v.name) for v in graph.inputs}
    outputs = parts["condition"].graph.outputs
    for value in list(outputs):
        if value.name not in read:
            outputs.remove(value)


def _given(parts: Mapping[str, ir.Model]) -> set[str]:
    return {str(v.name) for v in parts["condition"].graph.outputs}
