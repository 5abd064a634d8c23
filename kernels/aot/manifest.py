"""The manifest of what was built, from the descriptions in the folders and the images' records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitrify.engine.cubins import (
    Argument,
    ConditionSpec,
    CubinManifest,
    GpuKernel,
    GpuProgram,
    Image,
    LaunchSpec,
    ScratchSpec,
    VariantSpec,
)
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.kernels import registry
from vitrify.kernels.aot import expressions
from vitrify.kernels.aot.description import HIDDEN_ARGUMENTS, Integer, Kernel, Launch, Pointer, Program, Variant
from vitrify.kernels.aot.programs import programs

__all__ = ["describe"]


def describe(compiler: str, images: Mapping[str, Mapping[str, Image]], variants: Sequence[Variant]) -> CubinManifest:
    """The manifest of these variants. images: variant's name → architecture → image.

    An op is listed if something of every launch of its program was built. Raises SpecError for an expression that is outside
    the language or names what is not there: what is written down can be evaluated.
    """
    built: dict[str, dict[str, VariantSpec]] = {}
    kernels: dict[str, Kernel] = {}
    for variant in variants:
        kernels[variant.kernel.name] = variant.kernel
        constants = {**variant.kernel.options, **variant.constants}
        spec = VariantSpec(variant.dtype.value, constants, images.get(variant.name, {}))
        built.setdefault(variant.kernel.name, {})[variant.name] = spec
    runnable = {op: p for op, p in programs().items() if all(launch.kernel.name in kernels for launch in p.launches)}
    return CubinManifest(
        compiler=compiler,
        kernels={name: _kernel(kernel, built[name]) for name, kernel in kernels.items()},
        programs={op: _program(program) for op, program in runnable.items()},
    )


def _kernel(kernel: Kernel, variants: Mapping[str, VariantSpec]) -> GpuKernel:
    numbers = {p.name for p in kernel.parameters if isinstance(p, Integer)} | set(kernel.sizes) | set(kernel.options)
    for variant in variants.values():
        for image in variant.images.values():
            known = numbers | set(variant.constants) | set(image.tile)
            _check(f"kernel {kernel.name}", kernel.grid, known)
            _check(f"kernel {kernel.name}", (kernel.flops, kernel.moved_bytes), known | {"itemsize"})
    return GpuKernel(
        arguments=tuple(_argument(p) for p in kernel.parameters),
        hidden=HIDDEN_ARGUMENTS,
        sizes=kernel.sizes,
        grid=kernel.grid,
        flops=kernel.flops,
        moved_bytes=kernel.moved_bytes,
        tensor_core=kernel.tensor_core,
        variants=dict(variants),
    )


def _argument(parameter: Pointer | Integer) -> Argument:
    if isinstance(parameter, Integer):
        return Argument(parameter.name, "int32", "", False, parameter.divisible_by, parameter.least)
    return Argument(parameter.name, "pointer", _dtype(parameter.dtype), parameter.written, 16, 0)


def _dtype(dtype: DType | str) -> str:
    return dtype.value if isinstance(dtype, DType) else dtype


def _program(program: Program) -> GpuProgram:
    contract = registry.contract(program.op)
    tensors = {t.name for t in (*contract.inputs, *contract.outputs)} | {s.name for s in program.scratch}
    dims = {term for t in contract.inputs for dim in t.shape if isinstance(dim, str) for term in dim.split(" + ")}
    numbers = dims | {a.name for a in contract.attributes if a.kind is int}
    floats = {a.name for a in contract.attributes if a.kind is float}
    where = f"op {program.op}"
    _check(where, tuple(s.elements for s in program.scratch), numbers)
    _check(where, tuple(side for c in program.conditions for side in (c.value, c.other)), numbers)
    return GpuProgram(
        version=program.version,
        scratch=tuple(ScratchSpec(s.name, _dtype(s.dtype), s.elements) for s in program.scratch),
        launches=tuple(_launch(where, launch, tensors, numbers, floats) for launch in program.launches),
        conditions=tuple(ConditionSpec(c.value, c.relation, c.other) for c in program.conditions),
    )


def _launch(where: str, launch: Launch, tensors: set[str], numbers: set[str], floats: set[str]) -> LaunchSpec:
    kernel = launch.kernel
    arguments = {}
    for name in (*(p.name for p in kernel.parameters), *kernel.sizes):
        arguments[name] = launch.arguments.get(name, name)
    for parameter in kernel.parameters:
        if isinstance(parameter, Pointer):
            tensor = arguments[parameter.name]
            if tensor not in tensors:
                raise SpecError(f"{where}: {kernel.name} gets {tensor!r} for {parameter.name}; tensors are {sorted(tensors)}")
        else:
            _check(where, (arguments[parameter.name],), numbers)
    _check(where, tuple(arguments[name] for name in kernel.sizes), numbers)
    unknown = set(launch.arguments) - set(arguments)
    picked = {name for variant in kernel.variants for name in variant}
    if unknown or picked != set(launch.constants):
        raise SpecError(
            f"{where}: {kernel.name} has no parameters {sorted(unknown)}; its variants differ in {sorted(picked)}, "
            f"the launch picks by {sorted(launch.constants)}"
        )
    _check(where, tuple(e for e in launch.constants.values() if e not in floats), numbers)
    return LaunchSpec(kernel.name, arguments, dict(launch.constants))


def _check(where: str, texts: Sequence[str], known: set[str]) -> None:
    for text in texts:
        unknown = expressions.names(text) - known
        if unknown:
            raise SpecError(f"{where}: expression {text!r} names {sorted(unknown)}; known: {', '.join(sorted(known))}")
