"""A node's launches in numbers: the description of its op, met with the shapes and attributes of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.kernels.aot.description import ACTIVATION, Constant, Integer, Kernel, Launch, Pointer, Program, Variant, as_float32
from vitrify.kernels.aot.expressions import evaluate
from vitrify.kernels.op import OpContract

__all__ = ["ResolvedLaunch", "dimensions", "grid", "resolve", "scratch_elements"]


@dataclass(frozen=True)
class ResolvedLaunch:
    """arguments: in the kernel's order, a tensor's name or a whole number. numbers: whole-number arguments and sizes by name."""

    variant: Variant
    arguments: tuple[str | int, ...]
    numbers: Mapping[str, int]


def dimensions(contract: OpContract, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Dimension → size, from the inputs' shapes. Raises SpecError where they contradict each other or the contract."""
    known: dict[str, int] = {}
    for tensor in contract.inputs:
        if len(shapes[tensor.name]) != len(tensor.shape):
            raise SpecError(
                f"op {contract.name}: {tensor.name} has rank {len(shapes[tensor.name])}, expected {len(tensor.shape)}"
            )
        for dim, size in zip(tensor.shape, shapes[tensor.name], strict=True):
            if isinstance(dim, str) and " + " not in dim and known.setdefault(dim, size) != size:
                raise SpecError(f"op {contract.name}: {tensor.name} has {size} along {dim}, expected {known[dim]}")
    for tensor in contract.inputs:
        if tensor.resolve(known) != tuple(shapes[tensor.name]):
            raise SpecError(
                f"op {contract.name}: {tensor.name} has shape {shapes[tensor.name]}, expected {tensor.resolve(known)}"
            )
    return known


def resolve(
    program: Program, activation: DType, dims: Mapping[str, int], attributes: Mapping[str, int | float]
) -> tuple[ResolvedLaunch, ...]:
    """The launches of one call. Whether their variants were compiled is not asked here.

    Raises SpecError for a condition that the call breaks, and for a whole number that is not the multiple that its kernel was
    compiled for, or beyond int32.
    """
    values = {**dims, **{name: value for name, value in attributes.items() if isinstance(value, int)}}
    for condition in program.conditions:
        value, other = evaluate(condition.value, values), evaluate(condition.other, values)
        if value > other or (condition.relation == "=" and value != other):
            most = "at most " if condition.relation == "<=" else ""
            raise SpecError(f"op {program.op}: {condition.value} is {value}, expected {most}{other} ({condition.other})")
    return tuple(_launch(program.op, launch, activation, values, attributes) for launch in program.launches)


def _launch(
    op: str, launch: Launch, activation: DType, values: Mapping[str, int], attributes: Mapping[str, int | float]
) -> ResolvedLaunch:
    kernel = launch.kernel
    numbers: dict[str, int] = {}
    arguments: list[str | int] = []
    for parameter in kernel.parameters:
        given = launch.arguments.get(parameter.name, parameter.name)
        if isinstance(parameter, Pointer):
            arguments.append(given)
            continue
        numbers[parameter.name] = _integer(op, parameter, evaluate(given, values))
        arguments.append(numbers[parameter.name])
    for name in kernel.sizes:
        numbers[name] = evaluate(launch.arguments.get(name, name), values)
    constants: dict[str, Constant] = {}
    for name, expression in launch.constants.items():
        value = attributes.get(expression)
        constants[name] = as_float32(value) if isinstance(value, float) else evaluate(expression, values)
    return ResolvedLaunch(Variant(kernel, _dtype(kernel, activation), constants), tuple(arguments), numbers)


def _integer(op: str, parameter: Integer, value: int) -> int:
    if value % parameter.divisible_by:
        raise SpecError(f"op {op}: {parameter.name} is {value}, its kernel takes multiples of {parameter.divisible_by}")
    if not -(2**31) <= value < 2**31:
        raise SpecError(f"op {op}: {parameter.name} is {value}, beyond int32")
    return value


def _dtype(kernel: Kernel, activation: DType) -> DType:
    """Of the variant: the activations', if any pointer of the kernel follows them."""
    follows = any(isinstance(p, Pointer) and p.dtype == ACTIVATION for p in kernel.parameters)
    return activation if follows else kernel.dtypes[0]


def scratch_elements(program: Program, dims: Mapping[str, int], attributes: Mapping[str, int | float]) -> dict[str, int]:
    """Scratch buffer → its number of elements in one call."""
    values = {**dims, **{name: value for name, value in attributes.items() if isinstance(value, int)}}
    return {scratch.name: evaluate(scratch.elements, values) for scratch in program.scratch}


def grid(launch: ResolvedLaunch, tile: Mapping[str, int]) -> tuple[int, int, int]:
    """Blocks along x, y, z with these tile sizes."""
    kernel = launch.variant.kernel
    whole = {k: v for k, v in {**kernel.options, **launch.variant.constants}.items() if isinstance(v, int)}
    sizes = [evaluate(text, {**whole, **tile, **launch.numbers}) for text in kernel.grid]
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z
