"""Graphs as the passes leave them → the specs that a manifest, a plan and the engine read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitrify.engine.dtypes import DType
from vitrify.engine.specs import ComponentSpec, GraphSpec, ParitySpec, TensorSpec
from vitrify.export.invariant_work import invariant_work
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.source import TensorLocation

__all__ = ["component_spec", "tensor_spec"]


def component_spec(
    recipe: ComponentRecipe,
    models: Mapping[str, ir.Model],
    parameters: Mapping[str, tuple[int, ...]],
    locations: Mapping[str, TensorLocation],
    weights: tuple[str, ...],
) -> ComponentSpec:
    """Describe a component's graphs, before its parameters are tied. locations: empty where no weights were read (a plan)."""
    stored: Counter[DType] = Counter()
    for place in locations.values():
        stored[place.dtype] += place.nbytes
    graphs = {name: _graph_spec(f"{recipe.name}/{name}.onnx", model, parameters, locations) for name, model in models.items()}
    return ComponentSpec(
        name=recipe.name,
        class_name=recipe.class_name,
        encoding=stored.most_common(1)[0][0] if stored else DType.FLOAT32,
        config=dict(recipe.config),
        graphs=graphs,
        weights=weights,
        parity=ParitySpec(checked=False),
        invariant_work=invariant_work(recipe, models) if recipe.segments is not None else (),
    )


def _graph_spec(
    path: str, model: ir.Model, parameters: Mapping[str, tuple[int, ...]], locations: Mapping[str, TensorLocation]
) -> GraphSpec:
    read = [str(v.name) for v in model.graph.inputs if v.name in parameters]
    return GraphSpec(
        path=path,
        inputs=tuple(tensor_spec(v) for v in model.graph.inputs if v.name not in parameters),
        outputs=tuple(tensor_spec(v) for v in model.graph.outputs),
        parameters=sum(int(np.prod(parameters[name], dtype=np.int64)) for name in read),
        parameter_bytes=sum(locations[name].nbytes for name in read if name in locations),
    )


def tensor_spec(value: ir.Value) -> TensorSpec:
    """A graph value's name, dtype and shape."""
    assert value.dtype is not None
    return TensorSpec(
        str(value.name),
        DType.from_onnx(int(value.dtype)),
        tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ()),
    )
