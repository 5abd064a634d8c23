"""A component's module → an ONNX graph in our dimension names, traced on the meta device: no weights are read.

Parameters stay graph inputs while passes work, so that nothing can fold, merge or rename them;
`passes/external.py` ties them to the source's bytes at the end.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import values as onnxscript_values

from vitrify.engine.errors import CompileError
from vitrify.export.recipe import Border, ComponentRecipe

__all__ = ["BORDER", "OPSET", "TracedGraph", "meta_module", "trace"]

OPSET = 23
BORDER = "Border"
_DOMAIN = "vitrify.trace"


@torch.library.custom_op("vitrify_trace::border", mutates_args=())
def _border(value: torch.Tensor, label: str) -> torch.Tensor:  # noqa: ARG001
    """Marks a value of the traced program; the mark survives into the ONNX graph as a node."""
    return value.clone()


@_border.register_fake
def _(value: torch.Tensor, label: str) -> torch.Tensor:  # noqa: ARG001
    return torch.empty_like(value)


@dataclass(frozen=True)
class TracedGraph:
    """An ONNX graph before the passes.

    model: its first inputs are the component's, then every parameter by its name (prefix removed).
    parameters: name → shape.
    """

    model: ir.Model
    parameters: Mapping[str, tuple[int, ...]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about itself; what matters to the user is raised as an error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def meta_module(recipe: ComponentRecipe) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The module on the meta device, and the real values of its buffers (position ids and the like) by name.

    Raises CompileError when the class refuses its configuration, or for a buffer that has no value without weights.
    """
    try:
        with _RealBuffers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = recipe.build().eval()
    except Exception as error:
        raise CompileError(
            f"{recipe.name} ({recipe.class_name}) cannot be built from its configuration: {type(error).__name__}: {error}"
        ) from error
    buffers: dict[str, torch.Tensor] = {}
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise CompileError(f"{recipe.name}: buffer {name!r} has no value without weights; its recipe must give it")
        buffers[name] = buffer.detach().clone()
    return module.to("meta"), buffers


class _RealBuffers(torch.overrides.TorchFunctionMode):
    """Sends what parameters are made of (empty, ones, zeros, …) to the meta device; arange and tensor stay real."""

    _FACTORIES = frozenset({torch.empty, torch.ones, torch.zeros, torch.rand, torch.randn, torch.full})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def trace(recipe: ComponentRecipe) -> TracedGraph:
    """Trace one component. Raises CompileError when PyTorch cannot trace or translate it."""
    module, buffers = meta_module(recipe)
    _mark(module, recipe.borders, recipe.prefix)
    sizes = _example_sizes(recipe)
    example = tuple(
        torch.empty([sizes[d] if isinstance(d, str) else d for d in i.shape], dtype=getattr(torch, i.dtype.value), device="meta")
        for i in recipe.inputs
    )
    dims = {name: torch.export.Dim(name, min=1, max=recipe.trace_limits.get(name, 1 << 20)) for name in sizes}
    dynamic = tuple({axis: dims[d] for axis, d in enumerate(i.shape) if isinstance(d, str)} for i in recipe.inputs)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
            onnx_program = torch.onnx.export(
                program, opset_version=OPSET, optimize=False, verbose=False, custom_translation_table=_translation()
            )
    except Exception as error:
        raise CompileError(f"{recipe.name} ({recipe.class_name}) cannot be traced: {type(error).__name__}: {error}") from error
    assert onnx_program is not None
    model = onnx_program.model
    parameters = _parameters_as_inputs(model, module, buffers, recipe.prefix)
    _name_dims(model, recipe)
    for value, name, shape in zip(model.graph.outputs, recipe.outputs, recipe.output_shapes, strict=True):
        value.name = name
        value.shape = ir.Shape(list(shape))
    return TracedGraph(model, parameters)


def _example_sizes(recipe: ComponentRecipe) -> dict[str, int]:
    """An example size per dimension: distinct, above 1 (a size of 1 would be taken for a constant)."""
    names = sorted({d for i in recipe.inputs for d in i.shape if isinstance(d, str)})
    return {name: max(2, recipe.probe_dims[0][name]) for name in names}


