"""What a kernel asks of a card: bytes, FLOPs, resident warps, the time below which it cannot run. Estimates, not measurements.

The time is a roofline: the larger of FLOPs ÷ peak and bytes ÷ bandwidth, with every tensor read or written once.
S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52 (4), 2009. Occupancy follows the CUDA programming guide's limits:
registers (in units of 256 per warp), shared memory (1 KiB reserved per block), threads and blocks of a multiprocessor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitrify.engine.cubins import CubinManifest, GpuKernel, Image
from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.expressions import evaluate
from vitrify.kernels.aot.targets import CARDS, Card

__all__ = ["SIZES", "Estimate", "estimate", "occupancy", "rows", "table"]

_Sizes = dict[str, int | str]
_HIDDEN: _Sizes = {"batch": 1, "tokens": 4096, "width": 3072, "columns": 18432}
_ROW: _Sizes = {**_HIDDEN, "width": "min(BLOCK, 3072)"}
_HEADS: _Sizes = {"batch": 1, "width": 3072, "heads": "3072 / HEAD_DIM"}
_JOINT: _Sizes = {**_HEADS, "tokens_0": 4608, "keys": 4608}
_LINEAR: _Sizes = {"batch": 1, "tokens": 4096, "in_0": 3072, "out": 12288, "columns": 18432}

SIZES: Mapping[str, Mapping[str, int | str]] = {
    "ada_layer_norm": _ROW,
    "ada_rms_norm": _ROW,
    "attention": _JOINT,
    "attention_2_norm_rotary": {**_HEADS, "tokens_0": 512, "tokens_1": 4096},
    "attention_bias": {**_HEADS, "tokens_0": 512, "keys": 512},
    "attention_norm_rotary": _JOINT,
    "gated_residual": _HIDDEN,
    "linear": _LINEAR,
    "linear_2_gated_residual": {**_LINEAR, "tokens": 4608, "in_1": 12288, "out": 3072},
    "linear_gated_residual": {**_LINEAR, "in_0": 12288, "out": 3072},
    "linear_gelu": _LINEAR,
    "linear_no_bias": _LINEAR,
    "qk_norm_rope": {**_HEADS, "tokens": 4096},
    "query_norm_rope": {**_HEADS, "tokens": 4096},
    "residual_diff": {"batch": 1, "row": 4096 * 3072},
    "residual_diff_total": {"batch": 1, "pieces": 4096 * 3072 // 8192},
    "taylor_predict_1": {"elements": 4096 * 3072},
    "taylor_predict_2": {"elements": 4096 * 3072},
    "taylor_update_1": {"elements": 4096 * 3072},
    "taylor_update_2": {"elements": 4096 * 3072},
}
"""Kernel → the sizes that estimates are made for, numbers or expressions over its constants: a step of FLUX.1-dev at
1024 × 1024, 4096 image and 512 text tokens; variants for other widths are asked the same work in heads or rows of theirs."""

_TF32_PRODUCTS = 2 * 3
"""float32 on tensor cores: three products in TF32, which runs at half the speed of float16."""

_REGISTER_UNIT = 256
_RESERVED_SHARED = 1024


@dataclass(frozen=True)
class Estimate:
    """One variant on one card. occupancy: resident warps ÷ the multiprocessor's limit. bound: "memory", "tensor" or "vector"."""

    kernel: str
    variant: str
    card: str
    arch: str
    registers: int
    shared_bytes: int
    num_warps: int
    occupancy: float
    flops: int
    moved_bytes: int
    time_us: float
    bound: str


def estimate(kernel: GpuKernel, name: str, variant: str, card: Card, sizes: Mapping[str, int | str]) -> Estimate | None:
    """The estimate of one variant, or None if it was not built for the card. sizes: the kernel's int32 arguments and sizes."""
    spec = kernel.variants[variant]
    image = spec.images.get(card.arch)
    if image is None or image.registers is None:
        return None
    whole = {key: value for key, value in spec.constants.items() if isinstance(value, int)}
    dtype = DType.from_name(spec.dtype)
    asked = {key: evaluate(size, whole) if isinstance(size, str) else size for key, size in sizes.items()}
    values = {**whole, **image.tile, **asked, "itemsize": dtype.itemsize}
    flops, moved = evaluate(kernel.flops, values), evaluate(kernel.moved_bytes, values)
    on_tensor_cores = bool(image.tensor_core_instructions)
    tensor_flops = card.tensor_flops / (_TF32_PRODUCTS if dtype == DType.FLOAT32 else 1)
    compute = flops / (tensor_flops if on_tensor_cores else card.vector_flops)
    memory = moved / card.bandwidth
    return Estimate(
        kernel=name,
        variant=variant,
        card=card.name,
        arch=card.arch,
        registers=image.registers,
        shared_bytes=image.shared_bytes,
        num_warps=image.num_warps,
        occupancy=occupancy(image, card),
        flops=flops,
        moved_bytes=moved,
        time_us=max(compute, memory) * 1e6,
        bound="memory" if memory >= compute else "tensor" if on_tensor_cores else "vector",
    )


def occupancy(image: Image, card: Card) -> float:
    """Warps that can be resident on a multiprocessor at once ÷ the most that it holds."""
    assert image.registers is not None, f"{image.file}: PTX has no registers"
    per_warp = -(-image.registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = card.registers // per_warp // image.num_warps
    by_shared = card.shared_bytes // (image.shared_bytes + _RESERVED_SHARED)
    by_threads = card.threads // (32 * image.num_warps)
    blocks = min(by_registers, by_shared, by_threads, card.blocks)
    return blocks * image.num_warps * 32 / card.threads


def rows(manifest: CubinManifest) -> list[Estimate]:
    """All variants on all cards, in the manifest's order."""
    found = []
    for name, kernel in sorted(manifest.kernels.items()):
        for variant in sorted(kernel.variants):
            estimates = (estimate(kernel, name, variant, card, SIZES[name]) for card in CARDS)
            found += [row for row in estimates if row is not None]
    return found


def table(manifest: CubinManifest, found: list[Estimate]) -> str:
    """The rows as text, a line each, with what they are said first."""
    lines = [
        f"{manifest.compiler}; a step of FLUX.1-dev, 1024 × 1024. Times: ESTIMATES by a roofline of data sheets, not measured.",
        f"{'variant':<70} {'card':<9} regs  shared warps  occ.    GFLOP  FLOP/B      MB     ≥ µs  bound",
    ]
    lines += [
        f"{row.variant:<70} {row.card:<9} {row.registers:>4} {row.shared_bytes:>7} {row.num_warps:>5} {row.occupancy:>5.0%} "
        f"{row.flops / 1e9:>8.2f} {row.flops / row.moved_bytes:>7.1f} {row.moved_bytes / 1e6:>7.1f} {row.time_us:>8.1f}  "
        f"{row.bound}"
        for row in found
    ]
    return "\n".join(lines)
