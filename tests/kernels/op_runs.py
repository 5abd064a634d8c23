"""One op executed by everything that can: the native kernel, its PyTorch reference, its body, ONNX Runtime with our library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from tests.kernels.op_models import one_op_model, session
from vitrify.engine.native_kernel import NativeKernel
from vitrify.kernels import registry

__all__ = ["Array", "Attributes", "native", "others"]

Array = NDArray[Any]
Attributes = Mapping[str, int | float]


def native(op: str, given: Mapping[str, Array], attributes: Attributes, *, threads: int = 1) -> list[Array]:
    """The kernel by its C interface, at the level that is forced, into outputs full of NaN.

    given: every input by name, in the contract's order.
    """
    contract = registry.contract(op)
    sizes = {dim: n for t in contract.inputs for dim, n in zip(t.shape, given[t.name].shape, strict=True)}
    outputs = [
        np.full([dim if isinstance(dim, int) else sizes[dim] for dim in t.shape], np.nan, np.float32) for t in contract.outputs
    ]
    NativeKernel(op, [None] * len(contract.inputs), attributes=attributes).run(list(given.values()), outputs, threads=threads)
    return outputs


def others(op: str, given: Mapping[str, Array], attributes: Attributes) -> dict[str, list[Array]]:
    """What the reference, the body in two runtimes, and our kernel in ONNX Runtime give, by their names."""
    model = one_op_model(op, attributes=attributes)
    marked = one_op_model(op, attributes=attributes, marked=True)
    feed = dict(given)
    return {
        "reference": [y.numpy() for y in registry.reference(op)(*map(torch.from_numpy, given.values()), **attributes)],
        "body": session(model.SerializeToString(), library=False).run(None, feed),
        "evaluator": ReferenceEvaluator(model).run(None, feed),
        # The marked body adds 1000: it did not run.
        "kernel": session(marked.SerializeToString(), library=True).run(None, feed),
    }
