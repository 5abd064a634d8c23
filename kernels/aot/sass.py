"""The instructions of a cubin, by the disassembler that comes with Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path

from vitrify.engine.errors import CompileError

__all__ = ["opcodes"]

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


@lru_cache(maxsize=1)
def _cuobjdump() -> Path:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        raise CompileError(f"{tool} is missing; reinstall triton")
    return tool


def opcodes(cubin: bytes) -> Counter[str]:
    """Opcode without its suffixes (`HMMA`, `LDGSTS`) → how often it stands in the code. Raises CompileError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([str(_cuobjdump()), "-sass", str(file)], capture_output=True, text=True, check=False)
    found = Counter(_INSTRUCTION.findall(done.stdout))
    if done.returncode or not found:
        raise CompileError(f"cuobjdump -sass printed no instruction (exit code {done.returncode}): {done.stderr.strip()[:300]}")
    return found
