"""Attention over [batch, tokens, width] as one op, with what lies around it: head views, transposes, the joining of two
parts along the tokens, the norm of queries and keys, the rotary embedding.

Runs after `rotary_as_op`, before the cut: what it leaves of the rotary tables is known per request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from vitrify.export.passes.attention_mask import read_mask
from vitrify.export.passes.patterns import dims, is_alone, leave, made_by, our_node, put
from vitrify.kernels.attention.contract import MAX_HEAD_DIM

__all__ = ["fuse_attention"]


@dataclass(frozen=True)
class _Operand:
    """Queries, keys or values as found: parts along the tokens [batch, tokens_i, width], in order.

    norms: each part's weight, or empty. tables: cosines and sines [tokens, half], or None.
    """

    parts: tuple[ir.Value, ...]
    heads: int
    head_dim: int
    norms: tuple[ir.Value, ...] = ()
    epsilon: float = 0.0
    tables: tuple[ir.Value, ir.Value] | None = None


class _Unmatched(Exception):
    """Why a node stays."""


def fuse_attention(model: ir.Model) -> None:
    """Rules: (1) an Attention whose queries, keys and values are views [batch, heads, tokens, head_dim] of
    [batch, tokens, width], and whose result is viewed back, becomes FusedAttention; its mask may be none, causal
    (`attention_mask`), or a bias of one row: FusedAttentionBias; (2) queries and keys normalised per head (RMS) and then
    turned by the rotary tables: FusedAttentionNormRotary; (3) the same in two parts along the tokens, joined before and
    parted again behind: FusedAttention2NormRotary; (4) the scale is given as a number."""
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain != "":
            continue
        try:
            made, results = _fused(node)
        except _Unmatched as reason:
            leave(node, str(reason))
            continue
        put(model.graph, made, *results)


def _fused(node: ir.Node) -> tuple[ir.Node, tuple[ir.Value, ...]]:
    """The op and the values that it makes. Raises _Unmatched."""
    q, k, v = (_operand(value, name) for value, name in zip(node.inputs[:3], ("queries", "keys", "values"), strict=True))
    if any(o is not None for o in node.outputs[1:]) or any(i is not None for i in node.inputs[4:]):
        raise _Unmatched("keeps keys and values, or gives more than one result")
    if node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0:
        raise _Unmatched("caps its scores")
    if not (q.heads == k.heads == v.heads and q.head_dim == k.head_dim == v.head_dim) or q.head_dim > MAX_HEAD_DIM:
        raise _Unmatched(
            f"heads × head_dim are {q.heads} × {q.head_dim}, {k.heads} × {k.head_dim}, {v.heads} × {v.head_dim}; "
            f"FusedAttention takes equal ones up to {MAX_HEAD_DIM} wide"
        )
    if v.norms or v.tables:
        raise _Unmatched("its values are normalised or turned")
    mask = read_mask(node)
    if mask.reason:
        raise _Unmatched(mask.reason)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1.0 / math.sqrt(q.head_dim)
    attributes: dict[str, int | float] = {"num_heads": q.heads, "scale": scale}
    parts = len(q.parts)
    form = (parts, len(k.parts), len(v.parts), bool(q.norms), bool(k.norms), q.tables is not None)
    if form == (1, 1, 1, False, False, False) and k.tables is None:
        result = _viewed_back(node.outputs[0], q)
        inputs = [q.parts[0], k.parts[0], v.parts[0]]
        if mask.bias is not None:
            return our_node("FusedAttentionBias", [*inputs, mask.bias], attributes), (result,)
        return our_node("FusedAttention", inputs, {**attributes, "causal": int(mask.causal)}), (result,)
    plain = not mask.causal and mask.bias is None
    if form not in ((1, 1, 1, True, True, True), (2, 2, 2, True, True, True)) or not plain:
        raise _Unmatched(
            f"no signature for {parts} part(s) along the tokens, norm: {bool(q.norms)}, rotary: {q.tables is not None}, "
            f"{'no mask' if plain else 'a mask'}"
        )
    tables = q.tables
    if tables is None or tables != k.tables or q.epsilon != k.epsilon:
        raise _Unmatched("queries and keys differ in their rotary tables or in epsilon")
    attributes["epsilon"] = q.epsilon
    result = _viewed_back(node.outputs[0], q)
    if parts == 1:
        inputs = [q.parts[0], k.parts[0], v.parts[0], q.norms[0], k.norms[0], *tables]
        return our_node("FusedAttentionNormRotary", inputs, attributes), (result,)
    parted = _parted(result, q)
    inputs = [q.parts[0], k.parts[0], v.parts[0], q.parts[1], k.parts[1], v.parts[1]]
    norms = [q.norms[0], k.norms[0], q.norms[1], k.norms[1]]
    return our_node("FusedAttention2NormRotary", [*inputs, *norms, *tables], attributes, outputs=2), parted


def _operand(value: ir.Value | None, name: str) -> _Operand:
    """Look through the views before an Attention's input. Raises _Unmatched."""
    moved = made_by(value, "Transpose")
    inner = None if moved is None else moved.inputs[0]
    shape = dims(inner)
    if moved is None or inner is None or shape is None or len(shape) != 4 or not _swaps(moved):
        raise _Unmatched(f"its {name} are no view of [batch, tokens, width]")
    heads, head_dim = shape[2:]
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        raise _Unmatched(f"its {name} have no fixed number of heads")
    tables = None
    rows = _view(inner, heads, head_dim)
    turned = made_by(rows, "RotaryEmbedding")
    if turned is not None:
        inner, tables = _turned(turned, heads, head_dim, name)
    joined = made_by(inner, "Concat")
    pieces = list(joined.inputs) if joined is not None and joined.attributes["axis"].as_int() == 1 else [inner]
    parts: list[ir.Value] = []
    norms: list[ir.Value] = []
    epsilons = set()
    for piece in pieces:
        norm = made_by(piece, "RMSNormalization")
        if norm is not None and norm.inputs[1] is not None and _per_head(norm) and dims(norm.inputs[1]) == [head_dim]:
            norms.append(norm.inputs[1])
            epsilons.add(norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5)
            piece = norm.inputs[0]
        part = _view(piece, heads, head_dim)
        if part is None:
            raise _Unmatched(f"its {name} are no view of [batch, tokens, width]")
        parts.append(part)
    if norms and (len(norms) != len(parts) or len(epsilons) != 1):
        raise _Unmatched(f"the parts of its {name} are not normalised alike")
    return _Operand(tuple(parts), heads, head_dim, tuple(norms), epsilons.pop() if epsilons else 0.0, tables)


