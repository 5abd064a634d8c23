"""The checks that a request's values pass before anything runs; every failure is a RequestError that names the value."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.errors import RequestError
from vitrify.engine.specs import Dim

__all__ = ["check_array", "check_count", "check_dim", "check_number", "check_seed", "check_texts"]

Array = npt.NDArray[Any]


def check_dim(value: int, dim: Dim, name: str, option: str, what: str = "") -> int:
    """`value` if the artifact was compiled for it; else a RequestError with the nearest allowed values.

    name: the request's word for it. option: of `vitrify export`. what: how the value came about.
    """
    if dim.allows(value):
        return value
    wider = Dim(dim.name, min(dim.min, max(value, 1)), dim.opt, max(dim.max, value))
    nearest = " or ".join(str(n) for n in dim.nearest(value))
    again = f"{wider.min}:{wider.max}" if wider.min != wider.max else str(wider.min)
    raise RequestError(
        f"{name}={value}{f' ({what})' if what else ''} is outside what this artifact was compiled for: {dim}; "
        f"re-export with {option} {again} or ask for {nearest}"
    )


def check_count(value: Any, name: str) -> int:
    """`value` if it is a whole number of at least 1, as a plain int; else RequestError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise RequestError(f"{name}={value!r}: expected a whole number of at least 1")
    return int(value)


def check_number(value: Any, name: str) -> float:
    """`value` if it is a finite number, as a plain float; else RequestError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or not np.isfinite(value):
        raise RequestError(f"{name}={value!r}: expected a finite number")
    return float(value)


def check_array(value: Any, name: str, shape: Sequence[int | None], dtype: npt.DTypeLike, axes: str) -> Array:
    """`value` as a contiguous array if it has this shape (None: any extent) and dtype and is finite; else RequestError.

    value: a numpy array, or anything that gives one without a copy (a CPU tensor). axes: what the extents mean.
    """
    wanted = np.dtype(dtype)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # bfloat16 tensors, tensors with gradients, ragged lists
        raise RequestError(
            f"{name}: got a {type(value).__name__} that numpy does not take ({error}), expected {wanted}"
        ) from None
    fits = array.ndim == len(shape) and all(want in (None, got) for got, want in zip(array.shape, shape, strict=True))
    if not fits or array.dtype != wanted:
        extents = ", ".join(label if want is None else f"{label}={want}" for label, want in zip(axes.split(), shape, strict=True))
        hint = f"; convert it with .astype('{wanted}')" if fits else ""
        raise RequestError(f"{name}: got {array.dtype}{list(array.shape)}, expected {wanted}[{extents}]{hint}")
    if wanted.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"{name}: {int((~np.isfinite(array)).sum())} of its {array.size} values are NaN or infinite")
    return np.ascontiguousarray(array)


def check_seed(seed: Any, rows: int) -> int | list[int]:
    """The request's seed, or one drawn now if it has none; a list must hold one a row. Raises RequestError."""
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return int(seed)
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes) and np.shape(seed) != ():
        if len(seed) != rows:
            raise RequestError(f"seed: got {len(seed)} seeds for {rows} images, expected one number or one for each image")
        return [int(s) if isinstance(s, int | np.integer) and not isinstance(s, bool) else s for s in seed]
    raise RequestError(f"seed={seed!r}: expected a whole number, or a list of one for each image")


def check_texts(value: Any, name: str, count: int | None = None) -> list[str]:
    """One text or a list of them, as a list; one text stands for all `count` prompts. Raises RequestError."""
    if isinstance(value, str):
        return [value] * (1 if count is None else count)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
        kinds = sorted({type(text).__name__ for text in value}) if isinstance(value, list | tuple) else type(value).__name__
        raise RequestError(f"{name}: got {kinds or 'an empty list'}, expected a text or a list of texts")
    if count is not None and len(value) != count:
        raise RequestError(f"{name}: got {len(value)} texts for {count} prompts, expected one for all or one for each")
    return list(value)