def _mark(module: torch.nn.Module, borders: tuple[Border, ...], prefix: str) -> None:
    def hook(labels: tuple[str | None, ...]) -> Any:
        def mark(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
            values = (output,) if isinstance(output, torch.Tensor) else output
            if len(values) != len(labels):
                raise CompileError(f"{labels}: the module returned {len(values)} values, the recipe names {len(labels)}")
            marked = tuple(v if label is None else _border(v, label) for v, label in zip(values, labels, strict=True))
            return marked[0] if isinstance(output, torch.Tensor) else marked

        return mark

    for border in borders:
        module.get_submodule(prefix + border.path).register_forward_hook(hook(border.labels))


def _translation() -> dict[Any, Any]:
    if not onnx.defs.has(BORDER, _DOMAIN):
        parameter = onnx.defs.OpSchema.FormalParameter
        onnx.defs.register_schema(
            onnx.defs.OpSchema(
                BORDER,
                _DOMAIN,
                1,
                inputs=[parameter("value", "T")],
                outputs=[parameter("marked", "T")],
                type_constraints=[("T", ["tensor(float)"], "any activation")],
                attributes=[onnx.defs.OpSchema.Attribute("label", onnx.defs.OpSchema.AttrType.STRING, required=True)],
            )
        )
    opset = onnxscript_values.Opset(_DOMAIN, 1)

    def border(value: Any, label: str) -> Any:
        return opset.Border(value, label=label)

    return {torch.ops.vitrify_trace.border.default: border}


def _parameters_as_inputs(
    model: ir.Model, module: torch.nn.Module, buffers: Mapping[str, torch.Tensor], prefix: str
) -> dict[str, tuple[int, ...]]:
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    parameters: dict[str, tuple[int, ...]] = {}
    for name, value in list(model.graph.initializers.items()):
        if name in names:
            model.graph.initializers.pop(name)
            value.const_value = None
            value.name = name.removeprefix(prefix)
            model.graph.inputs.append(value)
            parameters[value.name] = value.shape.numpy() if value.shape is not None else ()
        elif name in buffers:
            value.const_value = ir.tensor(buffers[name].numpy(), name=name)
        elif value.const_value is not None and getattr(getattr(value.const_value, "raw", None), "is_meta", False):
            raise CompileError(f"constant {name!r} has no value after tracing without weights; its recipe must make it an input")
    return parameters


def _name_dims(model: ir.Model, recipe: ComponentRecipe) -> None:
    """Replace the tracer's symbols (s34, …) by our names, in every value's shape."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, recipe.inputs, strict=False):
        if value.name != spec.name:
            raise CompileError(f"{recipe.name}: input {value.name!r} came where {spec.name!r} was expected")
        for symbol, dim in zip(value.shape or (), spec.shape, strict=True):
            if isinstance(dim, str):
                if isinstance(symbol, int):
                    raise CompileError(f"{recipe.name}: dimension {dim!r} of {spec.name!r} was specialised to {symbol}")
                names[str(symbol.value)] = dim
            elif symbol != dim:
                raise CompileError(f"{recipe.name}: {spec.name!r} has shape {value.shape}, expected {spec.shape}")
    pattern = re.compile(r"[A-Za-z_]\w*")
    for node in model.graph.all_nodes():
        for value in node.outputs:
            _rename(value, names, pattern)
    for value in model.graph.inputs:
        _rename(value, names, pattern)


def _rename(value: ir.Value, names: Mapping[str, str], pattern: re.Pattern[str]) -> None:
    if value.shape is None:
        return
    dims: list[int | str | None] = []
    for dim in value.shape:
        if isinstance(dim, int):
            dims.append(dim)
        else:
            dims.append(None if dim.value is None else pattern.sub(lambda m: names.get(m.group(), m.group()), dim.value))
    value.shape = ir.Shape(dims)
