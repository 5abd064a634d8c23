"""What the Conv2d family computes, in PyTorch.

The products are formed in the dtype of x; where the op says so, both factors are rounded to bfloat16 before, whatever that is.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

__all__ = ["REFERENCES"]

_Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x: [batch, in, height, width], weight: [out, in, kernel, kernel], bias: [out] → y: [batch, out, height, width]."""


def _float32(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x, weight.to(x.dtype), bias, padding="same")


def _bf16(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x.bfloat16().to(x.dtype), weight.bfloat16().to(x.dtype), bias, padding="same")


def _norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    return functional.silu(functional.group_norm(x, groups, weight, bias, epsilon))


def _family(conv: _Product) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (conv(x, weight, bias),)

    def residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> tuple[Tensor]:
        return (residual + conv(x, weight, bias),)

    def norm(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, *rest: Tensor, groups: int, epsilon: float) -> tuple[Tensor]:
        """rest: weight, bias, and the residual if there is one."""
        active = _norm_silu(x, norm_weight, norm_bias, groups, epsilon)
        return (conv(active, *rest[:2]) + rest[2] if len(rest) > 2 else conv(active, *rest),)

    def upsample(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias),)

    return {
        "Conv2d": conv2d,
        "Conv2dResidual": residual,
        "GroupNormSiluConv2d": norm,
        "GroupNormSiluConv2dResidual": norm,
        "UpsampleConv2d": upsample,
    }


REFERENCES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name + suffix: function
    for suffix, product in {"": _float32, "Bf16": _bf16}.items()
    for name, function in _family(product).items()
}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
