"""The pictures of a run side by side, as one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrify.bench.cache_plots import grid
from vitrify.bench.cases import CASES
from vitrify.bench.pictures import from_png
from vitrify.bench.results import RunResult
from vitrify.engine.errors import RequestError

__all__ = ["write_grid"]


def write_grid(path: Path, run: RunResult, peers: Sequence[str] = ()) -> None:
    """A row for each of `peers` (all if empty), a column for each picture of the run's first case that has pictures.

    Raises RequestError where the run has no pictures, or none of a peer.
    """
    drawn = next((case for case in run.cases if case.pictures), None)
    if drawn is None:
        raise RequestError("the run has no pictures; measure one with vitrify bench run --case sample-pictures --json FILE")
    for name in peers:
        if name not in drawn.pictures:
            raise RequestError(f"the run has no pictures of {name!r}; it has those of {', '.join(drawn.pictures)}")
    rows = []
    for name in peers or drawn.pictures:
        rows.append((name, np.stack([from_png(one) for one in drawn.pictures[name]]) / np.float32(255)))
    known = CASES.get(drawn.name)
    titles = known.prompts if known is not None else [f"picture {index + 1}" for index in range(len(rows[0][1]))]
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(titles, rows, path)
