"""Layers in bfloat16 or int8, in eager PyTorch: what the ops Linear…Bf16, Linear…Int8, Conv2d…Bf16 and FusedAttention…Bf16
compute, put into a module. A linear layer or a convolution goes by its weight's name, `path.weight`, an attention by its
module's, `path`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vitrify.engine.session import Array
from vitrify.export.rounded_attention import attention_replaced
from vitrify.kernels import registry

__all__ = ["SUFFIXES", "Runs", "deciding", "int8_rows", "layer_errors", "output_errors", "rounded"]

SUFFIXES = {"bf16": "Bf16", "int8": "Int8"}
"""Precision → the ending of our ops' names."""

_SMALLEST = 1e-30
_KEPT = 0.95
_WEIGHT = ".weight"


def int8_rows(weight: Array) -> tuple[Array, Array]:
    """[out, in] float32 → its int8 values and [out] float32 scales: each row's largest magnitude is 127."""
    scale = np.maximum(np.abs(weight).max(axis=1, initial=0.0), np.float32(_SMALLEST)) / np.float32(127)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale.astype(np.float32)


@dataclass(frozen=True)
class Runs:
    """A component in eager PyTorch, and a set of runs of it.

    calls: each makes its run again and gives the output. prefix: what `module` puts before the weights' names.
    """

    module: nn.Module
    calls: Sequence[Callable[[], torch.Tensor]]
    prefix: str = ""


def _rounded(layer: nn.Linear | nn.Conv2d, x: torch.Tensor, precision: str) -> torch.Tensor:
    """What the layer's op gives for x in `precision`: "bf16", or for x: [batch, tokens, in] "int8"."""
    weight = [layer.weight.detach()]
    if precision == "int8":
        weight = [torch.from_numpy(part) for part in int8_rows(weight[0].numpy())]
    bias = [] if layer.bias is None else [layer.bias.detach()]
    name = "Conv2d" if isinstance(layer, nn.Conv2d) else "Linear" if bias else "LinearNoBias"
    op = registry.reference(name + SUFFIXES[precision])
    result: torch.Tensor = op(x, *weight, *bias)[0]
    return result


@contextlib.contextmanager
def rounded(module: nn.Module, layers: Mapping[str, str], prefix: str = "") -> Iterator[None]:
    """Inside, these layers of `module` compute in these precisions.

    prefix: what `module` puts before their names.
    """
    linears, attentions = _parted({name: precision for name, precision in layers.items() if precision != "fp32"})
    # First of its hooks: a streamed module drops its weights in a later one.
    hooks = [
        module.get_submodule(prefix + name.removesuffix(_WEIGHT)).register_forward_hook(_hook(precision), prepend=True)
        for name, precision in linears.items()
    ]
    try:
        with attention_replaced(module, attentions, lambda _name, _exact, rounded: rounded(), prefix):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def layer_errors(runs: Runs, precisions: Mapping[str, str]) -> dict[str, float]:
    """Layer → ‖a − b‖₂ / ‖b‖₂ of its output in that precision, on the layer's own exact inputs over all runs.

    An attention that its module does not leave to PyTorch's scaled_dot_product_attention cannot be measured and is left out.
    """
    sums = {name: [0.0, 0.0] for name in precisions}
    linears, attentions = _parted(precisions)

    def add(name: str, output: torch.Tensor, exact: torch.Tensor) -> None:
        for place, tensor in enumerate((output - exact, exact)):
            sums[name][place] += float(tensor.double().square().sum())

    def measure(name: str) -> Any:
        def hook(layer: Any, inputs: Any, output: Any) -> None:
            add(name, _rounded(layer, inputs[0], precisions[name]), output)

        return hook

    def exact_attention(name: str, exact: torch.Tensor, rounded: Callable[[], torch.Tensor]) -> torch.Tensor:
        measured.add(name)
        add(name, rounded(), exact)
        return exact

    measured = set(linears)
    hooks = [
        runs.module.get_submodule(runs.prefix + name.removesuffix(_WEIGHT)).register_forward_hook(measure(name), prepend=True)
        for name in linears
    ]
    try:
        with attention_replaced(runs.module, attentions, exact_attention, runs.prefix):
            for call in runs.calls:
                call()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: math.sqrt(off / whole) if whole else 0.0 for name, (off, whole) in sums.items() if name in measured}


def output_errors(runs: Runs, layers: Mapping[str, str], exact: Mapping[int, torch.Tensor]) -> dict[int, float]:
    """Place of a run → ‖a − b‖₂ / ‖b‖₂ of its output with these layers in these precisions.

    exact: the outputs without them, by place: of the runs to make. Where one is all zero: 0 if the rounded one is too, else
    infinity; infinity too where the rounded one is not a number.
    """
    with rounded(runs.module, layers, runs.prefix):
        return {place: _relative(runs.calls[place]().double(), output.double()) for place, output in exact.items()}


def deciding(errors: Mapping[int, float]) -> int:
    """The place of the error that 95 of 100 do not exceed: of up to 19 the largest."""
    smallest_first = sorted(errors, key=lambda place: errors[place])
    return smallest_first[math.ceil(_KEPT * len(smallest_first)) - 1]


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    off, whole = float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(b))
    if off == 0:
        return 0.0
    return off / whole if whole and not math.isnan(off) else math.inf


def _hook(precision: str) -> Callable[[Any, Any, Any], torch.Tensor]:
    def replace(layer: Any, inputs: Any, _output: Any) -> torch.Tensor:
        return _rounded(layer, inputs[0], precision)

    return replace


def _parted(layers: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The linear layers with their precisions, and the attentions."""
    linears = {name: precision for name, precision in layers.items() if name.endswith(_WEIGHT)}
    return linears, [name for name in layers if name not in linears]
