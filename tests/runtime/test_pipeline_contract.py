"""The documented class, member by member, with a pipeline of a user's own in plain numpy."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitrify.engine.errors import SpecError
from vitrify.runtime import (
    ComponentModel,
    DenoisingCacheConfig,
    DenoisingCacheState,
    Device,
    DiffusionPipeline,
    DiffusionPipelineOutput,
    PipelineConfig,
    PixelGenerationContext,
)
from vitrify.runtime.caching.state import documented_state


class Mixer(ComponentModel):
    """noise_pred = latents @ weight · scale."""

    def __init__(self, config: Any, encoding: str, devices: Any, weights: Any) -> None:
        super().__init__(config, encoding, devices, weights)
        self.model = self.load_model()

    def load_model(self) -> Any:
        matrix, scale = np.asarray(self.weights["mix.weight"], np.float32), self.config["scale"]
        return lambda latents: latents @ matrix * np.float32(scale)


class Painter(ComponentModel):
    """Latents to pixels; notes what it was constructed with."""

    def __init__(self, config: Any, encoding: str, devices: Any, weights: Any, *, session: Any, cache_config: Any) -> None:
        super().__init__(config, encoding, devices, weights, session=session, cache_config=cache_config)
        self.model = self.load_model()

    def load_model(self) -> Any:
        return lambda latents: np.clip(latents * 40 + 128, 0, 255).astype(np.uint8)


@dataclass
class Inputs:
    latents: Any
    steps: int


class NumpyPipeline(DiffusionPipeline):
    components: ClassVar[Any] = {"transformer": Mixer, "vae": Painter, "tokenizer": str}
    default_num_inference_steps = 4

    def init_remaining_components(self) -> None:
        self.ready = sorted(name for name in vars(self) if name in ("transformer", "vae"))
        self.calls: list[Any] = []

    def prepare_inputs(self, context: Any) -> Inputs:
        rng = np.random.default_rng(context.seed or 0)
        latents = rng.standard_normal((context.num_images_per_prompt, context.height * context.width, 3)).astype(np.float32)
        self.shape = (context.num_images_per_prompt, context.height, context.width, 3)
        return Inputs(latents, context.num_inference_steps or self.default_num_inference_steps)

    def run_transformer(self, cache_state: DenoisingCacheState, **kwargs: Any) -> tuple[Any, ...]:
        self.calls.append((cache_state, kwargs))
        return (self.transformer.model(kwargs["hidden_states"]),)  # type: ignore[attr-defined]

    def execute(self, model_inputs: Inputs, **_: Any) -> DiffusionPipelineOutput:
        latents = model_inputs.latents
        state = self.create_cache_state(len(latents), latents.shape[1], CONFIGS["transformer"])
        for step in range(model_inputs.steps):
            noise_pred = self.run_denoising_step(step, state, self.devices[0], hidden_states=latents)
            latents = latents - noise_pred / model_inputs.steps
        return DiffusionPipelineOutput(self.vae.model(latents).reshape(self.shape))  # type: ignore[attr-defined]


CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "scale": 0.5,
        "num_attention_heads": 2,
        "attention_head_dim": 3,
        "patch_size": 2,
        "in_channels": 3,
        "out_channels": None,
    },
    "vae": {},
}
MATRIX = np.arange(9, dtype=np.float32).reshape(3, 3) / 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index = {
        "_class_name": "NumpyPipeline",
        "transformer": ["own", "Mixer"],
        "vae": ["own", "Painter"],
        "scheduler": ["own", "S"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name, config in CONFIGS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    save_file({"mix.weight": MATRIX}, tmp_path / "transformer" / "model.safetensors")
    save_file({"unused": MATRIX.astype(np.float16)}, tmp_path / "vae" / "model.safetensors")
    return tmp_path


def make(folder: Path, cls: Any = NumpyPipeline, weights: Sequence[str | Path] = (), **kwargs: Any) -> Any:
    return cls(PipelineConfig.from_folder(folder), None, [Device()], weights, **kwargs)


def test_a_pipeline_of_ones_own_draws(folder: Path) -> None:
    pipe = make(folder)
    context = PixelGenerationContext(height=4, width=6, num_images_per_prompt=2, seed=3)
    images = pipe.execute(pipe.prepare_inputs(context)).images
    latents: Any = np.random.default_rng(3).standard_normal((2, 24, 3)).astype(np.float32)
    for _ in range(4):
        latents = latents - (latents @ MATRIX * np.float32(0.5)) / 4
    expected = np.clip(latents * 40 + 128, 0, 255).astype(np.uint8).reshape(2, 4, 6, 3)
    assert np.array_equal(images, expected)
    assert len(pipe.calls) == 4
    state, kwargs = pipe.calls[0]
    assert set(kwargs) == {"hidden_states"}
    assert state.computed is True
    assert all(call[0] is state for call in pipe.calls)


def test_construction(folder: Path) -> None:
    """Components in dict order with what they name, as attributes; the rest afterwards; other entries are left alone."""
    pipe = make(folder)
    assert pipe.ready == ["transformer", "vae"]
    assert isinstance(pipe.transformer, Mixer)
    assert not hasattr(pipe, "tokenizer")
    assert (pipe.session, pipe.devices) == (None, [Device("cpu", 0)])
    assert (pipe.transformer.encoding, pipe.vae.encoding) == ("float32", "float16")
    assert pipe.transformer.config == CONFIGS["transformer"]
    assert pipe.vae.cache_config is pipe.cache_config
    assert pipe.transformer.cache_config is None


def test_class_attributes() -> None:
    documented = {
        "components": None,
        "unprefixed_weight_component": None,
        "default_num_inference_steps": 50,
        "default_residual_threshold": 0.05,
        "default_taylorseer_cache_interval": 5,
        "default_taylorseer_warmup_steps": 9,
        "default_taylorseer_max_order": 1,
    }
    assert {name: getattr(DiffusionPipeline, name) for name in documented} == documented
    assert DiffusionPipeline.__abstractmethods__ == {"execute", "init_remaining_components", "prepare_inputs"}


def test_components_not_set(folder: Path) -> None:
    empties: list[Any] = [None, {}]
    for empty in empties:
        cls = type("Bare", (NumpyPipeline,), {"components": empty})
        with pytest.raises(ValueError, match=r"^Bare.components is not set\.$"):
            make(folder, cls)


def test_unconsumed_keyword_arguments(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"NumpyPipeline\(\) got unexpected keyword arguments: colour, size"):
        make(folder, size=1, colour=2)


def test_component_missing_from_the_folder(folder: Path) -> None:
    cls = type("More", (NumpyPipeline,), {"components": {"transformer": Mixer, "prior": Mixer}})
    with pytest.raises(ValueError, match=r"component 'prior' of More is not in .*; available: transformer, vae"):
        make(folder, cls)


def test_unset_cache_numbers_are_filled_once(folder: Path) -> None:
    cls = type("Own", (NumpyPipeline,), {"default_taylorseer_warmup_steps": 3, "default_taylorseer_max_order": 2})
    config = make(folder, cls, cache_config=DenoisingCacheConfig(taylorseer=True, taylorseer_cache_interval=7)).cache_config
    assert config == DenoisingCacheConfig(False, True, 7, 3, 2)
    assert dataclasses.astuple(make(folder).cache_config)[:5] == (False, False, 5, 9, 1)


def test_weight_paths(folder: Path) -> None:
    """A prefix names the component; a path may be absolute if it lies inside; a component without one has its folder's files."""
    for given in ("transformer/other.safetensors", folder / "transformer" / "other.safetensors"):
        save_file({"mix.weight": MATRIX * 2}, folder / "transformer" / "other.safetensors")
        pipe = make(folder, weights=[given])
        assert np.array_equal(pipe.transformer.weights["mix.weight"], MATRIX * 2)
        assert list(pipe.vae.weights) == ["unused"]


