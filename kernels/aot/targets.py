"""The GPUs that kernels are compiled for, and the cards that estimates are made for, as data.

Limits per architecture: CUDA C++ Programming Guide, "Compute Capabilities". Peaks per card: NVIDIA's data sheets (dense
tensor-core throughput of fp16 and bf16 with float32 accumulation; the RTX 4090's is half its fp16-accumulating figure).
"""

from __future__ import annotations

from dataclasses import dataclass

from vitrify.engine.errors import SpecError

__all__ = ["ARCHS", "ARCH_NAMES", "CARDS", "FALLBACK", "Arch", "Card", "arch"]

_KIB = 1024


@dataclass(frozen=True)
class Arch:
    """One compute capability.

    name: `sm_90`, the key in manifests. capability: 90. shared_bytes: what one block may use.
    tensor_core: opcode of its matrix instruction, as the disassembler prints it.
    """

    name: str
    capability: int
    shared_bytes: int
    tensor_core: str


ARCHS = (
    Arch("sm_80", 80, 163 * _KIB, "HMMA"),
    Arch("sm_86", 86, 99 * _KIB, "HMMA"),
    Arch("sm_89", 89, 99 * _KIB, "HMMA"),
    Arch("sm_90", 90, 227 * _KIB, "HGMMA"),
    Arch("sm_100", 100, 227 * _KIB, "UTCHMMA"),
    Arch("sm_120", 120, 99 * _KIB, "HMMA"),
)

ARCH_NAMES = tuple(row.name for row in ARCHS)

FALLBACK = "sm_80"
"""The architecture whose PTX is kept as well: the driver compiles it for any later GPU that no cubin fits."""


@dataclass(frozen=True)
class Card:
    """A product, for the estimates of `vitrify kernels inspect`.

    tensor_flops: per second, fp16 and bf16 with float32 sums. vector_flops: per second, float32 outside the tensor cores.
    bandwidth: bytes per second. registers, shared_bytes, threads, blocks: what one multiprocessor holds.
    """

    name: str
    arch: str
    multiprocessors: int
    tensor_flops: float
    vector_flops: float
    bandwidth: float
    shared_bytes: int
    threads: int
    blocks: int
    registers: int = 65536


CARDS = (
    Card("A100", "sm_80", 108, 312e12, 19.5e12, 2.039e12, 164 * _KIB, 2048, 32),
    Card("H100", "sm_90", 132, 989e12, 66.9e12, 3.35e12, 228 * _KIB, 2048, 32),
    Card("RTX 4090", "sm_89", 128, 165e12, 82.6e12, 1.008e12, 100 * _KIB, 1536, 24),
    Card("B200", "sm_100", 148, 2250e12, 75e12, 8.0e12, 228 * _KIB, 2048, 32),
)


def arch(name: str) -> Arch:
    """The row of `sm_NN`. Raises SpecError listing those known."""
    for row in ARCHS:
        if row.name == name:
            return row
    raise SpecError(f"architecture {name!r} is unknown; known: {', '.join(ARCH_NAMES)}")
