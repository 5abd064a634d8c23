"""The header reader against the safetensors library, and against files made to harm."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from vitrify.engine.artifact import read_header
from vitrify.engine.errors import ArtifactError


def packed(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def row(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_header_agrees_with_the_safetensors_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {
        "b": rng.standard_normal((3, 5)).astype(np.float32),
        "a": rng.integers(0, 9, (7,), dtype=np.int64),
        "odd": np.arange(3, dtype=np.uint8),
        "half": rng.standard_normal((2, 2, 2)).astype(np.float16),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4), np.float32),
        "wide name ä": np.array([True, False]),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert set(header.tensors) == set(tensors)
    raw = path.read_bytes()
    with safe_open(path, "np") as reference:
        for name, entry in header.tensors.items():
            piece = reference.get_slice(name)
            assert (entry.dtype, list(entry.shape)) == (piece.get_dtype(), piece.get_shape())
            assert raw[entry.offset : entry.offset + entry.nbytes] == tensors[name].tobytes()
    offsets = [entry.offset for entry in header.tensors.values()]
    assert offsets == sorted(offsets)
    assert min(offsets) == header.data_start


HOSTILE = {
    "empty file": (b"", "too short"),
    "short prefix": (b"\x01\0\0", "too short"),
    "huge header": (packed({}, length=100_000_001), "at most 100000000"),
    "huge header, 64 bits": (packed({}, length=2**64 - 1), "at most"),
    "header beyond the file": (packed({}, length=50), "truncated"),
    "no object": (packed([]), "not a JSON object"),
    "leading space": (packed(b" {}"), "not a JSON object"),
    "broken JSON": (packed(b"{nonsense}"), "not valid JSON"),
    "key twice": (packed(b'{"a":1,"a":1}'), "twice"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (packed({"__metadata__": []}), "__metadata__"),
    "entry no object": (packed({"t": 3}), "'t': expected the fields"),
    "extra field": (packed({"t": {**row(0, 1), "x": 1}}, b"a"), "expected the fields"),
    "unknown dtype": (packed({"t": row(0, 1, dtype="X8")}, b"a"), "dtype 'X8'"),
    "dtype a list": (packed({"t": {**row(0, 1), "dtype": []}}, b"a"), "dtype"),
    "negative extent": (packed({"t": row(0, 1, [-1])}, b"a"), "list of sizes"),
    "bool extent": (packed({"t": row(0, 1, [True])}, b"a"), "list of sizes"),
    "float extent": (packed({"t": row(0, 1, [1.0])}, b"a"), "list of sizes"),
    "product over 64 bits": (packed({"t": row(0, 1, [2**32, 2**32, 2**32])}, b"a"), "more bytes than any file"),
    "product wraps to the right size": (packed({"t": row(0, 1, [2**63, 2, 1])}, b"a"), "list of sizes|more bytes"),
    "offsets reversed": (packed({"t": {"dtype": "U8", "shape": [0], "data_offsets": [1, 0]}}, b"a"), "begin <= end"),
    "offsets three": (packed({"t": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}), "begin <= end"),
    "offsets negative": (packed({"t": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}), "begin <= end"),
    "size against shape": (packed({"t": row(0, 4, [3])}, b"aaaa"), "takes 3 bytes"),
    "half a byte": (packed({"t": row(0, 1, [1], "F4")}, b"a"), "takes 0.5 bytes"),
    "overlap": (packed({"s": row(0, 2), "t": row(1, 3)}, b"aaa"), "overlaps"),
    "same bytes twice": (packed({"s": row(0, 2), "t": row(0, 2)}, b"aa"), "overlaps"),
    "hole": (packed({"s": row(0, 1), "t": row(2, 3)}, b"aaa"), "hole"),
    "hole in front": (packed({"t": row(1, 2)}, b"aa"), "hole"),
    "beyond the end": (packed({"t": row(0, 9)}, b"a"), "truncated"),
    "bytes left over": (packed({"t": row(0, 1)}, b"aa"), "1 bytes after the last tensor"),
    "nothing but data": (packed({}, b"a"), "after the last tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_file_and_the_reason(name: str, tmp_path: Path) -> None:
    data, words = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_what_the_format_allows_passes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(b"{}   "))
    assert read_header(path).tensors == {}
    path.write_bytes(packed({"z": row(0, 0), "t": row(0, 1), "a": row(1, 1, [4, 0]), "f": row(1, 2, [2], "F4")}, b"ab"))
    assert [(name, e.nbytes) for name, e in read_header(path).tensors.items()] == [("z", 0), ("t", 1), ("a", 0), ("f", 1)]


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_header(path)


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(st.integers(min_value=0), st.binary(max_size=4), st.integers(min_value=0, max_value=4))
def test_whatever_the_library_refuses_is_refused_and_nothing_else_escapes(
    tmp_path_factory: pytest.TempPathFactory, at: int, new: bytes, removed: int
) -> None:
    good = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.int8)}, metadata={"k": "v"})
    at %= len(good)
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(good[:at] + new + good[at + removed :])
    try:
        ours = read_header(path)
    except ArtifactError:
        return
    with safe_open(path, "np") as reference:
        assert set(ours.tensors) == set(reference.keys())
