"""What a model folder says of itself, and its weights by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitrify.engine.component import ComponentConfig, ComponentModel, PipelineConfig
from vitrify.engine.errors import ArtifactError, SpecError
from vitrify.engine.weight_files import select_files
from vitrify.engine.weights import Weights

SAMPLE = Path(__file__).parents[2] / "examples" / "emoji_flux"


def folder(root: Path, files: dict[str, dict[str, Any]], index: Any = None) -> Path:
    (root / "model_index.json").write_text(json.dumps({"_class_name": "P", "_ignored": 1, "unet": ["a", "B"], **(index or {})}))
    (root / "unet").mkdir(exist_ok=True)
    (root / "unet" / "config.json").write_text('{"width": 3}')
    for name, tensors in files.items():
        save_file(tensors, root / "unet" / name)
    return root


ONE = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def test_the_sample() -> None:
    config = PipelineConfig.from_folder(SAMPLE)
    assert config.model_path == SAMPLE
    assert set(config.models) == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    transformer = config.models["transformer"]
    assert transformer.encoding == "bfloat16"
    assert transformer.weight_paths == ["transformer/diffusion_pytorch_model.safetensors"]
    assert transformer.config["in_channels"] == 32
    assert config.metadata["_class_name"] == "FluxPipeline"


def test_encoding_is_that_of_most_elements(tmp_path: Path) -> None:
    many, few = torch.zeros(10, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.float32)
    source = folder(tmp_path, {"model.safetensors": {"a": many, "b": few, "c": few.clone()}})
    assert PipelineConfig.from_folder(source).models["unet"] == ComponentConfig(
        {"width": 3}, "bfloat16", ["unet/model.safetensors"]
    )


def test_no_weights_count_as_float32(tmp_path: Path) -> None:
    assert PipelineConfig.from_folder(folder(tmp_path, {})).models["unet"] == ComponentConfig({"width": 3}, "float32", [])


def test_variants_and_shards(tmp_path: Path) -> None:
    plain = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    half = ["m.fp16-00001-of-00002.safetensors", "m-00002-of-00002.fp16.safetensors"]
    for i, name in enumerate([*plain, *half, "m.ema.safetensors"]):
        save_file({f"t{i}": ONE}, tmp_path / name)
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    assert [path.name for path in select_files(tmp_path)] == plain
    assert sorted(path.name for path in select_files(tmp_path, "fp16")) == sorted(half)
    assert [path.name for path in select_files(tmp_path, "ema")] == ["m.ema.safetensors"]
    assert select_files(tmp_path, "none") == []
    assert select_files(tmp_path / "absent") == []


def test_entries_without_a_config_are_no_models(tmp_path: Path) -> None:
    source = folder(tmp_path, {}, {"scheduler": ["a", "B"], "image_encoder": [None, None], "_private": ["a", "B"]})
    assert set(PipelineConfig.from_folder(source).models) == {"unet"}


def test_not_a_pipeline_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"not a diffusers pipeline folder: it has no model_index\.json"):
        PipelineConfig.from_folder(tmp_path)


def test_damaged_folder(tmp_path: Path) -> None:
    source = folder(tmp_path, {})
    (source / "unet" / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        PipelineConfig.from_folder(source)
    (source / "unet" / "config.json").write_text("[]")
    with pytest.raises(SpecError, match="got a list, expected a JSON object"):
        PipelineConfig.from_folder(source)
    (source / "unet" / "config.json").write_text("{}")
    (source / "unet" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        PipelineConfig.from_folder(source)


def test_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=re.escape(str(tmp_path))):
        PipelineConfig.from_artifact(tmp_path)


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "float": torch.randn(3, 5, generator=generator),
        "half": torch.randn(4, generator=generator).to(torch.float16),
        "bf16": torch.randn(2, 3, generator=generator).to(torch.bfloat16),
        "odd": torch.tensor([1, 2, 3], dtype=torch.int8),
        "double": torch.randn(2, generator=generator, dtype=torch.float64),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    weights = Weights([tmp_path / "model.safetensors"])
    assert set(weights) == set(tensors)
    assert len(weights) == len(tensors)
    for name, tensor in tensors.items():
        assert weights[name].shape == tuple(tensor.shape)
        expected = tensor.to(torch.float64).numpy()
        assert np.array_equal(weights[name].astype(np.float64), expected)
    assert weights["bf16"].dtype == ml_dtypes.bfloat16
    assert "absent" not in weights
    with pytest.raises(KeyError):
        weights["absent"]


def test_weights_cannot_be_written(tmp_path: Path) -> None:
    save_file({"a": ONE}, tmp_path / "m.safetensors")
    array = Weights([tmp_path / "m.safetensors"])["a"]
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_weights_are_read_when_asked_for(tmp_path: Path) -> None:
    weights = Weights([tmp_path / "absent.safetensors"])
    with pytest.raises(ArtifactError, match="absent"):
        list(weights)


def test_a_name_in_two_files(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"same": ONE}, tmp_path / name)
    with pytest.raises(SpecError, match=r"tensor 'same' is in .*a\.safetensors and in .*b\.safetensors"):
        list(Weights([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]))


def test_a_dtype_that_is_not_supported(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.uint16)}, tmp_path / "m.safetensors")
    with pytest.raises(SpecError, match="U16"):
        Weights([tmp_path / "m.safetensors"])["a"]


def test_a_component_model_keeps_what_it_is_given() -> None:
    with pytest.raises(TypeError, match="load_model"):
        ComponentModel({}, "float32", [], {})  # type: ignore[abstract]

    class Own(ComponentModel):
        def load_model(self) -> Any:
            return None

    own = Own({"a": 1}, "float32", [], {"w": ONE})
    assert (own.config, own.encoding, own.devices, own.weights) == ({"a": 1}, "float32", [], {"w": ONE})
    assert own.session is None
    assert own.cache_config is None
