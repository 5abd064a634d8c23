"""Finding a diffusers folder's configurations and weights, against what diffusers and transformers themselves write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from vitrify.engine.component import PipelineConfig
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import CompileError, SpecError
from vitrify.engine.weights import Weights
from vitrify.export.source import DiffusersFolder, WeightFiles

INDEX: dict[str, Any] = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.42.1",
    "image_encoder": [None, None],
    "is_distilled": True,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline folder with configurations and no weights."""
    root = tmp_path / "pipeline"
    for name, config in {
        "scheduler": "scheduler_config.json",
        "text_encoder": "config.json",
        "tokenizer": "tokenizer_config.json",
        "transformer": "config.json",
    }.items():
        (root / name).mkdir(parents=True)
        (root / name / config).write_text(json.dumps({"of": name}))
    (root / "model_index.json").write_text(json.dumps(INDEX))
    return root


def tensors(seed: int, *names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((2, 3)).astype(np.float32) for name in names}


def shard(component: Path, index: str, weight_map: dict[str, str]) -> None:
    (component / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def assert_locates(found: WeightFiles, expected: dict[str, np.ndarray]) -> None:
    """Every tensor's bytes lie where `found` says."""
    assert set(found.tensors) == set(expected)
    for name, array in expected.items():
        place = found.tensors[name]
        assert place.file in found.files
        with place.file.open("rb") as file:
            file.seek(place.offset)
            assert file.read(place.nbytes) == array.tobytes()
        assert (place.dtype, place.shape) == (DType.from_numpy(array.dtype), array.shape)


def test_the_index_and_configurations_are_read_without_any_weights(folder: Path) -> None:
    source = DiffusersFolder.open(folder)
    assert source.pipeline_class == "FluxPipeline"
    assert source.classes == {name: tuple(INDEX[name]) for name in ("scheduler", "text_encoder", "tokenizer", "transformer")}
    assert source.name is None
    for name in source.classes:
        component = source.component(name)
        assert (component.name, component.folder, component.config) == (name, folder / name, {"of": name})
    assert source.component("transformer").class_name == "FluxTransformer2DModel"
    assert source.component("text_encoder").library == "transformers"


def test_a_tokenizer_needs_no_configuration_of_its_own(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    assert DiffusersFolder.open(folder).component("tokenizer").config == {}


def test_documents_are_licences_notices_and_the_card_of_the_top_folder(folder: Path) -> None:
    for name in ("LICENSE.md", "README.md", "license-extra.txt", "NOTICE", "picture.png", "transformer/LICENSE"):
        (folder / name).write_text("x")
    (folder / "LICENSES").mkdir()
    assert [p.name for p in DiffusersFolder.open(folder).documents()] == [
        "LICENSE.md",
        "NOTICE",
        "README.md",
        "license-extra.txt",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "model_index.json").unlink(), r"no model_index\.json in it"),
        (lambda root: (root / "model_index.json").write_text("{"), r"model_index\.json: not valid JSON"),
        (lambda root: (root / "model_index.json").write_text("[]"), "holds a list, expected a JSON object"),
        (lambda root: (root / "model_index.json").write_text("{}"), "no _class_name"),
        (lambda root: (root / "model_index.json").write_bytes(b"\xff"), "not valid JSON"),
        (
            lambda root: (root / "model_index.json").write_text('{"_class_name": "P", "../x": ["a", "b"]}'),
            "expected .library, class.",
        ),
        (lambda root: (root / "model_index.json").write_text('{"_class_name": "P", "x": ["a", 3]}'), "expected .library, class."),
        (lambda root: (root / "transformer" / "config.json").unlink(), r"transformer/config\.json: missing"),
        (lambda root: (root / "transformer" / "config.json").write_text('{"a": NaN}'), "NaN is not JSON"),
        (
            lambda root: (root / "transformer").rename(root / "elsewhere"),
            r"transformer: missing; model_index\.json names it as diffusers",
        ),
    ],
)
def test_a_damaged_folder_is_named(folder: Path, change: Callable[[Path], object], words: str) -> None:
    change(folder)
    with pytest.raises(CompileError, match=words):
        DiffusersFolder.open(folder).component("transformer")


