"""How FusedAttention runs on a GPU: queries and keys normalised and turned, then one launch over tiles of queries.

Head width, scale and epsilon are compiled in: the rows below are those of the families in the tree.
"""

from __future__ import annotations

from dataclasses import replace

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Condition, Integer, Kernel, Launch, Pointer, Program, Scratch, as_float32
from vitrify.kernels.qk_norm_rope.launch import HEAD_DIMS, HEADS_FIT, NORM_ROPE, QUERY_NORM_ROPE

__all__ = ["PROGRAMS"]

_HEAD_DIM = "width / num_heads"


def _constants(head_dim: int, scale: float | None = None) -> dict[str, int | float]:
    return {"HEAD_DIM": head_dim, "SCALE": as_float32(head_dim**-0.5 if scale is None else scale)}


_PLAIN = tuple({**_constants(head_dim), "CAUSAL": 0} for head_dim in (32, 64, 96, 128, 512))
_CAUSAL = tuple({**_constants(head_dim), "CAUSAL": 1} for head_dim in (32, 64))
_BIASED = tuple(_constants(head_dim, 1.0) for head_dim in (32, 64))
_TURNED = tuple({"HEAD_DIM": head_dim} for head_dim in HEAD_DIMS)


def _in(*names: str) -> tuple[Pointer, ...]:
    return tuple(Pointer(name, ACTIVATION) for name in names)


def _float32(*names: str) -> tuple[Pointer, ...]:
    return tuple(Pointer(name, DType.FLOAT32) for name in names)


def _out(*names: str) -> tuple[Pointer, ...]:
    return tuple(Pointer(name, ACTIVATION, written=True) for name in names)


_FUNCTION = "vitrify.kernels.attention.kernel:attention"
_TOKENS, _KEYS, _WIDTH = Integer("tokens_0"), Integer("keys", least=1), Integer("width", 16)

_SELF = Kernel(
    name="attention",
    function=_FUNCTION,
    tiles="attention",
    parameters=(*_in("q", "k", "v_0"), _TOKENS, _KEYS, _WIDTH, *_out("out_0")),
    sizes=("batch", "heads"),
    variants=(*_PLAIN, *_CAUSAL),
    grid=("cdiv(tokens_0, BLOCK_M)", "heads", "batch"),
    flops="4 * batch * tokens_0 * keys * width / (1 + CAUSAL)",
    moved_bytes="itemsize * batch * width * 2 * (tokens_0 + keys)",
    tensor_core=True,
)
_WITH_BIAS = Kernel(
    name="attention_bias",
    function=_FUNCTION,
    tiles="attention_bias",
    parameters=(*_in("q", "k", "v_0"), *_float32("bias"), _TOKENS, _KEYS, _WIDTH, *_out("out_0")),
    sizes=("batch", "heads"),
    options={"CAUSAL": 0},
    variants=_BIASED,
    grid=("cdiv(tokens_0, BLOCK_M)", "heads", "batch"),
    flops="4 * batch * tokens_0 * keys * width",
    moved_bytes="itemsize * batch * width * 2 * (tokens_0 + keys) + 4 * heads * tokens_0 * keys",
    tensor_core=True,
)
_NORM_ROTARY = replace(_SELF, name="attention_norm_rotary", options={"CAUSAL": 0}, variants=_TURNED)
_2_NORM_ROTARY = Kernel(
    name="attention_2_norm_rotary",
    function=_FUNCTION,
    tiles="attention",
    parameters=(*_in("q", "k", "v_0", "v_1"), _TOKENS, Integer("tokens_1"), _WIDTH, *_out("out_0", "out_1")),
    sizes=("batch", "heads"),
    options={"CAUSAL": 0},
    variants=_TURNED,
    grid=("cdiv(tokens_0, BLOCK_M) + cdiv(tokens_1, BLOCK_M)", "heads", "batch"),
    flops="4 * batch * (tokens_0 + tokens_1) * (tokens_0 + tokens_1) * width",
    moved_bytes="itemsize * batch * width * 4 * (tokens_0 + tokens_1)",
    tensor_core=True,
)

_ONE_PART = {"v_0": "v", "out_0": "out", "tokens_0": "tokens", "heads": "num_heads"}
_PICK = {"HEAD_DIM": _HEAD_DIM, "SCALE": "scale"}
_PICK_NORM = {"HEAD_DIM": _HEAD_DIM, "EPSILON": "epsilon"}


def _turned(part: str, tokens: str, all_tokens: str, before: str) -> tuple[Launch, Launch]:
    """The queries and the keys of one part, "" or "_0" and so on, into their rows of the scratch buffers."""
    shared = {"tokens": tokens, "all_tokens": all_tokens, "before": before, "heads": "num_heads"}
    return (
        Launch(
            QUERY_NORM_ROPE,
            {"x": f"q{part}", "norm": f"q_norm{part}", "y": "turned_q", **shared},
            {**_PICK_NORM, "SCALE": "scale"},
        ),
        Launch(NORM_ROPE, {"x": f"k{part}", "norm": f"k_norm{part}", "y": "turned_k", **shared}, _PICK_NORM),
    )


def _scratch(tokens: str) -> tuple[Scratch, Scratch]:
    elements = f"batch * {tokens} * width"
    return Scratch("turned_q", ACTIVATION, elements), Scratch("turned_k", ACTIVATION, elements)


_FROM_TURNED = {"q": "turned_q", "k": "turned_k"}
_ALL = "(tokens_0 + tokens_1)"

PROGRAMS = (
    Program(op="FusedAttention", version=1, launches=(Launch(_SELF, _ONE_PART, {**_PICK, "CAUSAL": "causal"}),)),
    Program(
        op="FusedAttentionBias",
        version=1,
        launches=(Launch(_WITH_BIAS, {**_ONE_PART, "heads": "num_heads"}, _PICK),),
        conditions=(Condition("heads", "=", "num_heads"),),
    ),
    Program(
        op="FusedAttentionNormRotary",
        version=1,
        scratch=_scratch("tokens"),
        conditions=HEADS_FIT,
        launches=(
            *_turned("", "tokens", "tokens", "0"),
            Launch(_NORM_ROTARY, {**_ONE_PART, **_FROM_TURNED, "keys": "tokens"}, {"HEAD_DIM": _HEAD_DIM}),
        ),
    ),
    Program(
        op="FusedAttention2NormRotary",
        version=1,
        scratch=_scratch(_ALL),
        conditions=HEADS_FIT,
        launches=(
            *_turned("_0", "tokens_0", _ALL, "0"),
            *_turned("_1", "tokens_1", _ALL, "tokens_0"),
            Launch(_2_NORM_ROTARY, {**_FROM_TURNED, "heads": "num_heads"}, {"HEAD_DIM": _HEAD_DIM}),
        ),
    ),
)
