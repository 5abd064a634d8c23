"""Users' own pipelines in numpy: the three ways to write `run_transformer`, over a small nonlinear denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import save_file

from vitrify.runtime import (
    ComponentModel,
    DenoisingCacheConfig,
    Device,
    DiffusionPipeline,
    DiffusionPipelineOutput,
    PipelineConfig,
)

ROWS, TOKENS, WIDTH, CHANNELS = 2, 5, 6, 4
CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 3,
    "patch_size": 2,
    "in_channels": 1,
    "out_channels": None,
}
_RNG = np.random.default_rng(3)
_IN, _OUT = (_RNG.standard_normal(shape).astype(np.float32) * 0.4 for shape in ((CHANNELS, WIDTH), (WIDTH, CHANNELS)))
_BLOCKS = [_RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32) * 0.2 for _ in range(3)]
LATENTS = _RNG.standard_normal((ROWS, TOKENS, CHANNELS)).astype(np.float32)


class Blocks(ComponentModel):
    """Embed, three blocks, finish; `time` moves all of them."""

    def __init__(self, config: Any, encoding: str, devices: Any, weights: Any) -> None:
        super().__init__(config, encoding, devices, weights)
        self.load_model()

    def load_model(self) -> Any:
        return self

    def embed(self, latents: Any, time: float) -> Any:
        return latents @ _IN * np.float32(1 + 0.1 * time)

    def block(self, index: int, hidden: Any, time: float) -> Any:
        return hidden + np.tanh(hidden @ _BLOCKS[index] + np.float32(time))

    def finish(self, hidden: Any, time: float) -> Any:
        return hidden @ _OUT * np.float32(1 - 0.2 * time)


class Plain(DiffusionPipeline):
    """Returns noise_pred alone: static decisions over outputs."""

    components: ClassVar[Any] = {"transformer": Blocks}
    transformer: Blocks

    def init_remaining_components(self) -> None:
        self.computed: list[int] = []

    def prepare_inputs(self, context: Any) -> Any:
        return context

    def run_transformer(self, cache_state: Any, **kwargs: Any) -> tuple[Any, ...]:
        del cache_state
        latents, time, step = kwargs["latents"], kwargs["time"], kwargs["at"]
        hidden = self.transformer.embed(latents, time)
        for index in range(3):
            hidden = self.transformer.block(index, hidden, time)
        self.computed.append(step)
        return (self.transformer.finish(hidden, time),)

    def execute(self, model_inputs: Any, **_: Any) -> DiffusionPipelineOutput:
        steps = model_inputs
        self.state = self.create_cache_state(ROWS, TOKENS, CONFIG)
        self.state.num_inference_steps = steps
        self.state.sigmas = [1 - s / steps for s in range(steps)]
        self.outputs = []
        latents: Any = LATENTS
        for step in range(steps):
            time = 1 - step / steps
            noise_pred = self.run_denoising_step(step, self.state, self.devices[0], latents=latents, time=time, at=step)
            self.outputs.append(noise_pred.copy())
            latents = latents - noise_pred / np.float32(steps)
        self.latents = latents
        return DiffusionPipelineOutput(np.zeros((1, 1, 1, 3), np.uint8))


class Residual(Plain):
    """Also gives the residual of all blocks: static decisions over residuals."""

    def run_transformer(self, cache_state: Any, **kwargs: Any) -> tuple[Any, ...]:
        embedded = self.transformer.embed(kwargs["latents"], kwargs["time"])
        hidden = embedded
        for index in range(3):
            hidden = self.transformer.block(index, hidden, kwargs["time"])
        self.keep_residual(cache_state, hidden - embedded)
        self.computed.append(kwargs["at"])
        return (self.transformer.finish(hidden, kwargs["time"]),)

    def run_skipped(self, cache_state: Any, **kwargs: Any) -> Any:
        embedded = self.transformer.embed(kwargs["latents"], kwargs["time"])
        return self.transformer.finish(embedded + self.predicted_residual(cache_state), kwargs["time"])


class Probing(Plain):
    """Decides by the first block; `whole` says what compute gives: noise_pred, or the remaining blocks' residual."""

    whole: ClassVar[bool] = True

    def run_transformer(self, cache_state: Any, **kwargs: Any) -> tuple[Any, ...]:
        time = kwargs["time"]
        embedded = self.transformer.embed(kwargs["latents"], time)
        first = self.transformer.block(0, embedded, time)

        def rest() -> Any:
            self.computed.append(kwargs["at"])
            return self.transformer.block(2, self.transformer.block(1, first, time), time)

        if self.whole:
            return self.first_block(cache_state, first - embedded, lambda: self.transformer.finish(rest(), time))
        return self.first_block(
            cache_state,
            first - embedded,
            lambda: rest() - first,
            lambda remaining: self.transformer.finish(first + remaining, time),
        )


class ProbingResidual(Probing):
    whole = False


def make(folder: Path, kind: Any, config: DenoisingCacheConfig | None = None) -> Any:
    """A pipeline of this class over a folder with one component."""
    (folder / "transformer").mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Own", "transformer": ["own", "Blocks"]}))
    (folder / "transformer" / "config.json").write_text(json.dumps(CONFIG))
    save_file({"unused": np.zeros(1, np.float32)}, folder / "transformer" / "model.safetensors")
    return kind(PipelineConfig.from_folder(folder), None, [Device()], [], config)
