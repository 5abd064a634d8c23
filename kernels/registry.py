"""Every op by name. Importing this loads contracts alone; references (torch) and bodies (onnxscript) come when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from vitrify.engine.errors import SpecError
from vitrify.kernels.ada_layer_norm import contract as ada_layer_norm
from vitrify.kernels.attention import contract as attention
from vitrify.kernels.conv import contract as conv
from vitrify.kernels.gated_residual import contract as gated_residual
from vitrify.kernels.linear import contract as linear
from vitrify.kernels.op import OpContract
from vitrify.kernels.qk_norm_rope import contract as qk_norm_rope
from vitrify.kernels.residual_diff import contract as residual_diff
from vitrify.kernels.taylor import contract as taylor

if TYPE_CHECKING:
    import onnx

__all__ = ["contract", "contracts", "folder", "function", "reference"]

# One row per folder: the ops in its contract.
_FOLDERS: dict[str, tuple[OpContract, ...]] = {
    "ada_layer_norm": ada_layer_norm.CONTRACTS,
    "attention": attention.CONTRACTS,
    "conv": conv.CONTRACTS,
    "gated_residual": gated_residual.CONTRACTS,
    "linear": linear.CONTRACTS,
    "qk_norm_rope": qk_norm_rope.CONTRACTS,
    "residual_diff": residual_diff.CONTRACTS,
    "taylor": taylor.CONTRACTS,
}

_OPS = {op.name: (op, name) for name, ops in _FOLDERS.items() for op in ops}


def contracts() -> tuple[OpContract, ...]:
    """All ops, by name."""
    return tuple(row[0] for _name, row in sorted(_OPS.items()))


def contract(name: str) -> OpContract:
    """One op's contract. Raises SpecError listing the names known."""
    return _row(name)[0]


def folder(name: str) -> str:
    """The folder of `kernels/` that holds the op. Raises SpecError listing the names known."""
    return _row(name)[1]


def reference(name: str) -> Callable[..., Any]:
    """The PyTorch function that says what the op computes.

    Takes the inputs in the contract's order and the attributes by name, gives a tuple of outputs.
    It computes in the dtype of the activations that it is given, float32 or float64.
    Needs torch. Raises SpecError for an unknown name.
    """
    return cast("Callable[..., Any]", _module(name, "reference").REFERENCES[name])


def function(name: str, opset: int) -> onnx.FunctionProto:
    """The op as a function of standard ops of the ONNX opset `opset`, to be appended to a model's `functions`.

    The body names no file, line or time. Needs onnx and onnxscript. Raises SpecError for an unknown name, or for an opset
    older than the one the body is written in.
    """
    body = _module(name, "body").BODIES[name]
    proto: onnx.FunctionProto = body.to_function_proto()
    for imported in proto.opset_import:
        if imported.domain == "":
            if opset < imported.version:
                raise SpecError(f"op {name}: its body needs opset {imported.version} or newer, got {opset}")
            imported.version = opset
    proto.ClearField("doc_string")
    for node in proto.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return proto


def _row(name: str) -> tuple[OpContract, str]:
    try:
        return _OPS[name]
    except KeyError:
        raise SpecError(f"op {name!r} is unknown; known: {', '.join(sorted(_OPS))}") from None


def _module(name: str, part: str) -> Any:
    return importlib.import_module(f"vitrify.kernels.{folder(name)}.{part}")
