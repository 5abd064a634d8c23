"""A denoiser whose five graphs are written down as ONNX text: small, and every input reaches the output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx

from vitrify.engine.dtypes import DType
from vitrify.engine.session import Array
from vitrify.engine.specs import ComponentSpec, GraphSpec, ParitySpec, TensorSpec

__all__ = ["WIDTH", "inputs", "reference", "spec", "write"]

WIDTH = 64
_HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
_TEXT = {
    "condition": f"""g (float[condition_rows] timestep, float[condition_rows,{WIDTH}] pooled, float[batch,text_tokens,4] text)
        => (float[batch,text_tokens,4] context, float[condition_rows,{WIDTH}] modulation_first,
            float[condition_rows,{WIDTH}] modulation_finish) <int64[1] one = {{1}}> {{
        t = Unsqueeze(timestep, one)
        modulation_first = Add(pooled, t)
        modulation_finish = Mul(pooled, t)
        context = Tanh(text) }}""",
    "embed": """g (float[batch,image_tokens,4] latents) => (float[batch,image_tokens,4] h0) <float[1] two = {2.0}> {
        h0 = Mul(latents, two) }""",
    "first": f"""g (float[batch,image_tokens,4] h0, float[batch,text_tokens,4] context, float[image_tokens,4] rotary,
        float[batch,{WIDTH}] modulation_first) => (float[batch,image_tokens,4] h1, float[batch,1,4] told)
        <int64[2] parts = {{4, {WIDTH - 4}}}, int64[1] one = {{1}}> {{
        shift, rest = Split<axis = 1>(modulation_first, parts)
        s = Unsqueeze(shift, one)
        told = ReduceMean(context, one)
        a = Add(h0, s)
        b = Add(a, told)
        h1 = Mul(b, rotary) }}""",
    "rest": """g (float[batch,image_tokens,4] h1, float[batch,1,4] told, float[image_tokens,4] rotary)
        => (float[batch,image_tokens,4] hn) { a = Mul(h1, told) b = Add(a, rotary) hn = Sigmoid(b) }""",
    "finish": f"""g (float[batch,image_tokens,4] hn, float[batch,{WIDTH}] modulation_finish)
        => (float[batch,image_tokens,4] noise_pred) <int64[2] parts = {{4, {WIDTH - 4}}}, int64[1] one = {{1}}> {{
        scale, rest = Split<axis = 1>(modulation_finish, parts)
        s = Unsqueeze(scale, one)
        noise_pred = Mul(hn, s) }}""",
}


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    found = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        found.append(TensorSpec(value.name, DType.from_onnx(tensor.elem_type), shape))
    return tuple(found)


def spec() -> ComponentSpec:
    """What the manifest would say."""
    graphs = {}
    for name, text in _TEXT.items():
        graph = onnx.parser.parse_model(_HEAD + text).graph
        graphs[name] = GraphSpec(f"toy/{name}.onnx", _specs(graph.input), _specs(graph.output))
    return ComponentSpec("toy", "Toy", DType.FLOAT32, {}, graphs, (), ParitySpec(False))


def write(root: Path) -> ComponentSpec:
    """The graphs as files under `root`."""
    (root / "toy").mkdir(parents=True, exist_ok=True)
    for name, text in _TEXT.items():
        (root / "toy" / f"{name}.onnx").write_bytes(onnx.parser.parse_model(_HEAD + text).SerializeToString())
    return spec()


def inputs(
    batch: int, image_tokens: int, text_tokens: int, steps: int, seed: int = 0
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Request inputs, rows [steps, batch, …] and each step's latents."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    request = {"text": normal(batch, text_tokens, 4), "rotary": normal(image_tokens, 4)}
    rows = {"timestep": normal(steps, batch), "pooled": normal(steps, batch, WIDTH)}
    return request, rows, normal(steps, batch, image_tokens, 4)


def reference(request: Mapping[str, Array], rows: Mapping[str, Array], latents: Array, step: int) -> Array:
    """One step in numpy, without segments."""
    t, pooled = rows["timestep"][step][:, None], rows["pooled"][step]
    told = np.tanh(request["text"]).mean(axis=1, keepdims=True)
    h1 = (2 * latents[step] + (pooled + t)[:, None, :4] + told) * request["rotary"]
    hn = 1 / (1 + np.exp(-(h1 * told + request["rotary"])))
    return np.asarray(hn * (pooled * t)[:, None, :4], dtype=np.float32)
