"""Run a command and watch its memory: the sum over the process and its children, sampled from /proc (Linux)."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vitrify.bench.measure import now

__all__ = ["Phase", "Watched", "memory_bytes", "watch"]

SAMPLE_S = 0.02


@dataclass(frozen=True)
class Phase:
    """A stretch of a command's life, named by the line it printed on standard error when it began."""

    name: str
    seconds: float
    peak_anonymous_bytes: int


@dataclass(frozen=True)
class Watched:
    """A command that ended. peak_…: the largest sum seen at one moment. said: the last lines of its standard error."""

    exit_code: int
    seconds: float
    peak_anonymous_bytes: int
    peak_mapped_bytes: int
    phases: tuple[Phase, ...]
    said: str


def memory_bytes(pid: int) -> tuple[int, int]:
    """(anonymous, mapped) resident bytes of `pid` and all its descendants; those that are gone count nothing."""
    anonymous = mapped = 0
    waiting = [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError):
            for line in (folder / "status").read_text().splitlines():
                key, _, rest = line.partition(":")
                if key == "RssAnon":
                    anonymous += int(rest.split()[0]) * 1024
                elif key in ("RssFile", "RssShmem"):
                    mapped += int(rest.split()[0]) * 1024
            for task in (folder / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return anonymous, mapped


def watch(command: Sequence[str], *, environment: Mapping[str, str], every_s: float = SAMPLE_S) -> Watched:
    """Run `command` to its end and sample its memory. Each line on its standard error begins a phase of that name."""
    start = now()
    lines: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(environment)
    )
    assert process.stderr is not None
    reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
    reader.start()
    began, name, peaks = start, "start", [0, 0]
    highest, said = 0, []
    phases: list[Phase] = []
    try:
        while process.poll() is None:
            anonymous, mapped = memory_bytes(process.pid)
            while not lines.empty():
                moment, line = lines.get()
                phases.append(Phase(name, moment - began, highest))
                began, name, highest = moment, line, 0
                said.append(line)
            highest = max(highest, anonymous)
            peaks = [max(peaks[0], anonymous), max(peaks[1], mapped)]
            time.sleep(every_s)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    end = now()
    reader.join()
    while not lines.empty():
        said.append(lines.get()[1])
    phases.append(Phase(name, end - began, highest))
    return Watched(process.returncode, end - start, peaks[0], peaks[1], tuple(phases), "\n".join(said[-20:]))


def _read(stream: IO[str], lines: queue.SimpleQueue[tuple[float, str]]) -> None:
    with stream:
        for line in stream:
            if line.strip():
                lines.put((now(), line.strip()))