def _swaps(node: ir.Node) -> bool:
    return list(node.attributes["perm"].as_ints()) == [0, 2, 1, 3]


def _view(value: ir.Value | None, heads: int, head_dim: int) -> ir.Value | None:
    """x [batch, tokens, width] where `value` is a view of it as [batch, tokens, heads, head_dim]."""
    reshape = made_by(value, "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    whole, split = dims(source), dims(value)
    if whole is None or split is None or len(whole) != 3 or None in whole[:2]:
        return None
    return source if split == [*whole[:2], heads, head_dim] and whole[2] == heads * head_dim else None


def _per_head(norm: ir.Node) -> bool:
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    stash = norm.attributes["stash_type"].as_int() if "stash_type" in norm.attributes else 1
    shape = dims(norm.inputs[0])
    return shape is not None and len(shape) == 4 and axis in (-1, 3) and stash == 1


def _turned(node: ir.Node, heads: int, head_dim: int, name: str) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
    """What a RotaryEmbedding turns, [batch, tokens, heads, head_dim], and its tables [tokens, half]."""
    back = made_by(node.inputs[0], "Reshape")
    source = None if back is None else back.inputs[0]
    shape, rows = dims(source), dims(node.inputs[0])
    tables: list[ir.Value] = []
    for value in node.inputs[1:3]:
        spread = made_by(value, "Expand")
        table = None if spread is None else spread.inputs[0]
        if table is not None and len(dims(table) or ()) == 2 and (dims(table) or [])[1] == head_dim // 2:
            tables.append(table)
    interleaved = "interleaved" in node.attributes and node.attributes["interleaved"].as_int() == 1
    if source is None or shape is None or rows != [*shape[:2], heads * head_dim] or len(tables) != 2 or not interleaved:
        raise _Unmatched(f"the rotary embedding of its {name} is not of interleaved pairs by tables [tokens, head_dim / 2]")
    return source, (tables[0], tables[1])


def _viewed_back(value: ir.Value, q: _Operand) -> ir.Value:
    """The one reader's result [batch, tokens, width] of an Attention's output. Raises _Unmatched."""
    moved = _reader(value)
    if (
        moved is not None
        and moved.op_type == "Reshape"
        and dims(moved.outputs[0]) == dims(value)
        and None not in (dims(value) or ())
    ):
        moved = _reader(moved.outputs[0])  # a view as what it is
    if moved is None or moved.op_type != "Transpose" or not _swaps(moved):
        raise _Unmatched("its result is not viewed back as [batch, tokens, width]")
    flat = _reader(moved.outputs[0])
    before, after = dims(moved.outputs[0]), None if flat is None else dims(flat.outputs[0])
    if flat is None or flat.op_type != "Reshape" or before is None or after != [*before[:2], q.heads * q.head_dim]:
        raise _Unmatched("its result is not viewed back as [batch, tokens, width]")
    return flat.outputs[0]


def _reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`."""
    return next(iter(value.uses())).node if is_alone(value) else None


def _parted(value: ir.Value, q: _Operand) -> tuple[ir.Value, ir.Value]:
    """The two parts that the one reader of `value` makes, as long as the parts of the queries. Raises _Unmatched."""
    split = _reader(value)
    if split is not None and split.op_type == "Split" and split.attributes["axis"].as_int() == 1 and len(split.outputs) == 2:
        first, second = split.outputs
        lengths = [(dims(v) or [None, None])[1] for v in (first, second)]
        if None not in lengths and lengths == [(dims(part) or [None, None])[1] for part in q.parts]:
            return first, second
    raise _Unmatched("its result is not parted along the tokens as its queries were")
