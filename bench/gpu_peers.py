"""What PyTorch offers for the work of each op of ours on a GPU: the peers of `vitrify bench gpu`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["PEERS"]

Tensors = Mapping[str, torch.Tensor]
Attributes = Mapping[str, Any]
Call = Callable[[], object]


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attributes: Attributes, bias: torch.Tensor | None = None) -> Call:
    causal = bool(attributes.get("causal"))
    return lambda: functional.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=attributes["scale"])


def _with(backend: SDPBackend, call: Call) -> Call:
    def run() -> object:
        with sdpa_kernel(backend):
            return call()

    return run


_BACKENDS = {
    "SDPA, flash": SDPBackend.FLASH_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA, efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _backends(call: Call, suffix: str = "") -> dict[str, Call]:
    return {f"{name}{suffix}": _with(backend, call) for name, backend in _BACKENDS.items()}


def _attention(given: Tensors, attributes: Attributes) -> dict[str, Call]:
    q, k, v = (_split(given[name], attributes["num_heads"]) for name in ("q", "k", "v"))
    bias = given["bias"].to(q.dtype) if "bias" in given else None
    return _backends(_sdpa(q, k, v, attributes, bias))


def _norm_rotary(given: Tensors, attributes: Attributes) -> dict[str, Call]:
    """The attention alone, its norms and rotations done before; and with them, op by op, as PyTorch runs FLUX uncompiled."""
    heads, epsilon = attributes["num_heads"], attributes["epsilon"]

    def turned(x: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        x = functional.rms_norm(_split(x, heads), norm.shape, norm.to(x.dtype), epsilon)
        return _rope(x, given["cos"], given["sin"])

    def prepared() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return turned(given["q"], given["q_norm"]), turned(given["k"], given["k_norm"]), _split(given["v"], heads)

    def whole() -> object:
        return functional.scaled_dot_product_attention(*prepared(), scale=attributes["scale"])

    return {**_backends(_sdpa(*prepared(), attributes), ", attention alone"), **_backends(whole, ", op by op")}


def _two_norm_rotary(given: Tensors, attributes: Attributes) -> dict[str, Call]:
    heads, epsilon = attributes["num_heads"], attributes["epsilon"]

    def prepared() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
        for part in ("0", "1"):
            for name, found in parts.items():
                x = _split(given[f"{name}_{part}"], heads)
                if name != "v":
                    norm = given[f"{name}_norm_{part}"]
                    x = functional.rms_norm(x, norm.shape, norm.to(x.dtype), epsilon)
                found.append(x)
        q, k, v = (torch.cat(found, dim=2) for found in parts.values())
        return _rope(q, given["cos"], given["sin"]), _rope(k, given["cos"], given["sin"]), v

    def whole() -> object:
        return functional.scaled_dot_product_attention(*prepared(), scale=attributes["scale"])

    return {**_backends(_sdpa(*prepared(), attributes), ", attention alone"), **_backends(whole, ", op by op")}


def _gate(given: Tensors, attributes: Attributes, width: int, like: torch.Tensor) -> torch.Tensor:
    at = attributes["gate_at"]
    return given["modulation"][:, None, at : at + width].to(like.dtype)


def _linear(given: Tensors, _attributes: Attributes) -> dict[str, Call]:
    x, weight = given["x"], given["weight"]
    bias = given["bias"].to(x.dtype)
    return {"linear": lambda: functional.linear(x, weight, bias)}


def _linear_gelu(given: Tensors, _attributes: Attributes) -> dict[str, Call]:
    x, weight = given["x"], given["weight"]
    bias = given["bias"].to(x.dtype)
    return {
        "linear with cuBLASLt's GELU": lambda: torch._addmm_activation(bias, x[0], weight.t(), use_gelu=True),
        "linear, gelu": lambda: functional.gelu(functional.linear(x, weight, bias), approximate="tanh"),
    }


def _linear_gated(given: Tensors, attributes: Attributes) -> dict[str, Call]:
    two = "x_1" in given
    weight, residual = given["weight"], given["residual"]
    bias = given["bias"].to(weight.dtype)
    gate = _gate(given, attributes, weight.shape[0], weight)
    x = torch.cat([given["x_0"], given["x_1"]], dim=2) if two else given["x"]
    found: dict[str, Call] = {
        "linear, gate and residual": lambda: torch.addcmul(residual, gate, functional.linear(x, weight, bias)),
        "linear alone": lambda: functional.linear(x, weight, bias),
    }
    if two:
        found["cat, linear, gate and residual"] = lambda: torch.addcmul(
            residual, gate, functional.linear(torch.cat([given["x_0"], given["x_1"]], dim=2), weight, bias)
        )
    return found


def _ada_layer_norm(given: Tensors, attributes: Attributes) -> dict[str, Call]:
    x, table, width = given["x"], given["modulation"], given["x"].shape[2]
    factor = table[:, None, attributes["factor_at"] :][..., :width].to(x.dtype)
    shift = table[:, None, attributes["shift_at"] :][..., :width].to(x.dtype)
    epsilon = attributes["epsilon"]
    return {"layer_norm, factor, shift": lambda: torch.addcmul(shift, functional.layer_norm(x, (width,), eps=epsilon), factor)}


def _gated_residual(given: Tensors, attributes: Attributes) -> dict[str, Call]:
    x, y = given["x"], given["y"]
    gate = _gate(given, attributes, x.shape[2], x)
    return {"addcmul": lambda: torch.addcmul(x, gate, y)}


def _residual_diff(given: Tensors, _attributes: Attributes) -> dict[str, Call]:
    h1, h0, r_ref = given["h1"], given["h0"], given["r_ref"]

    def run() -> object:
        r = h1 - h0
        return r, (r - r_ref).abs().sum((1, 2), dtype=torch.float32), r_ref.abs().sum((1, 2), dtype=torch.float32)

    return {"op by op": run}


PEERS: Mapping[str, Callable[[Tensors, Attributes], dict[str, Call]]] = {
    "AdaLayerNorm": _ada_layer_norm,
    "FusedAttention": _attention,
    "FusedAttentionBias": _attention,
    "FusedAttentionNormRotary": _norm_rotary,
    "FusedAttention2NormRotary": _two_norm_rotary,
    "GatedResidual": _gated_residual,
    "Linear": _linear,
    "LinearGelu": _linear_gelu,
    "LinearGatedResidual": _linear_gated,
    "Linear2GatedResidual": _linear_gated,
    "ResidualDiff": _residual_diff,
}
"""Op → inputs and attributes → what PyTorch calls it → the call. Ops that are not here have no peer but a copy."""