def test_unprefixed_weights(folder: Path) -> None:
    save_file({"mix.weight": MATRIX * 3}, folder / "flat.safetensors")
    with pytest.raises(SpecError, match=r"'flat.safetensors' has no component/ prefix, and NumpyPipeline\.unprefixed"):
        make(folder, weights=["flat.safetensors"])
    cls = type("Flat", (NumpyPipeline,), {"unprefixed_weight_component": "transformer"})
    assert np.array_equal(make(folder, cls, ["flat.safetensors"]).transformer.weights["mix.weight"], MATRIX * 3)


def test_weights_of_a_model_that_is_not_used_are_left(folder: Path) -> None:
    cls = type("Less", (NumpyPipeline,), {"components": {"transformer": Mixer}})
    assert make(folder, cls, ["vae/model.safetensors"]).ready == ["transformer"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("prior/model.safetensors", "there is no component 'prior'; components: transformer, vae"),
        ("transformer/absent.safetensors", "does not exist"),
        (".", "weight file '.' is a folder, expected a file in"),
        ("transformer", "is a folder, expected a file in"),
        ("../outside.safetensors", "lies outside the model folder"),
        ("transformer/../../outside.safetensors", "lies outside the model folder"),
        ("/outside.safetensors", "lies outside the model folder"),
    ],
)
def test_bad_weight_paths(folder: Path, path: str, message: str) -> None:
    (folder / "prior").mkdir()
    save_file({"a": MATRIX}, folder / "prior" / "model.safetensors")
    with pytest.raises(SpecError, match=re.escape(message)):
        make(folder, weights=[path])


