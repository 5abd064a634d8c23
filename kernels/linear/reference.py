"""What the Linear family computes, in PyTorch.

The product is formed in the dtype of x. What is rounded before it is rounded as the contract says, whatever that dtype is:
to bfloat16, or to int8 by a scale that float32 arithmetic finds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

__all__ = ["REFERENCES"]

Tensor = torch.Tensor
_Product = Callable[..., Tensor]
"""x: [batch, tokens, in] and what the weight consists of, [out, in] first → x · weightᵀ."""


def _float32(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x, weight.to(x.dtype))


def _bf16(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x.bfloat16().to(x.dtype), weight.bfloat16().to(x.dtype))


def _int8(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """Each token times 127 ÷ its largest magnitude (1e-30 at least: zeros stay zeros), to the nearest integer, ties to even."""
    single = x.float()
    largest = single.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    quantised = torch.round(single * (127 / largest)).to(x.dtype)
    return functional.linear(quantised, weight.to(x.dtype)) * (largest / 127).to(x.dtype) * weight_scale.to(x.dtype)


# Suffix of the op's name → the product, and of how many inputs the weight consists.
_PRODUCTS: dict[str, tuple[_Product, int]] = {"": (_float32, 1), "Bf16": (_bf16, 1), "Int8": (_int8, 2)}


def _family(product: _Product, parts: int) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    def linear(x: Tensor, *rest: Tensor) -> tuple[Tensor]:
        """rest: the weight's parts, then the bias if there is one."""
        y = product(x, *rest[:parts])
        return (y + rest[parts] if len(rest) > parts else y,)

    def gelu(x: Tensor, *rest: Tensor) -> tuple[Tensor]:
        return (functional.gelu(linear(x, *rest)[0], approximate="tanh"),)

    def gated_residual(x: Tensor, *rest: Tensor, gate_at: int) -> tuple[Tensor]:
        """rest: the weight's parts, bias, modulation: [batch, columns], residual: [batch, tokens, out]."""
        *layer, modulation, residual = rest
        gate = modulation[:, None, gate_at : gate_at + residual.shape[-1]]
        return (residual + gate * linear(x, *layer)[0],)

    def gated_residual_2(x_0: Tensor, x_1: Tensor, *rest: Tensor, gate_at: int) -> tuple[Tensor]:
        return gated_residual(torch.cat((x_0, x_1), dim=-1), *rest, gate_at=gate_at)

    return {
        "Linear": linear,
        "LinearNoBias": linear,
        "LinearGelu": gelu,
        "LinearGatedResidual": gated_residual,
        "Linear2GatedResidual": gated_residual_2,
    }


REFERENCES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name + precision: function
    for precision, (product, parts) in _PRODUCTS.items()
    for name, function in _family(product, parts).items()
}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
