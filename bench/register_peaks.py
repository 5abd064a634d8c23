"""The processor's own limit: its vector and tile units on operands that stay in registers. Runs in a process of its own.

register_peaks.cpp is compiled here with the system's C++ compiler, for it must not be tuned by anything of ours.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["UNITS", "main", "peak_meter", "register_peaks"]

UNITS = {
    "avx2": "float32, AVX2",
    "avx512f": "float32, AVX-512",
    "avx512_bf16": "bfloat16, AVX-512",
    "avx512_vnni": "int8, AVX-512",
    "amx_bf16": "bfloat16, AMX",
    "amx_int8": "int8, AMX",
}
"""A unit's name in the processor's flags → the dtype that it multiplies, and the unit in words."""

_SOURCE = Path(__file__).with_suffix(".cpp")
_SECONDS = 0.1
_REPEATS = 5


def peak_meter() -> Callable[[str, int, float], float]:
    """A function of a unit's name, threads and seconds: operations per second of all threads, 0 where the unit is absent.

    Needs a C++ compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peaks.so"
        command = ["c++", "-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", str(_SOURCE), "-o", str(library)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        measure = ctypes.CDLL(str(library)).vitrify_register_peak
    measure.restype = ctypes.c_double
    measure.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_double]
    return lambda unit, threads, seconds: float(measure(unit.encode(), threads, seconds))


def register_peaks(threads: int, seconds: float = _SECONDS) -> dict[str, float]:
    """Unit in words → operations per second of all threads, the best of five runs of `seconds`; absent units are left out."""
    measure = peak_meter()
    found = {words: max(measure(name, threads, seconds) for _ in range(_REPEATS)) for name, words in UNITS.items()}
    return {words: peak for words, peak in found.items() if peak > 0}


def main() -> None:
    """The job that `measure_limits` runs."""
    print(json.dumps(register_peaks(json.loads(sys.argv[1])["threads"])))


if __name__ == "__main__":
    main()
