"""What a number depends on besides the code: the processor and the versions. No host name, no path."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitrify.bench.cache import package_versions
from vitrify.bench.jobs import available_cpus
from vitrify.engine.specs import expect, expect_list, expect_map

__all__ = ["Machine", "this_machine"]

_PACKAGES = (
    "diffusers",
    "nncf",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "torch",
    "transformers",
    "vitrify",
)
_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
)


@dataclass(frozen=True)
class Machine:
    """cpu: the model's name. cpu_flags: those vector units that decide speed. cpus: that this process may use."""

    cpu: str
    cpu_flags: tuple[str, ...]
    cpus: int
    memory_bytes: int
    system: str
    python: str
    packages: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cpu_flags": list(self.cpu_flags), "packages": dict(self.packages)}

    @classmethod
    def from_json(cls, data: Any, where: str = "machine") -> Machine:
        """What `to_json` wrote. Raises SpecError naming the field."""
        texts, numbers = ("cpu", "system", "python"), ("cpus", "memory_bytes")
        given = expect_map(data, where, (*texts, *numbers, "cpu_flags", "packages"))
        packages = expect_map(given["packages"], f"{where}.packages")
        return cls(
            cpu_flags=tuple(
                expect(flag, str, f"{where}.cpu_flags") for flag in expect_list(given["cpu_flags"], f"{where}.cpu_flags")
            ),
            packages={name: expect(version, str, f"{where}.packages.{name}") for name, version in packages.items()},
            **{name: expect(given[name], str, f"{where}.{name}") for name in texts},
            **{name: expect(given[name], int, f"{where}.{name}") for name in numbers},
        )


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """The machine and the installed packages that measurements name."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        cpu=fields.get("model name") or platform.machine(),
        cpu_flags=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        cpus=available_cpus(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=package_versions(_PACKAGES),
    )
