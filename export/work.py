"""Which ONNX ops are work: what fusion looks at, and what the loop must not repeat for nothing."""

from __future__ import annotations

__all__ = ["NORMS", "PRODUCTS_AND_ACTIVATIONS"]

PRODUCTS_AND_ACTIVATIONS = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "Elu",
        "Erf",
        "Gelu",
        "Gemm",
        "MatMul",
        "Relu",
        "Sigmoid",
        "Softmax",
        "Swish",
        "Tanh",
    }
)
NORMS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"})
"""What moves, views, turns or adds element by element is in neither."""
