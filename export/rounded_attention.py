"""Attention in bfloat16 in eager PyTorch: what the ops FusedAttention…Bf16 compute, in the place of a module's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitrify.kernels.attention.reference import rounded_attention

__all__ = ["attention_replaced", "in_bfloat16"]

Replace = Callable[[str, torch.Tensor, Callable[[], torch.Tensor]], torch.Tensor]
"""A module's name, what its attention gave, and what makes the same in bfloat16 → what the module gets."""


def in_bfloat16(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - in inference there is none
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001 - what shares keys among heads is no op of ours
) -> torch.Tensor:
    """As scaled_dot_product_attention, in the arithmetic of FusedAttention…Bf16. query: [batch, heads, tokens, head_dim]."""
    bias = attn_mask
    if is_causal:
        bias = torch.full((query.shape[-2], key.shape[-2]), -torch.inf).triu(1)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        bias = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -torch.inf)
    return rounded_attention(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, bias)


class _Attentions(TorchFunctionMode):
    """Hands every attention that is called while one of `inside` runs to `replace`."""

    def __init__(self, replace: Replace) -> None:
        super().__init__()
        self.inside: list[str] = []
        self._replace = replace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is not functional.scaled_dot_product_attention or not self.inside:
            return result
        return self._replace(self.inside[-1], result, lambda: in_bfloat16(*args, **kwargs))


@contextlib.contextmanager
def attention_replaced(module: nn.Module, names: Sequence[str], replace: Replace, prefix: str = "") -> Iterator[None]:
    """Inside, the attention of these modules of `module` is what `replace` makes of it. prefix: stands before the names."""
    mode = _Attentions(replace)

    def hooks(name: str) -> list[Any]:
        part = module.get_submodule(prefix + name)
        return [
            part.register_forward_pre_hook(lambda *_: mode.inside.append(name)),
            part.register_forward_hook(lambda *_: mode.inside.remove(name), always_call=True),
        ]

    made = [hook for name in names for hook in hooks(name)]
    try:
        with mode if names else contextlib.nullcontext():
            yield
    finally:
        for hook in made:
            hook.remove()
