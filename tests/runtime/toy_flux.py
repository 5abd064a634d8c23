"""A FLUX artifact whose graphs are numpy functions: small, exact, and every input reaches the picture.

`Toy.reference` is the same pipeline written down a second time, straight, without lanes, plans or segments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from vitrify.engine.artifact import Artifact, FileEntry, Manifest, SchedulerSpec, TokenizerSpec
from vitrify.engine.cache_config import DenoisingCacheConfig
from vitrify.engine.component import PipelineConfig
from vitrify.engine.device import Device
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.engine.session import Backend, Plan, Session
from vitrify.engine.specs import ComponentSpec, Dim, GraphSpec, ParitySpec, TensorSpec
from vitrify.runtime.families.flux import FluxPipeline
from vitrify.runtime.rotary import raster_ids, rotary_table
from vitrify.runtime.schedulers.flow_match_euler import FlowMatchEuler

Array = Any

LATENT_CHANNELS, SCALE, JOINT, POOLED, CLIP_TOKENS = 3, 2, 5, 4, 8
CHANNELS = 4 * LATENT_CHANNELS
AXES = (2, 4, 2)
ROTARY = 2 * sum(AXES)
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "red", "green", "blue", "apple", "cat", "dog", "house", "tree", "big", "small"]
_RNG = np.random.default_rng(5)
_CLIP = _RNG.standard_normal((len(WORDS), POOLED)).astype(np.float32)
_T5 = _RNG.standard_normal((len(WORDS), JOINT)).astype(np.float32)
_TEXT_IN = _RNG.standard_normal((JOINT, CHANNELS)).astype(np.float32) * 0.5
_POOLED_IN = _RNG.standard_normal((POOLED, CHANNELS)).astype(np.float32) * 0.5
_MIX = _RNG.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) * 0.3
_IMAGE_ROTARY = _RNG.standard_normal((ROTARY, CHANNELS)).astype(np.float32) * 0.2
_TEXT_ROTARY = _RNG.standard_normal((ROTARY, CHANNELS)).astype(np.float32) * 0.2


def _tensor(name: str, *shape: int | str, dtype: DType = DType.FLOAT32) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


_HIDDEN = ("batch", "image_tokens", CHANNELS)
_TABLES = [_tensor(f"{segment}_modulation", "condition_rows", CHANNELS) for segment in ("first", "finish")]
_FROM_CONDITION = [_tensor(t.name, "batch", CHANNELS) for t in _TABLES]
_LATENTS, _H0, _H1, _HN = (_tensor(name, *_HIDDEN) for name in ("latents", "h0", "h1", "hn"))
_REFERENCE, _RESIDUAL = (_tensor(name, *_HIDDEN) for name in ("r_ref", "r"))
_CONTEXT = _tensor("context", "batch", "text_tokens", CHANNELS)
_ROTARIES = [_tensor("text_rotary", "text_tokens", ROTARY), _tensor("image_rotary", "image_tokens", ROTARY)]


def _graph(path: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> GraphSpec:
    return GraphSpec(path, tuple(inputs), tuple(outputs))


RESIDUAL_DIFF = _graph("step/residual_diff.onnx", [_H1, _H0, _REFERENCE], [_RESIDUAL, _tensor("sums", "batch", 2)])


def _graphs(guidance: bool) -> dict[str, dict[str, GraphSpec]]:
    by_row = [_tensor("timestep", "condition_rows"), _tensor("pooled_projections", "condition_rows", POOLED)]
    by_row += [_tensor("guidance", "condition_rows")] if guidance else []
    ids = _tensor("input_ids", "prompts", CLIP_TOKENS, dtype=DType.INT64)
    long_ids = _tensor("input_ids", "prompts", "text_tokens", dtype=DType.INT64)
    embeds = _tensor("encoder_hidden_states", "batch", "text_tokens", JOINT)
    latents = _tensor("latents", "images", LATENT_CHANNELS, "latent_h", "latent_w")
    return {
        "text_encoder": {"model": _graph("text_encoder/model.onnx", [ids], [_tensor("pooled_projections", "prompts", POOLED)])},
        "text_encoder_2": {
            "model": _graph("text_encoder_2/model.onnx", [long_ids], [_tensor("prompt_embeds", "prompts", "text_tokens", JOINT)])
        },
        "transformer": {
            "condition": _graph("transformer/condition.onnx", [*by_row, embeds], [*_TABLES, _CONTEXT]),
            "embed": _graph("transformer/embed.onnx", [_LATENTS], [_H0]),
            "first": _graph("transformer/first.onnx", [_H0, _CONTEXT, *_ROTARIES, _FROM_CONDITION[0]], [_H1]),
            "rest": _graph("transformer/rest.onnx", [_H1, *_ROTARIES], [_HN]),
            "finish": _graph("transformer/finish.onnx", [_HN, _FROM_CONDITION[1]], [_tensor("noise_pred", *_HIDDEN)]),
        },
        "vae": {"model": _graph("vae/model.onnx", [latents], [_tensor("image", "images", "height", "width", 3)])},
    }


def clip(input_ids: Array) -> Array:
    weights = 1 / np.arange(1, input_ids.shape[1] + 1, dtype=np.float32)
    return (_CLIP[input_ids] * weights[None, :, None]).sum(axis=1)


def t5(input_ids: Array) -> Array:
    return _T5[input_ids] + np.arange(input_ids.shape[1], dtype=np.float32)[None, :, None] * np.float32(0.1)


def modulation(timestep: Array, pooled: Array, guidance: Array | None, phase: float) -> Array:
    wave = timestep[:, None] * np.arange(1, CHANNELS + 1, dtype=np.float32) + np.float32(phase)
    if guidance is not None:
        wave = wave + guidance[:, None] * np.float32(0.37)
    return np.sin(wave) + np.tanh(pooled @ _POOLED_IN)


def first(h0: Array, context: Array, text_rotary: Array, image_rotary: Array, first_modulation: Array) -> Array:
    text = np.tanh(context + text_rotary @ _TEXT_ROTARY).mean(axis=1)
    return np.tanh(h0 @ _MIX + image_rotary @ _IMAGE_ROTARY + (text * (1 + first_modulation))[:, None, :])


def rest(h1: Array, text_rotary: Array, image_rotary: Array) -> Array:
    return h1 + np.tanh(h1 @ _MIX - image_rotary @ _IMAGE_ROTARY + text_rotary.mean())


def finish(hn: Array, finish_modulation: Array) -> Array:
    return hn * (1 + finish_modulation[:, None, :])


def vae(latents: Array) -> Array:
    pixels = np.tanh(latents).repeat(SCALE, axis=2).repeat(SCALE, axis=3) / 2 + np.float32(0.5)
    return pixels.transpose(0, 2, 3, 1).astype(np.float32)


def _condition(inputs: Mapping[str, Array]) -> dict[str, Array]:
    arguments = (inputs["timestep"], inputs["pooled_projections"], inputs.get("guidance"))
    return {
        "first_modulation": modulation(*arguments, 0.0),
        "finish_modulation": modulation(*arguments, 1.0),
        "context": inputs["encoder_hidden_states"] @ _TEXT_IN,
    }


def residual_diff(h1: Array, h0: Array, r_ref: Array) -> dict[str, Array]:
    r = h1 - h0
    return {"r": r, "sums": np.stack([np.abs(r - r_ref).sum(axis=(1, 2)), np.abs(r_ref).sum(axis=(1, 2))], axis=1)}


FUNCTIONS: dict[str, Callable[[Mapping[str, Array]], dict[str, Array]]] = {
    "text_encoder/model.onnx": lambda i: {"pooled_projections": clip(i["input_ids"])},
    "text_encoder_2/model.onnx": lambda i: {"prompt_embeds": t5(i["input_ids"])},
    "transformer/condition.onnx": _condition,
    "transformer/embed.onnx": lambda i: {"h0": i["latents"] * np.float32(0.5)},
    "transformer/first.onnx": lambda i: {"h1": first(**i)},
    "transformer/rest.onnx": lambda i: {"hn": rest(**i)},
    "transformer/finish.onnx": lambda i: {"noise_pred": finish(**i)},
    "step/residual_diff.onnx": lambda i: residual_diff(**i),
    "vae/model.onnx": lambda i: {"image": vae(i["latents"])},
}


@dataclass
class ToyBackend(Backend):
    """Runs FUNCTIONS. runs: (path, dims) of every run. opened: paths by the number of their open sessions.

    outlived: the path of each plan that was alive when its session closed.
    """

    name: str = "toy"
    runs: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    opened: dict[str, int] = field(default_factory=dict)
    outlived: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    before_run: Callable[[str], None] = lambda _: None

    def open(self, path: Path, spec: GraphSpec) -> Session:
        del path
        with self.lock:
            self.opened[spec.path] = self.opened.get(spec.path, 0) + 1
        return _ToySession(spec, self)

    @property
    def native_ops(self) -> Mapping[str, int]:
        return {}

    def open_paths(self) -> set[str]:
        return {path for path, count in self.opened.items() if count}


class _ToySession(Session):
    def __init__(self, spec: GraphSpec, backend: ToyBackend) -> None:
        super().__init__(spec)
        self.backend = backend
        self.closed = False
        self.plans = 0

    def plan(self, dims: Mapping[str, int]) -> Plan:
        return _ToyPlan(self, dims)

    def close(self) -> None:
        self.closed = True
        self.backend.outlived += [self.spec.path] * self.plans
        with self.backend.lock:
            self.backend.opened[self.spec.path] -= 1


class _ToyPlan(Plan):
    def __init__(self, session: _ToySession, dims: Mapping[str, int]) -> None:
        super().__init__(session.spec, dims)
        self.session = session
        session.plans += 1

    def __del__(self) -> None:
        self.session.plans -= 1

    def _bind(self, name: str, array: Array) -> None:
        pass

    def run(self) -> None:
        if self.session.closed:
            raise BackendError(f"{self.spec.path} is closed")
        backend = self.session.backend
        backend.before_run(self.spec.path)
        with backend.lock:
            backend.runs.append((self.spec.path, dict(self.dims)))
        outputs = FUNCTIONS[self.spec.path]({t.name: self.array(t.name) for t in self.spec.inputs})
        for tensor in self.spec.outputs:
            self.array(tensor.name)[...] = outputs[tensor.name]


def _tokenizer(wrapped: bool) -> str:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(WORDS[:4])
    single = "<s> $A </s>" if wrapped else "$A </s>"
    specials = [("<s>", 1), ("</s>", 2)] if wrapped else [("</s>", 2)]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=specials)
    return str(backend.to_str())


DIMS = {
    "height": Dim("height", 8, 16, 32, 4),
    "width": Dim("width", 8, 16, 32, 4),
    "batch": Dim("batch", 1, 2, 4),
    "text_tokens": Dim("text_tokens", 4, 6, 12),
    "image_tokens": Dim("image_tokens", 4, 16, 64),
    "latent_h": Dim("latent_h", 4, 8, 16, 2),
    "latent_w": Dim("latent_w", 4, 8, 16, 2),
    "prompts": Dim("prompts", 1, 1, 2),
    "images": Dim("images", 1, 1, 2),
    "condition_rows": Dim("condition_rows", 1, 64, 64),
}
DEFAULTS = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 6}


def make_artifact(
    folder: Path, *, guidance: bool = False, batch: Dim | None = None, defaults: Mapping[str, Any] | None = None
) -> Artifact:
    """The toy's manifest, with its tokenizers and a weight file for each component on disk."""
    configs: dict[str, dict[str, Any]] = {
        "text_encoder": {"hidden_size": POOLED, "vocab_size": len(WORDS)},
        "text_encoder_2": {"d_model": JOINT, "vocab_size": len(WORDS)},
        "transformer": {
            "in_channels": CHANNELS,
            "out_channels": None,
            "patch_size": 1,
            "num_attention_heads": 2,
            "attention_head_dim": sum(AXES),
            "axes_dims_rope": list(AXES),
            "guidance_embeds": guidance,
            "joint_attention_dim": JOINT,
            "pooled_projection_dim": POOLED,
        },
        "vae": {"latent_channels": LATENT_CHANNELS, "block_out_channels": [4, 4]},
    }
    components = {}
    files = {RESIDUAL_DIFF.path: FileEntry("0" * 64, 0)}
    for name, graphs in _graphs(guidance).items():
        weights = f"{name}/model.safetensors"
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file({"weight": np.zeros((2, 2), np.float32)}, folder / weights)
        for path in (weights, *(graph.path for graph in graphs.values())):
            files[path] = FileEntry("0" * 64, 0)
        parity = ParitySpec(checked=False)
        components[name] = ComponentSpec(name, name, DType.FLOAT32, configs[name], graphs, (weights,), parity)
    specs = {}
    for name, wrapped, length in (("tokenizer", True, CLIP_TOKENS), ("tokenizer_2", False, 12)):
        path = f"{name}/tokenizer.json"
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(_tokenizer(wrapped), encoding="utf-8")
        files[path] = FileEntry("0" * 64, 0)
        specs[name] = TokenizerSpec(name, "Toy", path, length, 0, "<pad>")
    manifest = Manifest(
        family="flux",
        pipeline_class="FluxPipeline",
        target="cpu",
        components=components,
        dims={**DIMS, **({"batch": batch} if batch else {})},
        step_graphs={"residual_diff": RESIDUAL_DIFF},
        ops={},
        scheduler=SchedulerSpec("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        tokenizers=specs,
        defaults={**DEFAULTS, **(defaults or {})},
        files=files,
    )
    return Artifact(folder, manifest, "0" * 64)


@dataclass
class Toy:
    """A loaded toy pipeline."""

    pipe: FluxPipeline
    backend: ToyBackend
    artifact: Artifact

    def reference(
        self,
        prompts: Sequence[str],
        latents: Array,
        *,
        negative: Sequence[str] | None = None,
        true_cfg_scale: float = 1.0,
        guidance_scale: float = 3.5,
        size: tuple[int, int] = (16, 16),
        steps: int = 3,
        sigmas: Sequence[float] | None = None,
        text_tokens: int = 6,
        prompts_2: Sequence[str] | None = None,
    ) -> list[Array]:
        """Latents after every step; one prompt a row."""
        guidance = self.artifact.manifest.components["transformer"].config["guidance_embeds"]
        rotaries = [np.zeros((text_tokens, len(AXES)), np.float32), raster_ids(size[0] // 4, size[1] // 4, len(AXES))]
        text_rotary, image_rotary = (rotary_table(ids, AXES, 10_000.0) for ids in rotaries)
        schedule = FlowMatchEuler(use_dynamic_shifting=True).schedule(steps, latents.shape[1], sigmas)

        def predict(texts: Sequence[str], texts_2: Sequence[str], timestep: float) -> Array:
            pooled = clip(self.pipe.tokenizers["tokenizer"].encode(texts))
            context = t5(self.pipe.tokenizers["tokenizer_2"].encode(texts_2, text_tokens)) @ _TEXT_IN
            times = np.full(len(texts), timestep, np.float32) / np.float32(1000)
            scales = np.full(len(texts), guidance_scale, np.float32) if guidance else None
            mods = [modulation(times, pooled, scales, phase) for phase in (0.0, 1.0)]
            h1 = first(latents * np.float32(0.5), context, text_rotary, image_rotary, mods[0])
            return finish(rest(h1, text_rotary, image_rotary), mods[1])

        history = []
        for i, timestep in enumerate(schedule.timesteps):
            noise_pred = predict(prompts, prompts_2 or prompts, timestep)
            if negative is not None:
                other = predict(negative, negative, timestep)
                noise_pred = other + np.float32(true_cfg_scale) * (noise_pred - other)
            latents = latents + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * noise_pred
            history.append(latents)
        return history


def make_toy(folder: Path, keep: Any = "all", cache_config: DenoisingCacheConfig | None = None, **options: Any) -> Toy:
    """A toy pipeline over an artifact in `folder`."""
    artifact = make_artifact(folder, **options)
    backend = ToyBackend()
    config = PipelineConfig.from_artifact(artifact)
    weights = [path for model in config.models.values() for path in model.weight_paths]
    pipe = FluxPipeline(config, backend, [Device()], weights, cache_config, artifact=artifact, keep=keep)
    return Toy(pipe, backend, artifact)


def unpack(latents: Array, size: tuple[int, int]) -> Array:
    """Packed latents → the toy decoder's input, written with loops."""
    high, wide = size[0] // 4, size[1] // 4
    result = np.zeros((len(latents), LATENT_CHANNELS, 2 * high, 2 * wide), np.float32)
    for row in range(high):
        for column in range(wide):
            token = latents[:, row * wide + column].reshape(-1, LATENT_CHANNELS, 2, 2)
            result[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = token
    return result


__all__ = ["DIMS", "Toy", "ToyBackend", "make_artifact", "make_toy", "replace", "unpack", "vae"]
