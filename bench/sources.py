"""Diffusers FLUX folders to compile: the sample's, or random weights of any shape between tiny encoders and a tiny VAE."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrify.bench.cache import code_digest
from vitrify.bench.cases import Encoders, TransformerShape
from vitrify.bench.flux_configs import CLIP_TOKENS, FluxConfigs, short_flux_dev_configs, small_configs
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


def write_source(
    folder: Path,
    shape: TransformerShape,
    sample: Path,
    *,
    downsampling: int,
    outliers: float = 0.0,
    encoders: Encoders = "small",
) -> int:
    """Write a pipeline folder with random bfloat16 weights around `shape`; returns the bytes of its weights.

    sample: the folder whose tokenizers are used. downsampling: pixels per latent position; 8 with FLUX.1-dev's VAE.
    outliers: share of the transformer's output channels that are outliers, see write_random_weights.
    encoders: the models around the transformer.
    """
    clip, t5 = (json.loads((sample / name / "config.json").read_text()) for name in ("text_encoder", "text_encoder_2"))
    if encoders == "small":
        configs = small_configs(shape, clip=clip, t5=t5, downsampling=downsampling)
    else:
        configs = short_flux_dev_configs(shape, clip=clip, t5=t5)
    configs.write(folder)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(sample / name, folder / name)
    if encoders == "flux-dev":
        _lengthen(folder / "tokenizer" / "tokenizer_config.json", CLIP_TOKENS)
    written = 0
    for name, shapes in parameter_shapes(configs).items():
        share = outliers if name == "transformer" else 0.0
        written += write_random_weights(folder / name, _STEMS[name], shapes, seed=_SEED, outliers=share)
    return written


def parameter_shapes(configs: FluxConfigs) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component → parameter → shape, from the models on the meta device; tied parameters once."""
    return {name: {n: tuple(p.shape) for n, p in _meta_model(name, getattr(configs, name)).named_parameters()} for name in _STEMS}


def _lengthen(path: Path, tokens: int) -> None:
    """Let a tokenizer's configuration at `path` take `tokens` tokens."""
    path.chmod(0o644)
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "max_length": tokens, "model_max_length": tokens}, indent=2) + "\n"
    )


def source_key(shape: TransformerShape, downsampling: int, outliers: float = 0.0, encoders: Encoders = "small") -> dict[str, Any]:
    """All that a written folder follows from, for a cache."""
    makers = ("vitrify.bench.flux_configs", "vitrify.bench.random_weights", "vitrify.bench.sources")
    return {
        "config": shape.config(),
        "downsampling": downsampling,
        "outliers": outliers,
        "encoders": encoders,
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
