"""Processes that the bench starts: their environment, and one-shot jobs that answer with JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from vitrify.engine.errors import BackendError

__all__ = ["available_cpus", "job_environment", "run_code", "run_job", "tail"]

_TAIL_CHARACTERS = 2000


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def job_environment(threads: int) -> dict[str, str]:
    """This environment with `threads` for every library that makes its own pool, and without network look-ups."""
    count = str(threads)
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "MKL_NUM_THREADS": count,
        "OMP_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_job(module: str, arguments: Mapping[str, Any], *, threads: int, python: str = sys.executable) -> dict[str, Any]:
    """Run `python -m module ARGUMENTS-AS-JSON`; its last line on standard output is the answer, a JSON object.

    python: the interpreter. Raises BackendError with the end of what it said when it fails.
    """
    return _answer(module, [python, "-m", module, json.dumps(dict(arguments))], threads)


def run_code(code: str, *, threads: int, python: str = sys.executable) -> dict[str, Any]:
    """Run `python -c code`; answer and error as those of `run_job`."""
    return _answer(python, [python, "-c", code], threads)


def _answer(name: str, command: list[str], threads: int) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=job_environment(threads),
            check=False,
        )
        errors.seek(0)
        said = errors.read()
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise BackendError(f"{name} ended with exit code {done.returncode}: {tail(said)}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def tail(text: str) -> str:
    """The end of what a process said."""
    return text.strip()[-_TAIL_CHARACTERS:] or "(it said nothing)"
