"""Which bytes of which files an ONNX graph refers to, found by walking its protobuf, without the onnx package.

Only messages that can lead to an external tensor are entered; all else is skipped by its length. A tensor's external data is a
list of key and value strings whose keys must include `location`: a message without that word among its bytes is skipped whole.
Source: onnx.proto3 (field numbers), the protobuf encoding page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vitrify.engine.errors import ArtifactError

__all__ = ["ExternalTensor", "external_tensors"]

# message → {field number: message found there}
_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
# Fields that hold one message: protobuf merges one that stands twice, which no part of it shows.
_SINGULAR: dict[str, frozenset[int]] = {
    "Model": frozenset({7}),
    "TrainingInfo": frozenset({1, 2}),
    "Attribute": frozenset({5, 6, 22}),
    "SparseTensor": frozenset({1, 2}),
}
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _ENTRY_KEY, _ENTRY_VALUE = 8, 13, 1, 2
_MAX_DEPTH = 32
_MAX_TAG = 2**32 - 1
_MAX_VARINT = 2**64 - 1
_WORD = b"location"


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file: `location` as written; `length` None means to the file's end."""

    name: str
    location: str
    offset: int
    length: int | None


def external_tensors(data: bytes, where: str) -> list[ExternalTensor]:
    """Every external tensor of a serialised ONNX model, subgraphs and function bodies included.

    Raises ArtifactError naming `where` if the bytes are no protobuf message, if another parser could read them differently, or if
    an entry's numbers are none.
    """
    return list(_walk(data, 0, len(data), "Model", where, 0))


def _walk(data: bytes, start: int, end: int, message: str, where: str, depth: int) -> Iterator[ExternalTensor]:
    if depth > _MAX_DEPTH:
        raise ArtifactError(f"{where}: subgraphs nested too deep; this is no graph that vitrify wrote")
    inner, singular = _PATHS[message], _SINGULAR.get(message, frozenset())
    met: set[int] = set()
    for number, begin, stop in _fields(data, start, end, where):
        child = inner.get(number)
        if number in singular:
            if number in met:
                raise ArtifactError(
                    f"{where}: a {message} holds two of field {number} ({child}), expected one; this is no ONNX graph"
                )
            met.add(number)
        if child is None or data.find(_WORD, begin, stop) < 0:
            continue
        if child == "Tensor":
            tensor = _tensor(data, begin, stop, where)
            if tensor is not None:
                yield tensor
        else:
            yield from _walk(data, begin, stop, child, where, depth + 1)


def _tensor(data: bytes, start: int, end: int, where: str) -> ExternalTensor | None:
    name, entries = "", {}
    for number, begin, stop in _fields(data, start, end, where):
        if number == _TENSOR_NAME:
            name = _text(data, begin, stop, where)
        elif number == _TENSOR_EXTERNAL_DATA:
            pair = {_ENTRY_KEY: "", _ENTRY_VALUE: ""}
            for field, low, high in _fields(data, begin, stop, where):
                if field in pair:
                    pair[field] = _text(data, low, high, where)
            if pair[_ENTRY_KEY] in entries:
                raise ArtifactError(f"{where}: tensor {name[:200]!r} gives external {pair[_ENTRY_KEY][:40]!r} twice")
            entries[pair[_ENTRY_KEY]] = pair[_ENTRY_VALUE]
    if "location" not in entries:
        return None
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise ArtifactError(f"{where}: tensor {name[:200]!r}: external {key} is {text[:40]!r}, expected a number of bytes")
        numbers[key] = None if text is None else int(text)
    return ExternalTensor(name, entries["location"], numbers["offset"] or 0, numbers["length"])


def _text(data: bytes, start: int, end: int, where: str) -> str:
    try:
        return data[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"{where}: text at byte {start} is not UTF-8; this is no ONNX graph, or a damaged one") from None


def _fields(data: bytes, start: int, end: int, where: str) -> Iterator[tuple[int, int, int]]:
    """Each field of the message in data[start:end]: its number and the bytes of its value."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end, where)
        # Parsers cut a longer tag to 32 bits and see another field than we would.
        if tag > _MAX_TAG:
            raise ArtifactError(
                f"{where}: a field's tag at byte {at} is {tag}, expected at most {_MAX_TAG}; this is no ONNX graph"
            )
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            begin = at
            _, at = _varint(data, at, end, where)
        elif wire == 1:
            begin, at = at, at + 8
        elif wire == 2:
            length, begin = _varint(data, at, end, where)
            at = begin + length
        elif wire == 5:
            begin, at = at, at + 4
        else:
            raise ArtifactError(f"{where}: wire type {wire} at byte {at}; this is no ONNX graph, or a damaged one")
        if at > end or number == 0:
            raise ArtifactError(f"{where}: field {number} runs past byte {end}; this is no ONNX graph, or a damaged one")
        yield number, begin, at


def _varint(data: bytes, at: int, end: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            if value > _MAX_VARINT:
                raise ArtifactError(f"{where}: a number at byte {at} is {value}, expected 64 bits; this is no ONNX graph")
            return value, at
        shift += 7
    raise ArtifactError(f"{where}: a number at byte {at} does not end; this is no ONNX graph, or a damaged one")
