"""What a cubin says of its kernel: parameters, registers, stack, threads. Read from the ELF file itself, no tool needed.

A cubin is a 64-bit ELF file. `.nv.info.<entry>` and `.nv.info` hold records `format: u8, attribute: u8, size: u16`, followed by
`size` bytes where the format is 4. Attributes are numbered as `cuobjdump -elf` names them; NVIDIA documents the tool, not the
numbers (CUDA Binary Utilities, https://docs.nvidia.com/cuda/cuda-binary-utilities), so that the tests hold them against it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vitrify.engine.errors import CompileError

__all__ = ["CubinFacts", "CubinParameter", "read"]

_SIZED = 4
_REQUIRED_THREADS = 0x10
_FRAME_SIZE = 0x11
_STACK_SIZE = 0x12
_PARAMETER = 0x17
_REGISTERS = 0x2F
_NO_BITS = 8  # The section type without bytes in the file.


@dataclass(frozen=True)
class CubinParameter:
    """One parameter's place in the buffer that a launch passes."""

    offset: int
    size: int


@dataclass(frozen=True)
class CubinFacts:
    """entry: the kernel's symbol. parameters: in order. stack_bytes: local memory per thread. threads: per block."""

    entry: str
    parameters: tuple[CubinParameter, ...]
    registers: int
    stack_bytes: int
    threads: int


def read(cubin: bytes) -> CubinFacts:
    """The facts of a cubin that holds exactly one kernel. Raises CompileError if it is none."""
    try:
        return _read(cubin)
    except (struct.error, IndexError, ValueError) as error:
        raise CompileError(f"cubin of {len(cubin)} bytes: it is damaged, or no cubin: {error}") from error


def _read(cubin: bytes) -> CubinFacts:
    sections = dict(_sections(cubin))
    entries = [name.removeprefix(".nv.info.") for name in sections if name.startswith(".nv.info.")]
    if len(entries) != 1:
        raise ValueError(f"it holds {len(entries)} kernels, expected one")
    own, shared = list(_records(sections[f".nv.info.{entries[0]}"])), list(_records(sections[".nv.info"]))

    parameters = {}
    for attribute, value in own:
        if attribute == _PARAMETER:
            _index, ordinal, offset, packed = struct.unpack("<IHHI", value)
            parameters[ordinal] = CubinParameter(offset, packed >> 18)
    if sorted(parameters) != list(range(len(parameters))):
        raise ValueError(f"its parameters are numbered {sorted(parameters)}")
    threads = [struct.unpack("<III", value) for attribute, value in own if attribute == _REQUIRED_THREADS]
    return CubinFacts(
        entry=entries[0],
        parameters=tuple(parameters[i] for i in range(len(parameters))),
        registers=_largest(shared, _REGISTERS),
        stack_bytes=max(_largest(shared, _FRAME_SIZE), _largest(shared, _STACK_SIZE)),
        threads=threads[0][0] * threads[0][1] * threads[0][2],
    )


def _largest(records: list[tuple[int, bytes]], attribute: int) -> int:
    """A record of `.nv.info` is (symbol, value): one for the kernel, and one for each function that it calls."""
    values = [struct.unpack("<II", value)[1] for found, value in records if found == attribute]
    if not values:
        raise ValueError(f"it has no record of attribute {attribute:#x}")
    return int(max(values))


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    _name, _type, _flags, _address, start, length = headers[names_at]
    names = elf[start : start + length]
    for name, kind, _flags, _address, start, length in headers:
        end = names.index(b"\0", name)
        yield names[name:end].decode(), b"" if kind == _NO_BITS else elf[start : start + length]


def _records(section: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, at)
        at += 4
        if form == _SIZED:
            yield attribute, section[at : at + size]
            at += size
        else:
            yield attribute, struct.pack("<H", size)
