"""Process memory, as the operating system counts it."""

from __future__ import annotations

import ctypes
from pathlib import Path

__all__ = ["release_free_memory", "resident_bytes"]


def release_free_memory() -> None:
    """Hand freed heap pages back to the system (glibc keeps them else); does nothing on other C libraries."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def resident_bytes() -> dict[str, int]:
    """{"anonymous": …, "mapped": …}: this process's resident bytes, of its own and of files (Linux)."""
    counts = {"anonymous": 0, "mapped": 0}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == "RssAnon":
            counts["anonymous"] = int(rest.split()[0]) * 1024
        elif key == "RssFile":
            counts["mapped"] = int(rest.split()[0]) * 1024
    return counts
