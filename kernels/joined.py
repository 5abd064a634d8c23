"""A function body of several, one after the other: for families of ops that differ in what stands around one product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx

__all__ = ["Joined"]


class _Function(Protocol):
    def to_function_proto(self) -> onnx.FunctionProto:
        """As onnxscript's functions have it."""


@dataclass(frozen=True)
class Joined:
    """Functions of which each takes the one before's output as its input of that name; the last one's output is the whole's."""

    name: str
    steps: tuple[_Function, ...]

    def to_function_proto(self) -> onnx.FunctionProto:
        protos = [step.to_function_proto() for step in self.steps]
        whole = onnx.FunctionProto(name=self.name, domain=protos[0].domain, opset_import=protos[0].opset_import)
        made: set[str] = set()
        for number, proto in enumerate(protos):
            whole.input.extend(name for name in proto.input if name not in made)
            whole.attribute.extend(proto.attribute)
            crossing = {*proto.input, *proto.output}
            for node in proto.node:
                node.name = f"{node.name}_{number}"
                for names in (node.input, node.output):
                    names[:] = [name if not name or name in crossing else f"{name}_{number}" for name in names]
            whole.node.extend(proto.node)
            made.update(proto.output)
        whole.output.extend(protos[-1].output)
        return whole
