"""Runs an op's program in Triton's interpreter, exactly as its description says: arguments, scratch, grids."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import pytest
import torch

from tests.kernels.gpu_reference import TORCH, check, inputs, outputs, tensor_dtypes
from vitrify.engine.dtypes import DType
from vitrify.kernels import registry
from vitrify.kernels.aot.description import Variant
from vitrify.kernels.aot.programs import programs
from vitrify.kernels.aot.resolve import dimensions, grid, resolve, scratch_elements
from vitrify.kernels.aot.tiles import Tile, tile

__all__ = ["DTYPES", "interpret", "run_and_check", "slow"]

Tensors = Mapping[str, torch.Tensor]


def slow(*values: object) -> object:
    """A row of parameters for the slow run alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


DTYPES = (DType.BFLOAT16, slow(DType.FLOAT16), slow(DType.FLOAT32))


def run_and_check(
    op: str,
    activation: DType,
    dims: Mapping[str, int],
    attributes: Mapping[str, int | float] | None = None,
    tiles: Mapping[str, Mapping[str, int]] | None = None,
) -> Tensors:
    """Random inputs of these sizes through the program and the reference; returns the outputs. tiles: see `interpret`."""
    given, attributes = inputs(op, activation, dims), attributes or {}
    got = interpret(op, activation, given, attributes, tiles or {})
    check(op, activation, given, attributes, got, f"{op} {activation.value} {dict(dims)} {dict(attributes)}")
    return got


def interpret(
    op: str,
    activation: DType,
    given: Tensors,
    attributes: Mapping[str, int | float],
    tiles: Mapping[str, Mapping[str, int]],
) -> Tensors:
    """tiles: kernel → tile sizes instead of those for sm_80."""
    dims = dimensions(registry.contract(op), {name: tuple(tensor.shape) for name, tensor in given.items()})
    program, dtypes = programs()[op], tensor_dtypes(op, activation)
    written = outputs(op, activation, dims)
    scratch = {
        name: torch.full((elements,), torch.nan, dtype=TORCH[dtypes[name]])
        for name, elements in scratch_elements(program, dims, attributes).items()
    }
    tensors = {**given, **written, **scratch}
    for launch in resolve(program, activation, dims, attributes):
        kernel = launch.variant.kernel
        sizes = tiles[kernel.name] if kernel.name in tiles else _tile(launch.variant).sizes
        module, name = kernel.function.split(":")
        function = getattr(importlib.import_module(module), name)
        by_name = dict(zip((p.name for p in kernel.parameters), launch.arguments, strict=True))
        arguments = {key: tensors[value] if isinstance(value, str) else value for key, value in by_name.items()}
        constants = {**kernel.options, **launch.variant.constants, **sizes}
        absent = dict.fromkeys(set(function.arg_names) - set(arguments) - set(constants))
        function[grid(launch, sizes)](**arguments, **constants, **absent)
    return written


def _tile(variant: Variant) -> Tile:
    return tile(variant, "sm_80")