def test_no_weights(folder: Path) -> None:
    (folder / "vae" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"No weight files found for component 'vae' in {folder}"):
        make(folder)


@pytest.mark.parametrize(
    ("returned", "got"),
    [(np.zeros(3), "ndarray"), ((1, 2), "a tuple of 2"), ((), "a tuple of 0"), ([1], "list"), (None, "NoneType")],
)
def test_another_form_from_run_transformer(folder: Path, returned: Any, got: str) -> None:
    cls = type("Odd", (NumpyPipeline,), {"run_transformer": lambda self, state, **kwargs: returned})  # noqa: ARG005
    pipe = make(folder, cls)
    state = DenoisingCacheState()
    with pytest.raises(SpecError, match=re.escape(f"Odd.run_transformer returned {got}, expected (noise_pred,)")):
        pipe.run_denoising_step(0, state, Device())
    assert state.computed is None


def test_run_transformer_not_defined(folder: Path) -> None:
    cls = type("None_", (NumpyPipeline,), {"run_transformer": DiffusionPipeline.run_transformer})
    with pytest.raises(SpecError, match="must define run_transformer"):
        make(folder, cls).run_denoising_step(0, DenoisingCacheState(), Device())


@pytest.mark.parametrize("as_object", [True, False])
def test_cache_state(as_object: bool) -> None:
    """The documented buffers: which exist, their shapes and dtypes, zeros."""
    config: Any = {**CONFIGS["transformer"], "out_channels": 5}
    if as_object:
        config = type("Config", (), config)

    def shapes(**flags: Any) -> dict[str, Any]:
        policy = DenoisingCacheConfig(**flags).policy()
        of: Any = "output" if policy and not policy.probes else policy and policy.predictor and policy.predictor.of
        state = documented_state(policy, of, 2, 7, config, np.float16)
        names = ("prev_residual", "prev_output", *(f"taylor_factor_{i}" for i in range(3)))
        arrays = {name: value for name in names if (value := getattr(state, name)) is not None}
        assert not any(array.any() for array in arrays.values())
        return {name: (array.shape, array.dtype.name) for name, array in arrays.items()}

    first_block = {"prev_residual": ((2, 7, 6), "float16"), "prev_output": ((2, 7, 20), "float16")}
    factors = {f"taylor_factor_{i}": ((2, 7, 20), "float32") for i in range(3)}
    assert shapes() == {}
    assert shapes(first_block_caching=True) == first_block
    assert shapes(taylorseer=True, taylorseer_max_order=2) == factors
    del factors["taylor_factor_2"]
    assert shapes(taylorseer=True, taylorseer_max_order=1) == factors
    assert shapes(first_block_caching=True, taylorseer=True) == first_block | factors


def test_cache_state_of_a_pipeline(folder: Path) -> None:
    pipe = make(folder)
    assert pipe.create_cache_state(2, 7, CONFIGS["transformer"], text_seq_len=3) == DenoisingCacheState()
    for missing in ("num_attention_heads", "attention_head_dim", "patch_size", "in_channels", "out_channels"):
        config = {key: value for key, value in CONFIGS["transformer"].items() if key != missing}
        with pytest.raises(SpecError, match=f"transformer_config has no '{missing}'"):
            pipe.create_cache_state(2, 7, config)


def test_context_fields() -> None:
    documented = [
        "tokens", "tokens_2", "negative_tokens", "negative_tokens_2", "mask", "negative_mask", "latents",
        "timesteps", "sigmas", "latent_image_ids", "text_ids", "height", "width", "num_inference_steps",
        "guidance_scale", "true_cfg_scale", "num_images_per_prompt", "strength", "seed", "input_image",
        "output_format", "request_id", "status", "residual_threshold",
    ]  # fmt: skip
    fields = vars(PixelGenerationContext())
    assert list(fields)[: len(documented)] == documented
    assert set(fields.values()) == {None}