def test_what_is_no_folder_and_a_component_that_is_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="is not there"):
        DiffusersFolder.open("black-forest-labs/FLUX.1-dev")
    (tmp_path / "flux.safetensors").write_bytes(b"")
    with pytest.raises(CompileError, match="is a file"):
        DiffusersFolder.open(tmp_path / "flux.safetensors")
    with pytest.raises(CompileError, match=r"no component 'vae'; it has: scheduler, text_encoder, tokenizer, transformer"):
        DiffusersFolder.open(folder).component("vae")
    with pytest.raises(CompileError, match="expected a word such as fp16"):
        DiffusersFolder.open(folder, variant="../fp16")


def test_a_single_file_of_either_library(folder: Path) -> None:
    for component, name in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        save_file(tensors(0, "a", "b"), folder / component / f"{name}.safetensors")
        found = DiffusersFolder.open(folder).weights(component)
        assert [f.name for f in found.files] == [f"{name}.safetensors"]
        assert_locates(found, tensors(0, "a", "b"))


@pytest.mark.parametrize(
    ("index", "shards"),
    [
        ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors"),
        ("diffusion_pytorch_model.safetensors.fp16.index.json", "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors"),
        ("diffusion_pytorch_model.fp16.safetensors.index.json", "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors"),
    ],
)
def test_every_form_of_an_index(folder: Path, index: str, shards: str) -> None:
    files = [shards.format(1), shards.format(2)]
    save_file(tensors(1, "a", "b"), folder / "transformer" / files[0])
    save_file(tensors(2, "c", "unlisted"), folder / "transformer" / files[1])
    shard(folder / "transformer", index, {"c": files[1], "b": files[0], "a": files[0]})
    variant = "fp16" if "fp16" in index else None
    found = DiffusersFolder.open(folder, variant=variant).weights("transformer")
    assert [f.name for f in found.files] == files
    expected = {**tensors(1, "a", "b"), "c": tensors(2, "c", "unlisted")["c"]}
    assert_locates(found, expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_export_and_the_runtime_take_the_same_files(folder: Path, component: str, variant: str | None) -> None:
    """A folder with shards and a consolidated file: each library has its own preference, both rooms follow it."""
    stem = "diffusion_pytorch_model" if component == "transformer" else "model"
    for infix in ("", ".fp16"):
        shards = [f"{stem}{infix}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        save_file(tensors(1, "a", "b"), folder / component / f"{stem}{infix}.safetensors")
        for name, file in zip("ab", shards, strict=True):
            save_file(tensors(1, name), folder / component / file)
        shard(folder / component, f"{stem}.safetensors.index{infix}.json", dict(zip("ab", shards, strict=True)))
    (folder / component / "config.json").write_text("{}")
    found = DiffusersFolder.open(folder, variant=variant).weights(component)
    config = PipelineConfig.from_folder(folder, variant).models[component]
    assert config.weight_paths == [f"{component}/{file.name}" for file in found.files]
    assert len(found.files) == (2 if component == "transformer" else 1)
    assert set(Weights(found.files)) == {"a", "b"}, "each tensor once"


def test_a_component_without_the_variant_gives_its_plain_files_if_another_has_it(folder: Path) -> None:
    save_file(tensors(0, "a"), folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    save_file(tensors(1, "a"), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(tensors(2, "t"), folder / "text_encoder" / "model.safetensors")
    source = DiffusersFolder.open(folder, variant="fp16")
    models = PipelineConfig.from_folder(folder, "fp16").models
    assert models["transformer"].weight_paths == ["transformer/diffusion_pytorch_model.fp16.safetensors"]
    assert models["text_encoder"].weight_paths == ["text_encoder/model.safetensors"]
    assert_locates(source.weights("text_encoder"), tensors(2, "t"))
    assert_locates(source.weights("transformer"), tensors(0, "a"))
    assert_locates(DiffusersFolder.open(folder).weights("transformer"), tensors(1, "a"))
    with pytest.raises(CompileError, match="the plain files are there: leave --variant out"):
        DiffusersFolder.open(folder, variant="bf16").weights("text_encoder")


def test_only_another_variant_is_an_error_that_names_it(folder: Path) -> None:
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model-00001-of-00002.bf16.safetensors"):
        save_file(tensors(0, "a"), folder / "transformer" / name)
    with pytest.raises(CompileError, match="there are files of variant bf16, fp16: pass --variant bf16"):
        DiffusersFolder.open(folder).weights("transformer")


def test_pickles_are_refused_with_advice(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CompileError, match=r"diffusion_pytorch_model\.bin is a pickle.*safe_serialization=True"):
        DiffusersFolder.open(folder).weights("transformer")


def test_no_weights_at_all_says_what_was_expected(folder: Path) -> None:
    with pytest.raises(CompileError, match=r"expected diffusion_pytorch_model\.safetensors.*it holds: config\.json"):
        DiffusersFolder.open(folder).weights("transformer")
    with pytest.raises(CompileError, match=r"expected model\.fp16\.safetensors"):
        DiffusersFolder.open(folder, variant="fp16").weights("text_encoder")


SHARDS = "diffusion_pytorch_model-0000{}-of-00002.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (
            {"a": SHARDS.format(1), "b": SHARDS.format(2)},
            r"diffusion_pytorch_model-00002-of-00002\.safetensors: missing; .*index\.json names it",
        ),
        (
            {"a": SHARDS.format(1), "z": SHARDS.format(1), "y": SHARDS.format(1)},
            r"00001-of-00002\.safetensors: no tensor 'z' \(2 missing\)",
        ),
        ({"a": "../text_encoder/model.safetensors"}, "no plain file name"),
        ({"a": ".."}, "no plain file name"),
        ({"a": 3}, "no weight_map"),
        ([], "no weight_map"),
        ({}, "holds no tensors"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_named(folder: Path, weight_map: Any, words: str) -> None:
    save_file(tensors(0, "a"), folder / "transformer" / SHARDS.format(1))
    save_file(tensors(0, "a"), folder / "text_encoder" / "model.safetensors")
    shard(folder / "transformer", "diffusion_pytorch_model.safetensors.index.json", weight_map)
    with pytest.raises(CompileError, match=words):
        DiffusersFolder.open(folder).weights("transformer")


def test_corrupt_and_truncated_files_are_named(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(tensors(0, "a", "b"), path)
    good = path.read_bytes()
    for bad in (good[:-1], good[:20], good[:4], b"", good + b"x", b"\xff" * 100, b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(bad)
        with pytest.raises(CompileError, match=r"diffusion_pytorch_model\.safetensors.*download or copy the file again"):
            DiffusersFolder.open(folder).weights("transformer")


def test_linked_files_keep_the_names_of_their_links(folder: Path, tmp_path: Path) -> None:
    """The layout of a hub cache: snapshot names are links to files named by their hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    save_file(tensors(0, "a"), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    for number, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(number))
        link.symlink_to(blobs / str(number))
    found = DiffusersFolder.open(snapshot).weights("transformer")
    assert [f.name for f in found.files] == ["diffusion_pytorch_model.safetensors"]
    assert_locates(found, tensors(0, "a"))


def test_a_dtype_that_nothing_computes_with_is_an_error_where_it_is_asked_for(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({"a": np.zeros(10, ml_dtypes.float8_e4m3fn)}, path)
    with pytest.raises(SpecError, match="F8_E4M3"):
        _ = DiffusersFolder.open(folder).weights("transformer").tensors["a"].dtype


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        *((other, None) for other in ("/flux", "../checkpoints/flux-dev", "flux", "a/b/c", "", 7)),
    ],
)
def test_a_models_name_is_a_hubs_and_no_path_of_a_machine(folder: Path, saved: Any, name: str | None) -> None:
    (folder / "model_index.json").write_text(json.dumps({**INDEX, "_name_or_path": saved}))
    assert DiffusersFolder.open(folder).name == name


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"])
def test_what_diffusers_and_transformers_save_is_found(folder: Path, variant: str | None, max_shard_size: str) -> None:
    import torch
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    dit = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    flux: Any = FluxTransformer2DModel
    transformer = flux(**dit, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4))
    clip = CLIPTextConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    models: dict[str, Any] = {"transformer": transformer, "text_encoder": CLIPTextModel(clip)}
    for name, model in models.items():
        model.save_pretrained(folder / name, variant=variant, max_shard_size=max_shard_size)
        found = DiffusersFolder.open(folder, variant=variant).weights(name)
        assert (len(found.files) > 1) == (max_shard_size == "20KB")
        saved = sorted(p.name for p in (folder / name).glob("*.safetensors"))
        assert [f.name for f in found.files] == saved
        expected = {}
        for file in found.files:
            with safe_open(file, "np") as reader:
                expected.update({key: reader.get_tensor(key) for key in reader.keys()})  # noqa: SIM118
        assert sum(array.size for array in expected.values()) == sum(p.numel() for p in model.parameters())
        assert_locates(found, expected)
