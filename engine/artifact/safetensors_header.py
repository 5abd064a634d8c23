"""A safetensors file's header, read and checked without loading any data.

The format: an unsigned 64-bit little-endian size N, N bytes of JSON, then the tensors' bytes without gap or overlap.
Source: the safetensors format page (github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrify.engine.artifact.canonical import parse
from vitrify.engine.errors import ArtifactError

__all__ = ["MAX_HEADER_BYTES", "SafetensorsHeader", "TensorEntry", "read_header"]

Json = Any

MAX_HEADER_BYTES = 100_000_000
_MAX_BYTES = 2**63 - 1

# Every element type of the format, in bits. Which of them vitrify computes with is for DType to say.
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: `dtype` by the format's name ("BF16"), `offset` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """tensors: in the order of their bytes. metadata: the header's own strings. data_start: where the first tensor begins."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> SafetensorsHeader:
    """The checked header of `path`.

    Raises ArtifactError naming the file and, where there is one, the tensor: truncated, too large a header, bad JSON,
    an unknown dtype, bytes that do not fit the shape, overlapping, with holes, or beyond the end of the file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ArtifactError(f"{path}: got {size} bytes, which is too short for a safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise ArtifactError(f"{path}: the header says it has {length} bytes, expected at most {MAX_HEADER_BYTES}")
            if 8 + length > size:
                raise ArtifactError(f"{path}: truncated: the header ends at byte {8 + length}, the file at {size}")
            text = file.read(length)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) != length or not text.startswith(b"{"):
        raise ArtifactError(f"{path}: the header is not a JSON object; this is no safetensors file, or a damaged one")
    return _checked(parse(text, str(path)), str(path), 8 + length, size)


def _checked(fields: dict[str, Json], where: str, start: int, size: int) -> SafetensorsHeader:
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError(f"{where}: __metadata__ is not an object of strings")
    entries = sorted(
        ((name, _entry(row, f"{where}: tensor {name[:200]!r}", start)) for name, row in fields.items()), key=_position
    )
    end = start
    for name, entry in entries:
        if entry.offset != end:
            what = "overlaps the one before it" if entry.offset < end else "leaves a hole before it"
            raise ArtifactError(f"{where}: tensor {name[:200]!r} {what}: it begins at byte {entry.offset}, expected {end}")
        end += entry.nbytes
        if end > size:
            raise ArtifactError(f"{where}: truncated: tensor {name[:200]!r} ends at byte {end}, the file at {size}")
    if end != size:
        raise ArtifactError(f"{where}: {size - end} bytes after the last tensor, which ends at byte {end}")
    return SafetensorsHeader(dict(entries), metadata, start)


def _position(item: tuple[str, TensorEntry]) -> tuple[int, int, str]:
    # An empty tensor stands before the one that begins at the same byte.
    name, entry = item
    return entry.offset, entry.nbytes, name


def _entry(row: Json, where: str, start: int) -> TensorEntry:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{where}: expected the fields dtype, shape, data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ArtifactError(f"{where}: dtype {str(dtype)[:40]!r} is unknown; known: {', '.join(_BITS)}")
    if not isinstance(shape, list) or not all(_is_size(extent) for extent in shape):
        raise ArtifactError(f"{where}: shape {str(shape)[:80]} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(o) for o in offsets) or offsets[0] > offsets[1]:
        raise ArtifactError(f"{where}: data_offsets {str(offsets)[:80]} are not [begin, end] with begin <= end")
    # Products of hostile extents would grow without end: stop at what no file can hold.
    bits = _BITS[dtype]
    for extent in shape:
        bits *= extent
        if bits > 8 * _MAX_BYTES:
            raise ArtifactError(f"{where}: shape {str(shape)[:80]} has more bytes than any file")
    nbytes = offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        raise ArtifactError(f"{where}: {dtype}{shape} takes {bits / 8:g} bytes, data_offsets give it {nbytes}")
    return TensorEntry(dtype, tuple(shape), start + offsets[0], nbytes)


def _is_size(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES
