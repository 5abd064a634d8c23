"""Border marks become value names: the marked value keeps its label as its name, and the mark itself goes."""

from __future__ import annotations

import onnx_ir as ir

from vitrify.export.trace import BORDER

__all__ = ["JOINT", "name_borders"]

JOINT = "+"
"""Stands between two labels in the name of a tensor that holds both values, one after the other along the tokens."""


def name_borders(model: ir.Model) -> None:
    """Rules: (1) a Border's input takes its label as name; (2) users of the Border read the input."""
    for node in list(model.graph):
        if node.op_type != BORDER:
            continue
        source, marked = node.inputs[0], node.outputs[0]
        assert source is not None
        label = node.attributes["label"].as_string()
        if source.shape is None:
            source.shape = marked.shape
        ir.convenience.replace_all_uses_with(marked, source)
        model.graph.remove(node, safe=True)
        source.name = label
