"""Diffusers FLUX folders to compile: the sample's, or random weights of any shape between tiny encoders and a tiny VAE."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrify.bench.cache import code_digest
from vitrify.bench.cases import TransformerShape
from vitrify.bench.flux_configs import FluxConfigs, small_configs
from vitrify.bench.random_weights import write_random_weights
from vitrify.engine.errors import RequestError

if TYPE_CHECKING:
    import torch

__all__ = ["check_sample", "parameter_shapes", "source_key", "weight_bytes", "write_source"]

_STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_SEED = 7


def check_sample(sample: Path) -> None:
    """Raises RequestError when `sample` is not a pipeline's folder."""
    if not (sample / "model_index.json").is_file():
        raise RequestError(f"{sample}: no model_index.json; name the sample pipeline's folder (examples/emoji_flux) by --sample")


def write_source(folder: Path, shape: TransformerShape, sample: Path, *, downsampling: int, outliers: float = 0.0) -> int:
    """Write a pipeline folder with random bfloat16 weights around `shape`; returns the bytes of its weights.

    sample: the folder whose tokenizers are used. downsampling: pixels per latent position.
    outliers: share of the transformer's output channels that are outliers, see write_random_weights.
    """
    clip, t5 = (json.loads((sample / name / "config.json").read_text()) for name in ("text_encoder", "text_encoder_2"))
    configs = small_configs(shape, clip=clip, t5=t5, downsampling=downsampling)
    configs.write(folder)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(sample / name, folder / name)
    written = 0
    for name, shapes in parameter_shapes(configs).items():
        share = outliers if name == "transformer" else 0.0
        written += write_random_weights(folder / name, _STEMS[name], shapes, seed=_SEED, outliers=share)
    return written


def parameter_shapes(configs: FluxConfigs) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component → parameter → shape, from the models on the meta device; tied parameters once."""
    return {name: {n: tuple(p.shape) for n, p in _meta_model(name, getattr(configs, name)).named_parameters()} for name in _STEMS}


def source_key(shape: TransformerShape, downsampling: int, outliers: float = 0.0) -> dict[str, Any]:
    """All that a written folder follows from, for a cache."""
    makers = ("vitrify.bench.flux_configs", "vitrify.bench.random_weights", "vitrify.bench.sources")
    return {
        "config": shape.config(),
        "downsampling": downsampling,
        "outliers": outliers,
        "seed": _SEED,
        "code": code_digest(*makers),
    }


def weight_bytes(folder: Path) -> int:
    """Bytes of all safetensors files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _meta_model(name: str, config: Mapping[str, Any]) -> torch.nn.Module:
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    given = dict(config)
    flux: Any = FluxTransformer2DModel
    autoencoder: Any = AutoencoderKL
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: torch.nn.Module
        if name == "text_encoder":
            model = CLIPTextModel(CLIPTextConfig.from_dict(given))
        elif name == "text_encoder_2":
            model = T5EncoderModel(T5Config.from_dict(given))
        elif name == "vae":
            model = autoencoder.from_config(given)
        else:
            model = flux.from_config(given)
    return model
