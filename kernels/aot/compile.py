"""One variant for one architecture: Triton's compiler, run without a GPU or a driver, and what is refused of its output."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import CompileError
from vitrify.kernels.aot import cubin, sass
from vitrify.kernels.aot.description import HIDDEN_ARGUMENTS, Constant, Integer, Pointer, Variant
from vitrify.kernels.aot.targets import Arch
from vitrify.kernels.aot.tiles import Tile

__all__ = ["Compiled", "compile_variant", "key"]

_TRITON_TYPES = {DType.FLOAT32: "fp32", DType.FLOAT16: "fp16", DType.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class Compiled:
    """A compiled variant. cubin, ptx: its bytes. shared_bytes: dynamic shared memory of a block. parameters: (offset, size) of
    each, hidden ones included, as the cubin has them. tensor_core_instructions: in the code, not per run."""

    entry: str
    cubin: bytes
    ptx: bytes
    shared_bytes: int
    num_warps: int
    registers: int
    stack_bytes: int
    parameters: tuple[tuple[int, int], ...]
    tensor_core_instructions: int


def key(variant: Variant, arch: Arch, tile: Tile) -> str:
    """sha256 of all that an image depends on: the sources of the function and of what it calls, types, constants, compiler."""
    import triton

    parts = {
        "source": _function(variant).cache_key,
        "parameters": [[p.name, *_type(p, variant.dtype)] for p in variant.kernel.parameters],
        "constants": _constants(variant, tile),
        "tile": asdict(tile),
        "arch": arch.name,
        "triton": triton.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def compile_variant(variant: Variant, arch: Arch, tile: Tile) -> Compiled:
    """Compile, and check what came out.

    Raises CompileError if Triton fails, if the cubin's parameters are not the description's, if it uses local memory (spills),
    more shared memory than the architecture has, global scratch, or no matrix instruction where the kernel must.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    what = f"{variant.name} for {arch.name}"
    function = _function(variant)
    types = {p.name: _type(p, variant.dtype) for p in variant.kernel.parameters}
    constants = _constants(variant, tile)
    unknown = (set(types) | set(constants)) - set(function.arg_names)
    if unknown:
        raise CompileError(f"{what}: {variant.kernel.function} has no parameters {sorted(unknown)}")
    order = [name for name in function.arg_names if name in types]
    if order != list(types):
        raise CompileError(f"{what}: {variant.kernel.function} takes {order}, the description says {list(types)}")
    source = ASTSource(
        function,
        {name: types[name][0] if name in types else "constexpr" for name in function.arg_names},
        {name: constants.get(name) for name in function.arg_names if name not in types},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names) if types.get(name, ("", 0))[1] == 16},
    )
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}
    # Source lines would put this machine's paths into the cubin.
    with tempfile.TemporaryDirectory() as cache, triton.knobs.compilation.scope(), triton.knobs.cache.scope():
        triton.knobs.compilation.disable_line_info = True
        triton.knobs.compilation.always_compile = True
        triton.knobs.cache.dir = cache
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", arch.capability, 32), options=options)
        except Exception as error:  # Triton raises what its stages raise; none of it is ours.
            raise CompileError(f"{what}: Triton failed: {type(error).__name__}: {error}") from error
    return _checked(what, variant, arch, compiled)


def _checked(what: str, variant: Variant, arch: Arch, compiled: Any) -> Compiled:
    metadata, binary, ptx = compiled.metadata, compiled.asm["cubin"], compiled.asm["ptx"]
    facts = cubin.read(binary)
    found = tuple((p.offset, p.size) for p in facts.parameters)
    expected = _layout(variant)
    if found != expected:
        raise CompileError(f"{what}: the cubin's parameters (offset, size) are {found}, the description's {expected}")
    if _ptx_sizes(ptx) != [size for _offset, size in expected]:
        raise CompileError(f"{what}: the PTX has parameters of {_ptx_sizes(ptx)} bytes, the description {expected}")
    if metadata.shared > arch.shared_bytes:
        raise CompileError(
            f"{what}: needs {metadata.shared} bytes of shared memory, the limit is {arch.shared_bytes}; smaller tiles"
        )
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise CompileError(f"{what}: needs global scratch memory, which no launch of ours provides")
    code = sass.opcodes(binary)
    local = sum(count for opcode, count in code.items() if opcode in ("LDL", "STL"))
    if facts.stack_bytes or local:
        raise CompileError(
            f"{what}: spills: {facts.stack_bytes} bytes of stack, {local} local loads and stores; smaller tiles or more warps"
        )
    if facts.threads != metadata.num_warps * 32:
        raise CompileError(f"{what}: the cubin wants {facts.threads} threads, Triton says {metadata.num_warps} warps")
    matrix = code[arch.tensor_core]
    if variant.kernel.tensor_core and variant.dtype != DType.FLOAT32 and not matrix:
        raise CompileError(f"{what}: no {arch.tensor_core} instruction in it; it holds {sorted(code)}")
    return Compiled(
        entry=facts.entry,
        cubin=binary,
        ptx=ptx.encode(),
        shared_bytes=metadata.shared,
        num_warps=metadata.num_warps,
        registers=facts.registers,
        stack_bytes=facts.stack_bytes,
        parameters=found,
        tensor_core_instructions=matrix,
    )


def _function(variant: Variant) -> Any:
    module, name = variant.kernel.function.split(":")
    return getattr(importlib.import_module(module), name)


def _type(parameter: Pointer | Integer, activation: DType) -> tuple[str, int]:
    """Triton's name of a parameter's type, and what its value is a multiple of."""
    if isinstance(parameter, Integer):
        return "i32", parameter.divisible_by
    return f"*{_TRITON_TYPES[parameter.resolve(activation)]}", 16


def _constants(variant: Variant, tile: Tile) -> Mapping[str, Constant]:
    return {**variant.kernel.options, **variant.constants, **tile.sizes}


def _layout(variant: Variant) -> tuple[tuple[int, int], ...]:
    """(offset, size) of each parameter: pointers are 8 bytes, int32 four, each aligned to its size."""
    sizes = [8 if isinstance(p, Pointer) else 4 for p in variant.kernel.parameters] + [8] * len(HIDDEN_ARGUMENTS)
    layout, at = [], 0
    for size in sizes:
        at = -(-at // size) * size
        layout.append((at, size))
        at += size
    return tuple(layout)


def _ptx_sizes(ptx: str) -> list[int]:
    head = re.search(r"\.entry [^(]*\(([^)]*)\)", ptx)
    return [int(bits) // 8 for bits in re.findall(r"\.param \.[us](\d+)", head[1])] if head else []
