"""How QkNormRope runs on a GPU: one launch; FusedAttention runs the same kernel over its queries and keys."""

from __future__ import annotations

from dataclasses import replace

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import ACTIVATION, Condition, Integer, Kernel, Launch, Pointer, Program, as_float32

__all__ = ["EPSILON", "HEADS_FIT", "HEAD_DIMS", "NORM_ROPE", "PROGRAMS", "QUERY_NORM_ROPE"]

HEAD_DIMS = (32, 128)
"""Of the transformers in the tree: the sample's and FLUX.1's."""

EPSILON = as_float32(1e-6)

NORM_ROPE = Kernel(
    name="qk_norm_rope",
    function="vitrify.kernels.qk_norm_rope.kernel:qk_norm_rope",
    tiles="qk_norm_rope",
    parameters=(
        Pointer("x", ACTIVATION),
        Pointer("norm", DType.FLOAT32),
        Pointer("cos", DType.FLOAT32),
        Pointer("sin", DType.FLOAT32),
        Integer("tokens"),
        Integer("width", divisible_by=16),
        Integer("all_tokens"),
        Integer("before"),
        Pointer("y", ACTIVATION, written=True),
    ),
    sizes=("batch", "heads"),
    variants=tuple({"HEAD_DIM": head_dim, "EPSILON": EPSILON} for head_dim in HEAD_DIMS),
    grid=("cdiv(tokens, BLOCK_T)", "heads", "batch"),
    flops="10 * batch * tokens * width",
    moved_bytes="2 * itemsize * batch * tokens * width + 4 * tokens * width / heads",
)

QUERY_NORM_ROPE = replace(
    NORM_ROPE,
    name="query_norm_rope",
    variants=tuple({**constants, "SCALE": as_float32(int(constants["HEAD_DIM"]) ** -0.5)} for constants in NORM_ROPE.variants),
)
"""The same for an attention's queries, which it scales as well."""

HEADS_FIT = (Condition("head_dim", "=", "width / num_heads"), Condition("2 * half", "=", "head_dim"))
"""The norm's weights and the rotary tables are those of one head."""

PROGRAMS = (
    Program(
        op="QkNormRope",
        version=1,
        conditions=HEADS_FIT,
        launches=(
            Launch(
                NORM_ROPE,
                {"all_tokens": "tokens", "before": "0", "heads": "num_heads"},
                {"HEAD_DIM": "width / num_heads", "EPSILON": "epsilon"},
            ),
        ),
    ),
)
