"""The source's weights: copied into the artifact byte for byte and looked through on the way, and found by parameter name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact import ArtifactWriter, FileEntry
from vitrify.engine.errors import CompileError, SpecError
from vitrify.export.source import TensorLocation, WeightFiles

__all__ = ["NonFiniteScan", "copy_weights", "resolve_parameters"]

_NAMED = 10


def copy_weights(writer: ArtifactWriter, component: str, files: WeightFiles) -> dict[str, FileEntry]:
    """Copies each file, name kept, into `<component>/`; gives path within the artifact → hash and size.

    Bytes pass once, in chunks: hashed, and every floating tensor looked through for NaN and infinity.
    Raises CompileError naming the tensor that holds NaN or infinity, ArtifactError if a file cannot be read or written.
    """
    entries = {}
    for file in files.files:
        scan = NonFiniteScan(file.name, {n: t for n, t in files.tensors.items() if t.file == file})
        path = f"{component}/{file.name}"
        entries[path] = writer.copy_file(path, file, on_chunk=scan.feed)
    return entries


class NonFiniteScan:
    """Finds the first NaN or infinity in the floating tensors of a file that comes by in pieces of any size.

    Holds a few MiB whatever the file's size. Other element types are not looked at.
    """

    _BLOCK_BYTES = 2**20

    def __init__(self, file_name: str, tensors: Mapping[str, TensorLocation]) -> None:
        floating = [(name, t) for name, t in tensors.items() if t.stored_dtype in _LAYOUTS and t.nbytes]
        self._file_name = file_name
        self._tensors = sorted(floating, key=lambda item: item[1].offset)
        self._current = 0
        self._position = 0
        self._carry = b""

    def feed(self, chunk: memoryview) -> None:
        """The file's next bytes. Raises CompileError naming the tensor."""
        start, end = self._position, self._position + len(chunk)
        self._position = end
        while self._current < len(self._tensors):
            name, tensor = self._tensors[self._current]
            stop = tensor.offset + tensor.nbytes
            if tensor.offset >= end:
                return
            self._look(name, tensor, chunk[max(tensor.offset - start, 0) : min(stop, end) - start])
            if stop > end:
                return
            self._current += 1

    def _look(self, name: str, tensor: TensorLocation, data: memoryview) -> None:
        layout = _LAYOUTS[tensor.stored_dtype]
        size = layout.word.itemsize
        if self._carry:
            # An element that lies across two chunks.
            taken = min(size - len(self._carry), len(data))
            element, data = self._carry + bytes(data[:taken]), data[taken:]
            if len(element) < size:
                self._carry = element
                return
            self._carry = b""
            self._check(name, tensor, np.frombuffer(element, layout.word))
        whole = len(data) // size * size
        self._carry = bytes(data[whole:])
        for begin in range(0, whole, self._BLOCK_BYTES):
            self._check(name, tensor, np.frombuffer(data[begin : min(begin + self._BLOCK_BYTES, whole)], layout.word))

    def _check(self, name: str, tensor: TensorLocation, words: npt.NDArray[np.unsignedinteger]) -> None:
        layout = _LAYOUTS[tensor.stored_dtype]
        # Without its sign an IEEE number is finite exactly when, read as an integer, it is below infinity.
        worst = int(np.bitwise_and(words, layout.magnitude).max(initial=0))
        if worst >= layout.infinity:
            what = "NaN" if worst > layout.infinity else "infinity"
            raise CompileError(
                f"{self._file_name}: tensor {name!r} {tensor.stored_dtype}{list(tensor.shape)} holds {what}; "
                "the source is damaged or overflowed when it was converted: get the weights again, or convert them to bfloat16"
            )


class _Layout:
    """An IEEE format as an integer of the same size."""

    def __init__(self, word: type[np.unsignedinteger], exponent_bits: int) -> None:
        self.word = np.dtype(word).newbyteorder("<")
        bits = 8 * self.word.itemsize
        self.magnitude = word((1 << (bits - 1)) - 1)
        self.infinity = ((1 << exponent_bits) - 1) << (bits - 1 - exponent_bits)


_LAYOUTS = {
    "BF16": _Layout(np.uint16, 8),
    "F16": _Layout(np.uint16, 5),
    "F32": _Layout(np.uint32, 8),
    "F64": _Layout(np.uint64, 11),
}


