"""Canonical JSON: one value, one byte string; and a parser that trusts nothing.

Sorted keys, no white space, ASCII, floats as their shortest repr, no NaN or infinity, one line feed at the end.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vitrify.engine.errors import ArtifactError

__all__ = ["MAX_DEPTH", "canonical_bytes", "parse", "plain"]

Json = Any

MAX_DEPTH = 64
"""Objects and lists may nest so deep; deeper text is refused before anything walks it."""


def plain(value: object, where: str, depth: int = 0) -> Json:
    """A copy of `value` in dict, list, str, int, float, bool and None alone (a tuple becomes a list).

    Raises ArtifactError that says where another type, a key that is no string, NaN or infinity stands.
    """
    if depth > MAX_DEPTH:
        raise ArtifactError(f"{where}: nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    # A subclass (an enum member, numpy's float64) has its own repr: only the plain value is canonical.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArtifactError(f"{where}: got {value}, expected a finite number")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArtifactError(f"{where}: key {key!r} is a {type(key).__name__}, expected a string")
        return {str.__str__(k): plain(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
    raise ArtifactError(f"{where}: a {type(value).__name__} cannot stand in JSON: {str(value)[:60]!r}")


def canonical_bytes(value: object, where: str = "value") -> bytes:
    """The one ASCII byte string of a JSON value, with a line feed at the end. Raises ArtifactError (see `plain`)."""
    text = json.dumps(plain(value, where), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def parse(data: bytes, where: str) -> Json:
    """The value of JSON text in UTF-8.

    Raises ArtifactError on anything else: bad text, a key twice in one object, NaN, numbers beyond float64, deep nesting.
    """

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ArtifactError(f"{where}: number {text[:40]} is beyond float64")
        return number

    def constant(text: str) -> float:
        raise ArtifactError(f"{where}: {text} is not JSON")

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise ArtifactError(f"{where}: key {twice[:60]!r} stands twice in one object")
        return fields

    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_float=finite, parse_constant=constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: not valid JSON: {str(error)[:200]}") from None
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        layer = [c for v in layer for c in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
        if not layer:
            return value
    raise ArtifactError(f"{where}: nested more than {MAX_DEPTH} deep")
