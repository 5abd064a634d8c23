"""The part of ONNX Runtime that calls the op library, run as a script: no ONNX Runtime for CUDA is needed to drive the CUDA ops.

Reads JSON from standard input: `library`, `stream`, and `calls`, each an op, the provider, inputs (name → [dtype, shape,
address]), outputs (name → [dtype, address]) and attributes. Writes what each call answers, an error's words or the outputs as
[dtype, shape]; what is registered for CUDA, each an op, its inputs' and its outputs' dtypes; and what registering said.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

_ELEMENTS = {"float32": 1, "int8": 3, "float16": 10, "bfloat16": 16}
_DTYPES = {number: name for name, number in _ELEMENTS.items()}
_P, _I64, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t, ctypes.c_int

# Objects that the library holds by pointer: the place of each in this list, from 1.
_kept: list[Any] = [None]
_attributes: dict[str, Any] = {}
_call: dict[str, Any] = {}


def _hand_out(thing: Any) -> int:
    _kept.append(thing)
    return len(_kept) - 1


def _set(pointer: int, value: Any, kind: Any = _P) -> None:
    ctypes.cast(pointer, ctypes.POINTER(kind))[0] = value


def _create_status(_code: int, message: bytes) -> int:
    return _hand_out(message.decode())


def _attribute(kind: type, c_kind: Any) -> Callable[[int, bytes, int], int]:
    def read(_info: int, name: bytes, out: int) -> int:
        value = _attributes.get(name.decode())
        if not isinstance(value, kind):
            return _hand_out(f"no {kind.__name__} {name.decode()}")
        _set(out, value, c_kind)
        return 0

    return read


def _get_input(_context: int, index: int, out: int) -> int:
    dtype, shape, address = list(_call["inputs"].values())[index]
    _set(out, _hand_out((dtype, shape, address)))
    return 0


def _get_output(_context: int, index: int, dims: int, rank: int, out: int) -> int:
    shape = list(ctypes.cast(dims, ctypes.POINTER(_I64))[:rank])
    _call["shapes"][index] = shape
    _set(out, _hand_out(("", shape, list(_call["outputs"].values())[index][1])))
    return 0


def _copy_handle(value: int, out: int) -> int:
    _set(out, value)
    return 0


def _dimensions(info: int, dims: int, rank: int) -> int:
    target = ctypes.cast(dims, ctypes.POINTER(_I64))
    for axis in range(rank):
        target[axis] = _kept[info][1][axis]
    return 0


def _done(*_: Any) -> int:
    return 0


def _write(what: Callable[[int], Any], kind: Any = _P) -> Callable[[int, int], int]:
    def write(handle: int, out: int) -> int:
        _set(out, what(handle), kind)
        return 0

    return write


def _constant(_info: int, _index: int, is_constant: int, _out: int) -> int:
    _set(is_constant, 0, _INT)
    return 0


def _node_name(_info: int, out: int, _size: int) -> int:
    ctypes.memmove(out, b"node\0", 5)
    return 0


_ops: list[int] = []
_SLOTS: dict[int, tuple[Callable[..., int], tuple[Any, ...]]] = {
    0: (_create_status, (_INT, ctypes.c_char_p)),
    26: (lambda _name, out: _copy_handle(1, out), (ctypes.c_char_p, _P)),
    27: (lambda _domain, op: _ops.append(op) or 0, (_P, _P)),
    28: (_done, (_P, _P)),
    51: (_write(lambda handle: _kept[handle][2]), (_P, _P)),
    61: (_write(lambda handle: len(_kept[handle][1]), _SIZE), (_P, _P)),
    62: (_dimensions, (_P, _P, _SIZE)),
    65: (_copy_handle, (_P, _P)),
    85: (_attribute(float, ctypes.c_float), (_P, ctypes.c_char_p, _P)),
    86: (_attribute(int, _I64), (_P, ctypes.c_char_p, _P)),
    90: (_get_input, (_P, _SIZE, _P)),
    91: (_get_output, (_P, _SIZE, _P, _SIZE, _P)),
    93: (_done, (_P,)),
    99: (_done, (_P,)),
    193: (_write(lambda _context: _call["stream"]), (_P, _P)),
    244: (_node_name, (_P, _P, _P)),
    249: (_constant, (_P, _SIZE, _P, _P)),
}
_SLOT_COUNT = 300


def _table() -> tuple[Any, list[Any]]:
    functions = [ctypes.CFUNCTYPE(_P, *kinds)(function) for function, kinds in _SLOTS.values()]
    table = (_P * _SLOT_COUNT)()
    for slot, function in zip(_SLOTS, functions, strict=True):
        table[slot] = ctypes.cast(function, _P).value
    return table, functions


def _word(op: int, index: int, result: Any, *kinds: Any) -> Any:
    """The function in this word of an OrtCustomOp."""
    return ctypes.CFUNCTYPE(result, *kinds)(ctypes.cast(op, ctypes.POINTER(_P))[index])


def _signature(op: int) -> tuple[str, str, list[str], list[str]]:
    """Name, provider, dtypes of inputs and outputs."""
    name = _word(op, 2, ctypes.c_char_p, _P)(op).decode()
    provider = _word(op, 3, ctypes.c_char_p, _P)(op)
    types = []
    for kind, count in ((4, 5), (6, 7)):
        numbers = [_word(op, kind, _INT, _P, _SIZE)(op, i) for i in range(_word(op, count, _SIZE, _P)(op))]
        types.append([_DTYPES[number] for number in numbers])
    return name, provider.decode() if provider else "", types[0], types[1]


def _run(op: int) -> str | None:
    """An error's words, or None."""
    kernel = _P()
    status = _word(op, 17, _P, _P, _P, _P, _P)(op, None, None, ctypes.addressof(kernel))
    if status:
        return str(_kept[status])
    status = _word(op, 18, _P, _P, _P)(kernel.value, None)
    _word(op, 9, None, _P)(kernel.value)
    return str(_kept[status]) if status else None


def main() -> None:
    work = json.load(sys.stdin)
    table, functions = _table()
    get_api = ctypes.CFUNCTYPE(_P, ctypes.c_uint32)(lambda _version: ctypes.addressof(table))
    base = (_P * 2)(ctypes.cast(get_api, _P).value, None)
    library = ctypes.CDLL(work["library"])
    library.RegisterCustomOps.restype = _P
    library.vitrify_gpu_status.restype = ctypes.c_char_p
    status = library.RegisterCustomOps(_P(1), ctypes.byref(base))
    signatures = [_signature(op) for op in _ops]
    answers: list[Any] = []
    for call in work["calls"]:
        _attributes.clear()
        _attributes.update(call["attributes"])
        _call.clear()
        _call.update(call, stream=work["stream"], shapes={})
        wanted = (call["op"], call["provider"], *([row[0] for row in call[part].values()] for part in ("inputs", "outputs")))
        ((op, outputs),) = [(op, row[3]) for op, row in zip(_ops, signatures, strict=True) if row == wanted]
        said = _run(op)
        answers.append(said or [[dtype, _call["shapes"][i]] for i, dtype in enumerate(outputs)])
    registered = [[row[0], *row[2:]] for row in signatures if row[1] == "CUDAExecutionProvider"]
    failed = str(_kept[status]) if status else ""
    gpu = library.vitrify_gpu_status().decode()
    print(json.dumps({"answers": answers, "registered": registered, "failed": failed, "gpu": gpu}))
    del functions


if __name__ == "__main__":
    main()
