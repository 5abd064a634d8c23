"""The artifact's one-op graphs, `step/*.onnx`: what a cache policy runs between the denoiser's segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, ValueInfoProto, helper

from vitrify.engine.denoiser import RESIDUAL_DIFF, hidden_tensors
from vitrify.engine.specs import ComponentSpec, GraphSpec, TensorSpec
from vitrify.export.trace import OPSET
from vitrify.kernels import registry
from vitrify.kernels.op import DOMAIN, OpContract

__all__ = ["StepGraph", "op_versions", "step_graphs"]

_IR_VERSION = 10


@dataclass(frozen=True)
class StepGraph:
    """One op as a graph. op: what runs in it. spec: as the manifest has it. model: the bytes of its file."""

    op: OpContract
    spec: GraphSpec
    model: bytes


def step_graphs(denoiser: ComponentSpec) -> dict[str, StepGraph]:
    """The step graphs of a denoiser by name, in its own dimensions.

    `residual_diff`: block 0's residual and how far it moved, over the image's hidden states (`kernels/residual_diff`).
    Raises SpecError where the denoiser's segments do not show its hidden states.
    """
    hidden = hidden_tensors(denoiser).last
    return {RESIDUAL_DIFF: _one_op(RESIDUAL_DIFF, "ResidualDiff", ("batch", "image_tokens", hidden.shape[2]))}


def _one_op(name: str, op: str, shape: tuple[int | str, ...]) -> StepGraph:
    """`op` over activations of `shape`: its contract's dimensions are renamed to the denoiser's."""
    contract = registry.contract(op)
    renamed = dict(zip(contract.inputs[0].shape, shape, strict=True))
    inputs, outputs = (
        tuple(TensorSpec(t.name, t.dtype, tuple(renamed.get(d, d) for d in t.shape)) for t in side)
        for side in (contract.inputs, contract.outputs)
    )
    spec = GraphSpec(f"step/{name}.onnx", inputs, outputs)
    return StepGraph(contract, spec, _model(contract, spec).SerializeToString(deterministic=True))


def _model(contract: OpContract, spec: GraphSpec) -> ModelProto:
    def values(tensors: tuple[TensorSpec, ...]) -> list[ValueInfoProto]:
        return [helper.make_tensor_value_info(t.name, t.dtype.onnx, list(t.shape)) for t in tensors]

    def names(tensors: tuple[TensorSpec, ...]) -> list[str]:
        return [t.name for t in tensors]

    node = helper.make_node(contract.name, names(spec.inputs), names(spec.outputs), domain=DOMAIN)
    graph = helper.make_graph([node], contract.name, values(spec.inputs), values(spec.outputs))
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, contract.version)]
    function = registry.function(contract.name, OPSET)
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=_IR_VERSION)


def op_versions(graphs: Mapping[str, StepGraph]) -> dict[str, int]:
    """Op → version, of the ops that these graphs use."""
    return {graph.op.name: graph.op.version for graph in graphs.values()}
