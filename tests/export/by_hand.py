"""Small graphs written down as text, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.specs import ComponentSpec
from vitrify.export.graphs import component_spec
from vitrify.export.recipe import ComponentRecipe, GraphInput, SegmentRecipe

__all__ = [
    "Array",
    "assert_unchanged",
    "graph",
    "names",
    "never_built",
    "ops",
    "run",
    "run_file",
    "scale_result",
    "toy_recipe",
    "write_parts",
]

Array = npt.NDArray[Any]


def graph(text: str, functions: str = "") -> ir.Model:
    """`(inputs) => (outputs) <values of known shape> { nodes }` in ONNX's text form, as a model of opset 23."""
    domains = '"" : 23, "vitrify.trace" : 1, "vitrify" : 1, "toy" : 1'
    return ir.from_onnx_text(f"<ir_version: 10, opset_import: [{domains}]> by_hand {text} {functions}")


def ops(model: ir.Model) -> list[str]:
    """The operations, in the graph's order."""
    return [node.op_type for node in model.graph]


def names(model: ir.Model) -> list[str]:
    """The values that the nodes make, in the graph's order."""
    return [str(value.name) for node in model.graph for value in node.outputs]


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Its outputs in ONNX Runtime, as the graph stands: nothing is optimised."""
    return _run(ir.to_proto(model).SerializeToString(), feeds)


def run_file(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The same of a file, whose weights may lie beside it."""
    return _run(str(path), feeds)


def _run(model: bytes | str, feeds: Mapping[str, Array]) -> dict[str, Array]:
    OrtCpuBackend(kernels="portable")  # the process's thread pool: sessions without it are refused once it is there
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.use_per_session_threads = False
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    wanted = [o.name for o in session.get_outputs()]
    return dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))


def assert_unchanged(model: ir.Model, rewrite: Callable[[ir.Model], object], *feeds: Mapping[str, Array]) -> None:
    """`rewrite` changes `model` in place, and nothing of what it computes from each of `feeds`."""
    before = [run(model, fed) for fed in feeds]
    rewrite(model)
    for fed, expected in zip(feeds, before, strict=True):
        got = run(model, fed)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name].dtype == value.dtype
            np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def scale_result(graph: onnx.GraphProto, node: onnx.NodeProto, factor: float) -> None:
    """Whoever reads the first result of `node` gets it times `factor`."""
    result, node.output[0] = node.output[0], f"{node.output[0]}.unscaled"
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(factor, np.float32), f"{result}.factor"))
    scaled = onnx.helper.make_node("Mul", [node.output[0], f"{result}.factor"], [result])
    graph.node.insert(list(graph.node).index(node) + 1, scaled)


def never_built() -> Any:
    raise AssertionError("a graph by hand has no module")


def toy_recipe(*inputs: GraphInput, segments: SegmentRecipe | None = None, output: str = "noise_pred") -> ComponentRecipe:
    """A component that exists as a graph alone."""
    return ComponentRecipe(
        name="toy",
        class_name="Toy",
        config={},
        build=never_built,
        inputs=inputs,
        outputs=(output,),
        output_shapes=(("batch", "image_tokens", 4),),
        probe_dims=({"batch": 2, "image_tokens": 6, "text_tokens": 3}, {"batch": 3, "image_tokens": 5, "text_tokens": 4}),
        segments=segments,
    )


def write_parts(recipe: ComponentRecipe, parts: Mapping[str, ir.Model], root: Path) -> ComponentSpec:
    """The graphs as files under `root`, and the spec that describes them; weights, if any, lie in them as constants."""
    spec = component_spec(recipe, parts, {}, {}, ())
    for name, model in parts.items():
        path = root / spec.graphs[name].path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return spec
