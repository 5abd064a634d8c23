"""A small valid artifact, built through the public writer, for the tests of the artifact's rooms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save

from vitrify.engine.artifact import ArtifactWriter, Manifest, SchedulerSpec, TokenizerSpec
from vitrify.engine.dtypes import DType
from vitrify.engine.specs import ComponentSpec, Dim, GraphSpec, ParitySpec, TensorSpec

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
STEP = "step/euler.onnx"


def weights_bytes() -> bytes:
    rng = np.random.default_rng(0)
    tensors = {
        "proj.bias": rng.standard_normal(6).astype(np.float32),
        "proj.weight": rng.standard_normal((6, 4)).astype(np.float32),
    }
    return save(tensors, metadata={"format": "pt"})


def external_initializer(name: str, shape: list[int], location: str, offset: int, length: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def linear_graph(initializers: list[onnx.TensorProto]) -> bytes:
    node = helper.make_node("Gemm", ["x", "proj.weight", "proj.bias"], ["y"], transB=1)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", w]) for n, w in (("x", 4), ("y", 6))]
    graph = helper.make_graph([node], "first", ends[:1], ends[1:], initializer=initializers)
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString()
    return data


def good_graph() -> bytes:
    data = weights_bytes()
    start = len(data) - (6 + 24) * 4
    location = Path(WEIGHTS).name
    return linear_graph(
        [
            external_initializer("proj.bias", [6], location, start, 24),
            external_initializer("proj.weight", [6, 4], location, start + 24, 96),
        ]
    )


def step_graph() -> bytes:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "abc"]
    graph = helper.make_graph([node], "step", ends[:2], ends[2:])
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString()
    return data


def sample_manifest() -> Manifest:
    x, y = TensorSpec("x", DType.FLOAT32, ("batch", 4)), TensorSpec("y", DType.FLOAT32, ("batch", 6))
    first = GraphSpec("transformer/first.onnx", (x,), (y,), parameters=30, parameter_bytes=120)
    euler = GraphSpec(
        STEP, tuple(TensorSpec(n, DType.FLOAT32, ("batch",)) for n in "ab"), (TensorSpec("c", DType.FLOAT32, ("batch",)),)
    )
    transformer = ComponentSpec(
        name="transformer",
        class_name="FluxTransformer2DModel",
        encoding=DType.FLOAT32,
        config={"num_layers": 1, "axes": (2, 1), "scale": 0.1},
        graphs={"model": first},
        weights=(WEIGHTS,),
        parity=ParitySpec(checked=True, measurements={"first": 2e-07}, tolerances={"first": 1e-05}),
    )
    return Manifest(
        family="flux",
        pipeline_class="FluxPipeline",
        target="cpu",
        components={"transformer": transformer},
        dims={"batch": Dim("batch", 1, 1, 4)},
        step_graphs={"euler": euler},
        ops={"ResidualDiff": 1},
        scheduler=SchedulerSpec("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        tokenizers={"tokenizer": TokenizerSpec("tokenizer", "CLIPTokenizer", "tokenizer/tokenizer.json", 77, 1, "<pad>")},
        defaults={"num_inference_steps": 20, "negative_prompt": ""},
        provenance={"packages": {"torch": "2.13.0"}},
    )


def fill(writer: ArtifactWriter) -> None:
    """Writes every file of the sample through the three ways there are."""
    with writer.open_stream("transformer/first.onnx") as stream:
        graph = good_graph()
        stream.write(graph[:100])
        stream.write(memoryview(graph)[100:])
    source = writer.out.parent / "source.safetensors"
    source.write_bytes(weights_bytes())
    writer.copy_file(WEIGHTS, source)
    writer.write_bytes(STEP, step_graph())
    writer.write_bytes("tokenizer/tokenizer.json", b'{"version":"1.0"}')
    writer.write_bytes("source/README.md", "a small model, für Tests\n".encode())


def build(out: Path, *, force: bool = False) -> str:
    with ArtifactWriter(out, force=force) as writer:
        fill(writer)
        return writer.commit(sample_manifest())
