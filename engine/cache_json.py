"""A step cache as plain JSON data, and back: each option by its kind and its fields, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitrify.engine.cache_policy import Always, Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import SpecError

__all__ = ["cache_from_json", "cache_to_json"]

Json = Any

_DECISIONS = {kind.__name__: kind for kind in (Always, FirstBlock, Interval, Mask, Magnitude)}
_PREDICTORS = {kind.__name__: kind for kind in (Hold, Taylor)}
_SEQUENCES = ("steps", "ratios")


def cache_to_json(cache: Cache) -> Json:
    """`cache` in dict, list, str, int, float, bool and None alone. Raises SpecError for one with `compat`."""
    if cache.compat is not None:
        raise SpecError(f"{cache}: a cache with compat is for comparison and is not kept")
    return {
        "decision": _option(cache.decision),
        "predictor": None if cache.predictor is None else _option(cache.predictor),
        "guards": _values(cache.guards),
    }


def cache_from_json(data: Json, where: str) -> Cache:
    """The cache that `cache_to_json` wrote. Raises SpecError naming `where`, and what is missing, unknown or out of range."""
    found = _object(data, where, {"decision", "predictor", "guards"})
    try:
        return Cache(
            _made(found["decision"], f"{where}.decision", _DECISIONS),
            None if found["predictor"] is None else _made(found["predictor"], f"{where}.predictor", _PREDICTORS),
            _of_fields(Guards, found["guards"], f"{where}.guards"),
        )
    except SpecError as error:
        raise error if str(error).startswith(where) else SpecError(f"{where}: {error}") from None


def _option(option: Any) -> Json:
    return {"kind": type(option).__name__, **_values(option)}


def _values(option: Any) -> Json:
    values = {f.name: getattr(option, f.name) for f in fields(option)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _made(data: Json, where: str, kinds: Mapping[str, Any]) -> Any:
    if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str) or data["kind"] not in kinds:
        got = data.get("kind") if isinstance(data, Mapping) else type(data).__name__
        raise SpecError(f"{where}.kind: got {str(got)[:60]!r}, expected one of {', '.join(kinds)}")
    return _of_fields(kinds[data["kind"]], {k: v for k, v in data.items() if k != "kind"}, where)


def _of_fields(kind: Any, data: Json, where: str) -> Any:
    values = _object(data, where, {f.name for f in fields(kind)})
    return kind(**{k: tuple(v) if k in _SEQUENCES and isinstance(v, list) else v for k, v in values.items()})


def _object(data: Json, where: str, names: set[str]) -> Mapping[str, Json]:
    if not isinstance(data, Mapping):
        raise SpecError(f"{where}: got a {type(data).__name__}, expected an object")
    if set(data) != names:
        unknown = [str(name)[:60] for name in sorted(set(data) - names)]
        raise SpecError(f"{where}: missing {sorted(names - set(data))}, unknown {unknown}; expected {sorted(names)}")
    return data
