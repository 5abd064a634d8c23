"""Tracing: our names on every dimension, parameters as inputs, and not one weight read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.export.by_hand import run
from tests.export.tiny_flux import TinyFlux
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import CompileError
from vitrify.export.passes import run_passes
from vitrify.export.recipe import Border, ComponentRecipe, GraphInput
from vitrify.export.trace import BORDER, TracedGraph, meta_module, trace

DIMS = {"batch", "image_tokens", "text_tokens"}


class Wrapped(nn.Module):
    """What a family's wrapper does: the source module below `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(x)
        return result


class Function(nn.Module):
    """A module without parameters."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def toy(build: Callable[[], nn.Module], *, width: int = 3, name: str = "x") -> ComponentRecipe:
    return ComponentRecipe(
        name="toy",
        class_name="Toy",
        config={},
        build=lambda: Wrapped(build()),
        inputs=(GraphInput(name, DType.FLOAT32, ("rows", width)),),
        outputs=("y",),
        output_shapes=(("rows", width),),
        probe_dims=({"rows": 2}, {"rows": 5}),
    )


def refused(recipe: ComponentRecipe, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        trace(recipe)


def dims_of(model: ir.Model) -> set[str]:
    """Every symbol in any value's shape."""
    values = [*model.graph.inputs, *(v for node in model.graph.all_nodes() for v in node.outputs)]
    found = {str(d.value) for v in values for d in v.shape or () if not isinstance(d, int) and d.value is not None}
    return {word for text in found for word in text.replace("*", " ").split() if not word.isdigit() and word not in "+-()"}


