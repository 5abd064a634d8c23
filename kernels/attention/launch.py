"""How FusedAttention runs on a GPU: the keys normalised and turned once, then one launch over tiles of queries.

Head width, scale and epsilon are compiled in: the rows below are those of the families in the tree.
"""

from __future__ import annotations

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Integer, Kernel, Launch, Pointer, Program, Scratch, as_float32
from vitrify.kernels.qk_norm_rope.launch import EPSILON, HEAD_DIMS, NORM_ROPE

__all__ = ["PROGRAMS"]

_HEAD_DIM = "width / num_heads"


def _constants(head_dim: int, scale: float | None = None) -> dict[str, int | float]:
    return {"HEAD_DIM": head_dim, "SCALE": as_float32(head_dim**-0.5 if scale is None else scale)}


_PLAIN = tuple({**_constants(head_dim), "CAUSAL": 0} for head_dim in (32, 64, 96, 128, 512))
_CAUSAL = tuple({**_constants(head_dim), "CAUSAL": 1} for head_dim in (32, 64))
_BIASED = tuple(_constants(head_dim, 1.0) for head_dim in (32, 64))
_NORMED = tuple({**_constants(head_dim), "EPSILON": EPSILON} for head_dim in HEAD_DIMS)


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
    parameters=(*_in("q_0", "k", "v_0"), _TOKENS, _KEYS, _WIDTH, *_out("out_0")),
    sizes=("batch", "heads"),
    options={"EPSILON": 0.0},
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
    parameters=(*_in("q_0", "k", "v_0"), *_float32("bias"), _TOKENS, _KEYS, _WIDTH, *_out("out_0")),
    sizes=("batch", "heads"),
    options={"EPSILON": 0.0, "CAUSAL": 0},
    variants=_BIASED,
    grid=("cdiv(tokens_0, BLOCK_M)", "heads", "batch"),
    flops="4 * batch * tokens_0 * keys * width",
    moved_bytes="itemsize * batch * width * 2 * (tokens_0 + keys) + 4 * heads * tokens_0 * keys",
    tensor_core=True,
)
_NORM_ROTARY = Kernel(
    name="attention_norm_rotary",
    function=_FUNCTION,
    tiles="attention",
    parameters=(
        *_in("q_0", "k", "v_0"),
        *_float32("q_norm_0", "cos", "sin"),
        _TOKENS,
        _KEYS,
        _WIDTH,
        *_out("out_0"),
    ),
    sizes=("batch", "heads"),
    options={"CAUSAL": 0},
    variants=_NORMED,
    grid=("cdiv(tokens_0, BLOCK_M)", "heads", "batch"),
    flops="4 * batch * tokens_0 * keys * width",
    moved_bytes="itemsize * batch * width * 2 * (tokens_0 + keys) + 4 * tokens_0 * width / heads",
    tensor_core=True,
)
_2_NORM_ROTARY = Kernel(
    name="attention_2_norm_rotary",
    function=_FUNCTION,
    tiles="attention",
    parameters=(
        *_in("q_0", "q_1", "k", "v_0", "v_1"),
        *_float32("q_norm_0", "q_norm_1", "cos", "sin"),
        _TOKENS,
        Integer("tokens_1"),
        _WIDTH,
        *_out("out_0", "out_1"),
    ),
    sizes=("batch", "heads"),
    options={"CAUSAL": 0},
    variants=_NORMED,
    grid=("cdiv(tokens_0, BLOCK_M) + cdiv(tokens_1, BLOCK_M)", "heads", "batch"),
    flops="4 * batch * (tokens_0 + tokens_1) * (tokens_0 + tokens_1) * width",
    moved_bytes="itemsize * batch * width * 4 * (tokens_0 + tokens_1) + 4 * (tokens_0 + tokens_1) * width / heads",
    tensor_core=True,
)

_ONE_PART = {"q_0": "q", "v_0": "v", "out_0": "out", "tokens_0": "tokens", "heads": "num_heads"}
_PICK = {"HEAD_DIM": _HEAD_DIM, "SCALE": "scale"}
_PICK_NORM = {"HEAD_DIM": _HEAD_DIM, "EPSILON": "epsilon"}


def _turned_keys(k: str, norm: str, tokens: str, all_tokens: str, before: str) -> Launch:
    """The keys of one part into their rows of the scratch buffer `turned`."""
    arguments = {"x": k, "norm": norm, "y": "turned", "tokens": tokens, "all_tokens": all_tokens, "before": before}
    return Launch(NORM_ROPE, {**arguments, "heads": "num_heads"}, _PICK_NORM)


PROGRAMS = (
    Program(op="FusedAttention", version=1, launches=(Launch(_SELF, _ONE_PART, {**_PICK, "CAUSAL": "causal"}),)),
    Program(op="FusedAttentionBias", version=1, launches=(Launch(_WITH_BIAS, {**_ONE_PART, "heads": "num_heads"}, _PICK),)),
    Program(
        op="FusedAttentionNormRotary",
        version=1,
        scratch=(Scratch("turned", ACTIVATION, "batch * tokens * width"),),
        launches=(
            _turned_keys("k", "k_norm", "tokens", "tokens", "0"),
            Launch(
                _NORM_ROTARY,
                {**_ONE_PART, "k": "turned", "keys": "tokens", "q_norm_0": "q_norm"},
                {**_PICK, "EPSILON": "epsilon"},
            ),
        ),
    ),
    Program(
        op="FusedAttention2NormRotary",
        version=1,
        scratch=(Scratch("turned", ACTIVATION, "batch * (tokens_0 + tokens_1) * width"),),
        launches=(
            _turned_keys("k_0", "k_norm_0", "tokens_0", "tokens_0 + tokens_1", "0"),
            _turned_keys("k_1", "k_norm_1", "tokens_1", "tokens_0 + tokens_1", "tokens_0"),
            Launch(_2_NORM_ROTARY, {"k": "turned", "heads": "num_heads"}, {**_PICK, "EPSILON": "epsilon"}),
        ),
    ),
)