def resolve_parameters(
    names: Mapping[str, tuple[int, ...]], files: WeightFiles, aliases: Mapping[str, str]
) -> dict[str, TensorLocation]:
    """Graph parameter name → where its bytes lie.

    names: parameter → shape. aliases: parameter → the name a tied parameter may be stored under; it holds in both directions.
    A parameter is looked for by its name, then by its alias; those found by neither once more with one prefix put before, or
    taken from, all of them (`text_model.`, `model.`: transformers' versions differ), if nothing found before lies under it.
    Raises CompileError naming the missing (the first ten), those of another shape, and dtypes that vitrify does not compute with.
    """
    found: dict[str, str] = {}
    for name in names:
        stored = next((candidate for candidate in _tied(name, aliases) if candidate in files.tensors), None)
        if stored is not None:
            found[name] = stored
    found |= _found_by_prefix([name for name in names if name not in found], found, files, aliases)
    missing = [name for name in names if name not in found]
    if missing:
        where = ", ".join(file.name for file in files.files)
        raise CompileError(
            f"{files.component}: {len(missing)} parameters are not in {where}: {_first(missing)}; "
            f"it has {len(files.tensors)} tensors, such as {_first(sorted(files.tensors)[:3])}: "
            "do the weights belong to this configuration?"
        )
    places = {name: files.tensors[found[name]] for name in names}
    wrong = [
        f"{n}: got {list(places[n].shape)}, expected {list(shape)}"
        for n, shape in names.items()
        if places[n].shape != tuple(shape)
    ]
    if wrong:
        raise CompileError(
            f"{files.component}: {len(wrong)} tensors have another shape than the configuration says: {_first(wrong)}"
        )
    for name, place in places.items():
        try:
            dtype = place.dtype
        except SpecError as error:
            raise CompileError(f"{files.component}: {name!r} in {place.file.name}: {error}; convert the weights first") from None
        if place.stored_dtype not in _LAYOUTS:
            raise CompileError(
                f"{files.component}: {name!r} in {place.file.name} is {dtype.value}, expected one of {', '.join(_LAYOUTS)}; "
                "quantised weights need the scales they came with: convert them to bfloat16 first"
            )
    return places


def _tied(name: str, aliases: Mapping[str, str]) -> list[str]:
    """`name` and the names it may be stored under instead."""
    return [name, *([aliases[name]] if name in aliases else []), *(key for key, stored in aliases.items() if stored == name)]


def _found_by_prefix(rest: list[str], found: Mapping[str, str], files: WeightFiles, aliases: Mapping[str, str]) -> dict[str, str]:
    """Parameter → stored name, for those of `rest` that the one best prefix leads to. Raises CompileError if two are as good."""
    by_end: dict[str, list[str]] = {}
    for stored in files.tensors:
        for prefix, end in _splits(stored):
            by_end.setdefault(end, []).append(prefix)
    # (put before?, prefix) → parameter → stored name
    ways: dict[tuple[bool, str], dict[str, str]] = {}
    for name in rest:
        for candidate in _tied(name, aliases):
            for prefix in by_end.get(candidate, ()):
                ways.setdefault((True, prefix), {}).setdefault(name, prefix + candidate)
            for prefix, end in _splits(candidate):
                if end in files.tensors:
                    ways.setdefault((False, prefix), {}).setdefault(name, end)
    # A prefix under which names were found as they are is no version's rename: it would give one block's norm for another's.
    taken = {True: tuple(found.values()), False: tuple(found)}
    ways = {way: names for way, names in ways.items() if not any(name.startswith(way[1]) for name in taken[way[0]])}
    most = max(map(len, ways.values()), default=0)
    best = [way for way, names in ways.items() if len(names) == most]
    if len(best) > 1:
        name = rest[0]
        raise CompileError(
            f"{files.component}: parameter {name!r} and {len(rest) - 1} more are not in the files by name, and would be under "
            f"either of the prefixes {_first(sorted(prefix for _, prefix in best))}: do the weights belong to this configuration?"
        )
    return ways[best[0]] if best else {}


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """`a.b.c` → (`a.`, `b.c`), (`a.b.`, `c`)."""
    for at, letter in enumerate(name):
        if letter == ".":
            yield name[: at + 1], name[at + 1 :]


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:_NAMED]) + (f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else "")