# ---- the transformer


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_inputs_then_parameters(request: pytest.FixtureRequest, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    inputs = list(made.traced.graph.inputs)
    own = inputs[: len(made.recipe.inputs)]
    assert [(v.name, tuple(d if isinstance(d, int) else d.value for d in v.shape or ())) for v in own] == [
        (i.name, i.shape) for i in made.recipe.inputs
    ]
    expected = {name: tuple(p.shape) for name, p in made.model.named_parameters()}
    assert {str(v.name): tuple(v.shape or ()) for v in inputs[len(own) :]} == expected
    assert made.parameters == expected
    outputs = [(v.name, str(v.shape)) for v in made.traced.graph.outputs]
    assert outputs == [("noise_pred", "[batch,image_tokens,8]")]


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_every_dimension_bears_our_names(request: pytest.FixtureRequest, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    assert dims_of(made.traced) == DIMS


@pytest.mark.parametrize("which", ["guided", "plain"])
def test_what_the_graph_holds_is_no_weight(request: pytest.FixtureRequest, which: str) -> None:
    made: TinyFlux = request.getfixturevalue(which)
    held = sum(v.const_value.nbytes for v in made.traced.graph.initializers.values() if v.const_value is not None)
    assert held < 4096
    assert not set(made.parameters) & set(made.traced.graph.initializers)


def test_every_border_is_marked_and_becomes_a_value(guided: TinyFlux) -> None:
    labels = {label for border in guided.recipe.borders for label in border.labels if label is not None}
    marked = {n.attributes["label"].as_string() for n in guided.traced.graph if n.op_type == BORDER}
    # Nothing reads what the last block makes of the text.
    assert labels - marked <= {"single_transformer_blocks.1/encoder_hidden_states"}
    model = run_passes(TracedGraph(guided.traced.clone(), guided.parameters), replace(guided.recipe, segments=None))["model"]
    named = {str(v.name) for node in model.graph for v in node.outputs}
    assert marked - named <= {"single_transformer_blocks.1/encoder_hidden_states"}
    assert BORDER not in {node.op_type for node in model.graph}


# ---- no weights


def test_a_module_of_four_terabytes_is_traced() -> None:
    """Whatever read or made its weights would not live to tell."""
    size = 1 << 20
    recipe = toy(lambda: nn.Linear(size, size), width=size)
    traced = trace(recipe)
    assert traced.parameters == {"weight": (size, size), "bias": (size,)}
    assert str(traced.model.graph.inputs[0].shape) == f"[rows,{size}]"


class WithBuffer(nn.Module):
    scale: torch.Tensor

    def __init__(self, values: torch.Tensor, *, register: bool = True) -> None:
        super().__init__()
        if register:
            self.register_buffer("scale", values)
        else:
            self.scale = values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_buffers_keep_their_values() -> None:
    recipe = toy(lambda: WithBuffer(torch.arange(3.0) + 0.5))
    module, buffers = meta_module(recipe)
    assert {name: value.tolist() for name, value in buffers.items()} == {"model.scale": [0.5, 1.5, 2.5]}
    assert all(b.is_meta for b in module.buffers())
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(run(trace(recipe).model, {"x": x})["y"], x * np.asarray([0.5, 1.5, 2.5], np.float32))


def test_a_buffer_without_a_value_is_refused_by_name() -> None:
    refused(toy(lambda: WithBuffer(torch.ones(3))), "toy: buffer 'model.scale' has no value without weights")


def test_a_constant_without_a_value_is_refused() -> None:
    refused(toy(lambda: WithBuffer(torch.ones(3), register=False)), "has no value after tracing without weights|cannot be traced")


# ---- what cannot be traced


def test_a_dimension_that_the_module_fixes_is_refused() -> None:
    refused(toy(lambda: Function(lambda x: x + 1 if x.shape[0] == 2 else x)), r"toy \(Toy\) cannot be traced: .*rows")
    refused(toy(lambda: Function(lambda x: x * torch.arange(int(x.shape[0]) * 0 + 2)[:, None])), r"toy \(Toy\) cannot be traced")


def test_a_branch_on_a_size_needs_a_limit() -> None:
    """As diffusers' upsampling does from 64 pictures on."""
    recipe = toy(lambda: Function(lambda x: x.clone() if x.shape[0] >= 64 else x * 2))
    refused(recipe, "cannot be traced")
    model = trace(replace(recipe, trace_limits={"rows": 63})).model
    x = np.ones((63, 3), np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], 2 * x)


def test_flux_declares_that_limit_and_compiles_no_more() -> None:
    from tests.export.tiny_flux import CONFIG, flux_recipe
    from vitrify.export.options import ExportOptions, Range

    recipe = flux_recipe(CONFIG, ExportOptions(batch=Range(1, 2, 100)))
    vae = next(c for c in recipe.components if c.name == "vae")
    assert vae.trace_limits == {"images": 63}
    assert recipe.dims["images"].max == 63


def test_an_input_by_another_name_is_refused() -> None:
    refused(toy(nn.Identity, name="y"), "toy: input 'x' came where 'y' was expected")


def test_a_class_that_refuses_its_configuration_is_named() -> None:
    refused(toy(lambda: nn.GroupNorm(2, 3)), r"toy \(Toy\) cannot be built from its configuration: ValueError: .*divisible")


class TwoValues(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x * 2


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = TwoValues()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.pair(x)
        result: torch.Tensor = left + right
        return result


@pytest.mark.parametrize("outputs", [("left", "right"), ("left", None), (None, "right")])
def test_the_outputs_of_a_border_are_marked_as_named(outputs: tuple[str | None, ...]) -> None:
    recipe = replace(toy(Sum), borders=(Border("pair", outputs),))
    traced = trace(recipe)
    labels = {n.attributes["label"].as_string() for n in traced.model.graph if n.op_type == BORDER}
    assert labels == {f"pair/{name}" for name in outputs if name}
    model = run_passes(traced, recipe)["model"]
    assert labels <= {str(v.name) for node in model.graph for v in node.outputs}
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], 4 * x)


def test_a_border_of_more_values_than_its_module_returns_is_refused() -> None:
    refused(replace(toy(Sum), borders=(Border("pair", ("a", "b", "c")),)), "returned 2 values, the recipe names 3")
