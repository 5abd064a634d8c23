"""Tile sizes, warps and pipeline stages per architecture, checked in as data: `kernels/configs/<table>.json`.

A table is a list of rows `{"for": {...}, "tile": {"BLOCK_M": 128}, "num_warps": 8, "num_stages": 3}`. `for` narrows a row by
`arch`, `dtype`, `kernel` and constants of the kernel, each to a list of values; a name that is left out matches all. Exactly one
row must match. A row may have a `note`: why these sizes. A row `{"for": {...}, "unbuilt": "why"}` leaves variants out of a build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitrify.engine.errors import SpecError
from vitrify.engine.specs import expect, expect_list, expect_map
from vitrify.kernels.aot.description import Constant, Variant

__all__ = ["Tile", "built", "tile"]

_FOLDER = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Tile:
    """sizes: compile-time constants of the kernel. num_warps: of 32 threads each. num_stages: loads in flight in a loop."""

    sizes: Mapping[str, int]
    num_warps: int
    num_stages: int


def tile(variant: Variant, arch: str) -> Tile:
    """The row for this variant on `sm_NN`. Raises SpecError if none or several match, or if it says why there is none."""
    row = _row(variant, arch)
    if "unbuilt" in row:
        raise SpecError(f"{variant.name} is not built for {arch}: {row['unbuilt']}")
    return Tile(dict(row["tile"]), row["num_warps"], row["num_stages"])


def built(variant: Variant, arch: str) -> bool:
    """Whether there is an image of this variant for `sm_NN`. Raises SpecError if no row or several match."""
    return "unbuilt" not in _row(variant, arch)


def _row(variant: Variant, arch: str) -> dict[str, Any]:
    table = variant.kernel.tiles
    known: dict[str, Constant] = {**variant.kernel.options, **variant.constants}
    values = {**known, "kernel": variant.kernel.name, "dtype": variant.dtype.value, "arch": arch}
    found = [row for row in _table(table) if all(values.get(name) in choices for name, choices in row["for"].items())]
    if len(found) != 1:
        raise SpecError(
            f"kernels/configs/{table}.json: {len(found)} rows match {variant.name} on {arch}, expected exactly one; "
            "narrow or add a row"
        )
    return found[0]


@lru_cache
def _table(name: str) -> list[dict[str, Any]]:
    file = _FOLDER / f"{name}.json"
    where = f"kernels/configs/{name}.json"
    rows = []
    for number, row in enumerate(expect_list(json.loads(file.read_text()), where)):
        at = f"{where}, row {number}"
        unbuilt = isinstance(row, dict) and "unbuilt" in row
        noted = ("note",) if isinstance(row, dict) and "note" in row else ()
        expect_map(row, at, ("for", "unbuilt") if unbuilt else ("for", "tile", "num_warps", "num_stages", *noted))
        for key in noted:
            expect(row[key], str, f"{at}, {key}")
        for key, choices in expect_map(row["for"], f"{at}, for").items():
            expect_list(choices, f"{at}, {key}")
        rows.append(row)
        if unbuilt:
            expect(row["unbuilt"], str, f"{at}, unbuilt")
            continue
        for key, size in expect_map(row["tile"], f"{at}, tile").items():
            expect(size, int, f"{at}, {key}")
        expect(row["num_warps"], int, f"{at}, num_warps")
        expect(row["num_stages"], int, f"{at}, num_stages")
    if not rows:
        raise SpecError(f"{where} has no rows")
    return rows
