"""Weights by name, straight from safetensors files: nothing is read before it is asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact.safetensors_header import TensorEntry, read_header
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError

__all__ = ["Weights"]


class Weights(Mapping[str, npt.NDArray[Any]]):
    """Tensor name → read-only array over the file's memory map (bfloat16 through ml_dtypes).

    Headers are read at the first look. Raises then ArtifactError for a damaged file, SpecError for a name in two files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        file, entry = self._entries[name]
        raw = self._map(file)[entry.offset : entry.offset + entry.nbytes]
        return raw.view(DType.from_safetensors(entry.dtype).numpy).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def elements(self) -> Iterator[tuple[str, int]]:
        """Each tensor's dtype name and number of elements, from the headers alone. Raises SpecError for a dtype not supported."""
        for _, entry in self._entries.values():
            yield DType.from_safetensors(entry.dtype).value, math.prod(entry.shape)

    @functools.cached_property
    def _entries(self) -> Mapping[str, tuple[Path, TensorEntry]]:
        entries: dict[str, tuple[Path, TensorEntry]] = {}
        for file in self.files:
            for name, entry in read_header(file).tensors.items():
                if name in entries:
                    raise SpecError(f"tensor {name!r} is in {entries[name][0]} and in {file}; expected it once")
                entries[name] = (file, entry)
        return entries

    @functools.cached_property
    def _maps(self) -> dict[Path, npt.NDArray[np.uint8]]:
        return {}

    def _map(self, file: Path) -> npt.NDArray[np.uint8]:
        if file not in self._maps:
            self._maps[file] = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
        return self._maps[file]
