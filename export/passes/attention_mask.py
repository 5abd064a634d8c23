"""What an attention's mask says: nothing, causal, or a bias for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitrify.export.passes.patterns import dims, made_by, number

__all__ = ["Mask", "read_mask"]

_VIEWS = ("Expand", "Unsqueeze", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Mask:
    """causal: token i sees the keys 0..i alone. bias: [1, heads, tokens, keys] float32, added to the scores.

    reason: set where it is none of these.
    """

    causal: bool = False
    bias: ir.Value | None = None
    reason: str = ""


def read_mask(node: ir.Node) -> Mask:
    """The mask of an ONNX Attention.

    Rules: (1) none, or one that is true everywhere, is no mask; (2) `is_causal`, or a constant true on and below the
    diagonal alone, is causal; (3) a float [1, heads, tokens, keys] is a bias, and so is Where(true everywhere, bias, …).
    """
    causal = "is_causal" in node.attributes and node.attributes["is_causal"].as_int() == 1
    value = node.inputs[3] if len(node.inputs) > 3 else None
    if value is None:
        return Mask(causal=causal)
    if causal:
        return Mask(reason="causal and masked")
    chosen = made_by(value, "Where")
    if chosen is not None and _is_true(chosen.inputs[0]):
        value = chosen.inputs[1]
    if value is None or _is_true(value):
        return Mask()
    constant = _constant(value)
    if constant is not None and constant.dtype == np.bool_ and constant.ndim >= 2:
        triangle = np.tri(constant.shape[-2], constant.shape[-1], dtype=np.bool_)
        square = list(constant.shape[-2:]) == (dims(value) or [])[-2:] and constant.shape[-2] == constant.shape[-1]
        if square and bool(np.all(constant == triangle)):
            return Mask(causal=True)
        return Mask(reason="its constant mask is not causal")
    shape = dims(value)
    if value.dtype == ir.DataType.FLOAT and shape is not None and len(shape) == 4 and shape[0] == 1 and isinstance(shape[1], int):
        heads = (dims(node.inputs[0]) or [None, None])[1]
        if shape[1] == heads:
            return Mask(bias=value)
    return Mask(reason=f"its mask {shape} is neither causal nor a bias [1, heads, tokens, keys]")


def _constant(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """A constant behind what only widens or views it."""
    while value is not None and value.const_value is None:
        producer = value.producer()
        if producer is None or producer.op_type not in _VIEWS:
            return None
        value = producer.inputs[0]
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())


def _is_true(value: ir.Value | None) -> bool:
    """Whether `value` is true in all its elements: a constant, or a Range from 0 upward compared with ≥ 0."""
    constant = _constant(value)
    if constant is not None:
        return constant.dtype == np.bool_ and bool(constant.all())
    compared = _behind_views(value, "GreaterOrEqual")
    if compared is None or number(compared.inputs[1]) != 0:
        return False
    counted = _behind_views(compared.inputs[0], "Range")
    if counted is None:
        return False
    start, step = number(counted.inputs[0]), number(counted.inputs[2])
    return start is not None and step is not None and start >= 0 and step > 0


def _behind_views(value: ir.Value | None, op_type: str) -> ir.Node | None:
    while value is not None:
        found = made_by(value, op_type)
        if found is not None:
            return found
        producer = value.producer()
        if producer is None or producer.op_type not in _VIEWS:
            return None
        value = producer.inputs[0]
    return None
