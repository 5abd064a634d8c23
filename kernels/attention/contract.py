"""FusedAttention as data: one row per signature, for a function body cannot ask whether an input is there; each in two
precisions."""

from __future__ import annotations

from collections.abc import Mapping

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import TensorSpec
from vitrify.kernels.op import Attribute, OpContract

__all__ = ["CONTRACTS", "MAX_HEAD_DIM"]

MAX_HEAD_DIM = 512
"""The widest head that the kernels take: the one head of FLUX's VAE."""

_NUM_HEADS = Attribute("num_heads", int, None, "heads along the width; head_dim = width / num_heads")
_SCALE = Attribute("scale", float, None, "factor of q·k, above 0; 1 / sqrt(head_dim) must be given as the number")
_CAUSAL = Attribute("causal", int, None, "1: token i sees the keys 0..i alone; 0: all")
_EPSILON = Attribute("epsilon", float, None, "added to the mean square before the root")

# Suffix of the op's name → what its arithmetic is, and the tolerances. Where a factor is rounded to bfloat16, what float32
# arithmetic did before it may turn the rounding the other way, by one part in 256, and does so in a few of ten thousand.
_PRECISIONS = {
    "": ("in float32", {DType.FLOAT32: 5e-6, DType.FLOAT16: 2e-3, DType.BFLOAT16: 1e-2}),
    "Bf16": ("of factors rounded to bfloat16, sums in float32", {DType.FLOAT32: 5e-4}),
}
_AWKWARD: Mapping[str, tuple[int, ...]] = {
    "batch": (1, 2),
    "tokens": (1, 63, 123, 1025),
    "keys": (1, 63, 123, 1025),
    "tokens_0": (1, 16, 63),
    "tokens_1": (1, 123, 1025),
    "width": (64, 128, 512),
    "heads": (1, 2),
    "head_dim": (31, 32, 33, 64, 96, 128, 512),
    "half": (16, 32, 48, 64, 256),
    "columns": (512,),
}


def _hidden(tokens: str, *names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, DType.FLOAT32, ("batch", tokens, "width")) for name in names)


def _vectors(size: str, *names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, DType.FLOAT32, (size,)) for name in names)


def _tables(tokens: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, DType.FLOAT32, (tokens, "half")) for name in ("cos", "sin"))


_ROWS: tuple[tuple[str, str, tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[Attribute, ...]], ...] = (
    (
        "FusedAttention",
        "softmax(scale · q kᵀ) v, heads along the width",
        (*_hidden("tokens", "q"), *_hidden("keys", "k", "v")),
        _hidden("tokens", "out"),
        (_CAUSAL,),
    ),
    (
        "FusedAttentionBias",
        "softmax(scale · q kᵀ + bias) v; the bias is T5's, one for the whole batch",
        (
            *_hidden("tokens", "q"),
            *_hidden("keys", "k", "v"),
            TensorSpec("bias", DType.FLOAT32, (1, "heads", "tokens", "keys")),
        ),
        _hidden("tokens", "out"),
        (),
    ),
    (
        "FusedAttentionNormRotary",
        "self-attention; q and k are normalised per head (RMS) and turned by the rotary tables",
        (*_hidden("tokens", "q", "k", "v"), *_vectors("head_dim", "q_norm", "k_norm"), *_tables("tokens")),
        _hidden("tokens", "out"),
        (_EPSILON,),
    ),
    (
        "FusedAttention2NormRotary",
        "the same over two parts of the tokens, each with its own norm weights: part 0 (text), then part 1 (image)",
        (
            *_hidden("tokens_0", "q_0", "k_0", "v_0"),
            *_hidden("tokens_1", "q_1", "k_1", "v_1"),
            *_vectors("head_dim", "q_norm_0", "k_norm_0", "q_norm_1", "k_norm_1"),
            *_tables("tokens_0 + tokens_1"),
        ),
        (*_hidden("tokens_0", "out_0"), *_hidden("tokens_1", "out_1")),
        (_EPSILON,),
    ),
)


def _contract(
    name: str,
    summary: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    attributes: tuple[Attribute, ...],
    precision: str,
) -> OpContract:
    dims = {term for tensor in inputs for dim in tensor.shape if isinstance(dim, str) for term in dim.split(" + ")}
    products, tolerances = _PRECISIONS[precision]
    return OpContract(
        name=name + precision,
        version=1,
        summary=f"{summary}; products {products}",
        inputs=inputs,
        outputs=outputs,
        tolerances=tolerances,
        awkward={dim: sizes for dim, sizes in _AWKWARD.items() if dim in dims},
        attributes=(_NUM_HEADS, _SCALE, *attributes),
    )


CONTRACTS = tuple(_contract(*row, precision) for precision in _PRECISIONS for row in _ROWS)
"""In every signature width = num_heads · head_dim, heads = num_heads and half = head_dim / 2."""
