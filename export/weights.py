"""The source's weights: copied into the artifact byte for byte and looked through on the way, and found by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact import ArtifactWriter
from vitrify.engine.errors import CompileError, SpecError
from vitrify.export.source import TensorLocation, WeightFiles

__all__ = ["NonFiniteScan", "copy_weights", "resolve_parameters"]

_NAMED = 10


def copy_weights(writer: ArtifactWriter, component: str, files: WeightFiles, progress: Callable[[int], None]) -> tuple[str, ...]:
    """Copies each file, name kept, into `<component>/`; gives the paths within the artifact.

    Bytes pass once, in chunks: hashed, and every floating tensor looked through for NaN and infinity.
    progress: called with the number of bytes just copied.
    Raises CompileError naming the tensor that holds NaN or infinity, ArtifactError if a file cannot be read or written.
    """
    paths = []
    for file in files.files:
        scan = NonFiniteScan(file.name, {n: t for n, t in files.tensors.items() if t.file == file})

        def look(chunk: memoryview, scan: NonFiniteScan = scan) -> None:
            scan.feed(chunk)
            progress(len(chunk))

        path = f"{component}/{file.name}"
        writer.copy_file(path, file, on_chunk=look)
        paths.append(path)
    return tuple(paths)


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
    A parameter is looked for by its name, then by its alias; those not found by either are looked for once more with one prefix
    put before, or taken from, all of them (`text_model.`, `model.`: transformers' versions differ), the one that finds most.
    Raises CompileError naming the missing (the first ten), those of another shape, and dtypes that vitrify does not compute with.
    """
    found = {name: stored for name in names if (stored := _stored(name, files, aliases, _same)) is not None}
    rest = [name for name in names if name not in found]
    if rest:
        by_prefix = [
            {name: stored for name in rest if (stored := _stored(name, files, aliases, rename)) is not None}
            for rename in _renames(rest, files, aliases)
        ]
        found |= max(by_prefix, key=len, default={})
    _refuse_missing([name for name in names if name not in found], files)
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
            _ = place.dtype
        except SpecError as error:
            raise CompileError(f"{files.component}: {name!r} in {place.file.name}: {error}; convert the weights first") from None
    return places


Rename = Callable[[str], str]


def _same(name: str) -> str:
    return name


def _stored(name: str, files: WeightFiles, aliases: Mapping[str, str], rename: Rename) -> str | None:
    """The name in the files that `name` is stored under, if it is there."""
    tied = [name, *([aliases[name]] if name in aliases else []), *(key for key, stored in aliases.items() if stored == name)]
    return next((stored for candidate in tied if (stored := rename(candidate)) in files.tensors), None)


def _renames(names: list[str], files: WeightFiles, aliases: Mapping[str, str]) -> Iterable[Rename]:
    """Every prefix that would lead one of `names` to a tensor, shortest first: put before, or taken away."""
    first = [names[0], *([aliases[names[0]]] if names[0] in aliases else [])]
    put = {stored.removesuffix(name) for name in first for stored in files.tensors if stored.endswith(f".{name}")}
    taken = {name.removesuffix(stored) for name in first for stored in files.tensors if name.endswith(f".{stored}")}

    def before(prefix: str) -> Rename:
        return lambda name: prefix + name

    def without(prefix: str) -> Rename:
        return lambda name: name.removeprefix(prefix) if name.startswith(prefix) else ""

    return [before(p) for p in sorted(put, key=_length)] + [without(p) for p in sorted(taken, key=_length)]


def _length(text: str) -> tuple[int, str]:
    return len(text), text


def _refuse_missing(missing: list[str], files: WeightFiles) -> None:
    if missing:
        where = ", ".join(file.name for file in files.files)
        raise CompileError(
            f"{files.component}: {len(missing)} parameters are not in {where}: {_first(missing)}; it has {len(files.tensors)} tensors, "
            f"such as {_first(sorted(files.tensors)[:3])}: do the weights belong to this configuration?"
        )


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:_NAMED]) + (f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else "")
