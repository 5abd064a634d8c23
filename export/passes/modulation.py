"""Reading the modulation table: which of its columns a value holds."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitrify.export.passes.patterns import dims, made_by
from vitrify.export.passes.segments import TABLE_PREFIX

__all__ = ["TableEntry", "table_entry"]


@dataclass(frozen=True)
class TableEntry:
    """Columns `at` … `at + width` of a segment's `table`, [batch, columns]."""

    table: ir.Value
    at: int
    width: int


def table_entry(value: ir.Value | None) -> TableEntry | None:
    """What `value` holds, if it is one vector for all tokens: a table's Split as [batch, width] or [batch, 1, width]."""
    if value is None:
        return None
    reshaped = made_by(value, "Reshape")
    piece = value if reshaped is None else reshaped.inputs[0]
    split = made_by(piece, "Split")
    if piece is None or split is None or split.inputs[0] is None or split.inputs[1] is None:
        return None
    table, sizes = split.inputs[0], split.inputs[1].const_value
    if table.producer() is not None or not str(table.name).startswith(TABLE_PREFIX) or sizes is None:
        return None
    widths = [int(n) for n in sizes.numpy()]
    position = split.outputs.index(piece)
    width = widths[position]
    if reshaped is not None and (dims(value) or [])[1:] != [1, width]:
        return None
    return TableEntry(table, sum(widths[:position]), width)
