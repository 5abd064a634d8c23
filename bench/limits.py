"""The machine's own limit: what a plain square matrix product reaches, measured beside the peers in a process of its own."""

from __future__ import annotations

import json
import sys

from vitrify.bench.jobs import run_job
from vitrify.bench.measure import timed

__all__ = ["measure_limits"]

_SIZE = 2048
_REPEATS = 10
_DTYPES = ("float32", "bfloat16")


def measure_limits(threads: int) -> dict[str, float]:
    """dtype → FLOP/s of the fastest of some 2048³ products through PyTorch's library (oneDNN or MKL)."""
    return {name: float(value) for name, value in run_job("vitrify.bench.limits", {"threads": threads}, threads=threads).items()}


def main() -> None:
    """The job that `measure_limits` runs."""
    import torch

    torch.set_num_threads(json.loads(sys.argv[1])["threads"])
    found = {}
    for name in _DTYPES:
        left, right = (torch.randn(_SIZE, _SIZE).to(getattr(torch, name)) for _ in range(2))
        timing = timed(lambda _, a=left, b=right: torch.mm(a, b), _REPEATS)  # type: ignore[misc]
        found[name] = 2 * _SIZE**3 / min(timing.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
