"""Random inputs of an op as its contract describes them, and its float64 reference: for interpreted and compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tests.compare import assert_close
from vitrify.engine.dtypes import DType
from vitrify.kernels import registry
from vitrify.kernels.aot.description import ACTIVATION, Pointer
from vitrify.kernels.aot.programs import programs

__all__ = ["TORCH", "check", "inputs", "outputs", "tensor_dtypes"]

TORCH = {DType.FLOAT32: torch.float32, DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16}


def tensor_dtypes(op: str, activation: DType) -> dict[str, DType]:
    """Tensor of the op → its dtype on a GPU, as the kernels' pointers say."""
    program = programs()[op]
    found: dict[str, DType] = {scratch.name: _resolve(scratch.dtype, activation) for scratch in program.scratch}
    for launch in program.launches:
        for parameter in launch.kernel.parameters:
            if isinstance(parameter, Pointer):
                tensor, dtype = launch.arguments.get(parameter.name, parameter.name), parameter.resolve(activation)
                assert found.setdefault(tensor, dtype) == dtype, f"{op}: {tensor} is {found[tensor]} and {dtype}"
    return found


def _resolve(dtype: DType | str, activation: DType) -> DType:
    return activation if dtype == ACTIVATION else DType(dtype)


def inputs(op: str, activation: DType, dims: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Standard normal, weights scaled by 1/√in, factors and norm weights near 1, rotary tables of angles."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = tensor_dtypes(op, activation)
    angles = None
    made = {}
    for tensor in registry.contract(op).inputs:
        shape = tensor.resolve(dims)
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if tensor.name == "weight":
            values /= shape[1] ** 0.5
        elif "norm" in tensor.name:
            values = 1 + 0.2 * values
        elif tensor.name in ("cos", "sin"):
            angles = values if angles is None else angles
            values = angles.cos() if tensor.name == "cos" else angles.sin()
        elif tensor.name == "r_ref":
            # As in use: near the residual.
            values = (made["h1"].double() - made["h0"].double()) + 0.1 * values
        made[tensor.name] = values.to(TORCH[dtypes[tensor.name]])
    return made


def outputs(op: str, activation: DType, dims: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Poisoned: NaN everywhere."""
    dtypes = tensor_dtypes(op, activation)
    return {
        tensor.name: torch.full(tensor.resolve(dims), torch.nan, dtype=TORCH[dtypes[tensor.name]])
        for tensor in registry.contract(op).outputs
    }


def check(
    op: str,
    activation: DType,
    given: Mapping[str, torch.Tensor],
    attributes: Mapping[str, int | float],
    got: Mapping[str, torch.Tensor],
    what: str,
) -> None:
    """Every output against the reference in float64, within the contract's tolerance for these activations."""
    contract = registry.contract(op)
    wanted = registry.reference(op)(*(given[t.name].double() for t in contract.inputs), **attributes)
    for tensor, expected in zip(contract.outputs, wanted, strict=True):
        actual = got[tensor.name].double().numpy()
        assert_close(actual, np.asarray(expected), contract.tolerances[activation], f"{what}: {tensor.name}")
