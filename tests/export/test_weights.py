"""Copying weights with a look for NaN and infinity, and finding parameters under the names that files give them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from vitrify.engine.artifact import ArtifactWriter, FileEntry, read_header
from vitrify.engine.artifact import writer as writer_module
from vitrify.engine.errors import CompileError
from vitrify.export.source import DiffusersFolder, TensorLocation, WeightFiles
from vitrify.export.weights import NonFiniteScan, copy_weights, resolve_parameters

FLOATS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


def located(*files: Path, component: str = "transformer") -> WeightFiles:
    tensors = {
        name: TensorLocation(file, e.dtype, e.shape, e.offset, e.nbytes)
        for file in files
        for name, e in read_header(file).tensors.items()
    }
    return WeightFiles(component, files, tensors)


def scan_in_pieces(data: bytes, locations: dict[str, TensorLocation], piece: int) -> None:
    scan = NonFiniteScan("x.safetensors", locations)
    for start in range(0, len(data), piece):
        # A fresh buffer for each piece, overwritten afterwards as the writer does.
        buffer = bytearray(data[start : start + piece])
        scan.feed(memoryview(buffer))
        buffer[:] = b"\xff" * len(buffer)


def test_files_are_copied_byte_for_byte_under_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "CHUNK_BYTES", 13)
    rng = np.random.default_rng(0)
    paths = [tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"]
    for number, path in enumerate(paths):
        floats = rng.standard_normal((5, 7)).astype(ml_dtypes.bfloat16)
        save_file({f"w{number}": floats, f"n{number}": np.full(9, -1, np.int8)}, path, metadata={"format": "pt"})
    with ArtifactWriter(tmp_path / "art") as writer:
        copied = copy_weights(writer, "transformer", located(*paths))
        assert list(copied) == [f"transformer/{path.name}" for path in paths]
        for path, (name, entry) in zip(paths, copied.items(), strict=True):
            data = path.read_bytes()
            assert (writer.folder / name).read_bytes() == data
            assert entry == FileEntry(hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize(
    ("value", "word"), [(math.nan, "NaN"), (-math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")]
)
def test_one_bad_value_anywhere_is_found_and_named(stored: str, value: float, word: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for at in (0, 7, 14):
        bad = np.linspace(-3, 3, 15).astype(FLOATS[stored])
        bad[at] = value
        # An odd number of bytes before it: elements lie across every border.
        path.write_bytes(save({"odd": np.zeros(3, np.uint8), "bad": bad.reshape(3, 5), "good": np.ones(4, np.float32)}))
        for piece in (1, 2, 3, 7, 64, 10**6):
            with pytest.raises(CompileError, match=rf"tensor 'bad' {stored}\[3, 5\] holds {word}"):
                scan_in_pieces(path.read_bytes(), dict(located(path).tensors), piece)


def test_every_finite_value_passes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {}
    for name, dtype in FLOATS.items():
        limits: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        edges = [limits.max, limits.min, limits.smallest_subnormal, limits.tiny, 0.0, -0.0]
        tensors[name] = np.array(edges).astype(dtype)
    # All ones is NaN in every floating type, and an ordinary number in these.
    tensors |= {"i64": np.full(3, -1, np.int64), "u8": np.full(5, 255, np.uint8), "empty": np.zeros((0, 3), np.float32)}
    path.write_bytes(save(tensors))
    for piece in (1, 3, 1000):
        scan_in_pieces(path.read_bytes(), dict(located(path).tensors), piece)


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(
    arrays=st.lists(
        st.tuples(st.sampled_from(sorted(FLOATS)), st.lists(st.floats(width=16), max_size=5)), min_size=1, max_size=4
    ),
    odd=st.integers(0, 3),
    piece=st.integers(1, 40),
)
def test_the_scan_agrees_with_numpy(
    tmp_path_factory: pytest.TempPathFactory, arrays: list[tuple[str, list[float]]], odd: int, piece: int
) -> None:
    tensors = {f"t{i}": np.array(values, np.float64).astype(FLOATS[stored]) for i, (stored, values) in enumerate(arrays)}
    bad = [name for name, array in tensors.items() if not np.isfinite(array.astype(np.float64)).all()]
    path = tmp_path_factory.getbasetemp() / "scan.safetensors"
    path.write_bytes(save({"odd": np.zeros(odd, np.uint8), **tensors}))
    if not bad:
        scan_in_pieces(path.read_bytes(), dict(located(path).tensors), piece)
        return
    with pytest.raises(CompileError) as caught:
        scan_in_pieces(path.read_bytes(), dict(located(path).tensors), piece)
    assert any(f"'{name}'" in str(caught.value) for name in bad)


def test_nan_weights_leave_no_artifact(tmp_path: Path) -> None:
    values = np.zeros(1000, ml_dtypes.bfloat16)
    values[-1] = np.nan
    save_file({"proj.weight": values}, tmp_path / "x.safetensors")

    def export() -> None:
        with ArtifactWriter(tmp_path / "art") as writer:
            copy_weights(writer, "transformer", located(tmp_path / "x.safetensors"))

    with pytest.raises(CompileError, match=r"x\.safetensors: tensor 'proj\.weight' BF16\[1000\] holds NaN"):
        export()
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "CHUNK_BYTES", 2**20)
    peaks = []
    for megabytes in (8, 32):
        path = tmp_path / f"{megabytes}.safetensors"
        save_file({"w": np.zeros(megabytes * 2**19, ml_dtypes.bfloat16)}, path)
        files = located(path)
        with ArtifactWriter(tmp_path / "art") as writer:
            tracemalloc.start()
            copy_weights(writer, "t", files)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 4 * 2**20
    assert peaks[1] < 1.2 * peaks[0]


def files_with(*names: str, stored: str = "BF16", shape: tuple[int, ...] = (2,)) -> WeightFiles:
    tensors = {name: TensorLocation(Path("model.safetensors"), stored, shape, 4 * i, 4) for i, name in enumerate(names)}
    return WeightFiles("text_encoder", (Path("model.safetensors"),), tensors)


def resolved(names: list[str], files: WeightFiles, aliases: dict[str, str] | None = None) -> dict[str, str]:
    found = resolve_parameters(dict.fromkeys(names, (2,)), files, aliases or {})
    by_offset = {place.offset: name for name, place in files.tensors.items()}
    return {name: by_offset[place.offset] for name, place in found.items()}


CLIP = ["embeddings.token_embedding.weight", "encoder.layers.0.layer_norm1.weight", "final_layer_norm.weight"]


def test_names_as_they_are() -> None:
    assert resolved(CLIP, files_with(*CLIP, "not.used")) == {name: name for name in CLIP}


def test_a_prefix_of_all_names_is_put_before_or_taken_away() -> None:
    prefixed = [f"text_model.{name}" for name in CLIP]
    assert resolved(CLIP, files_with(*prefixed)) == dict(zip(CLIP, prefixed, strict=True))
    assert resolved(prefixed, files_with(*CLIP)) == dict(zip(prefixed, CLIP, strict=True))


def test_a_prefix_may_be_missing_from_some_names_alone() -> None:
    prefixed = [f"text_model.{name}" for name in CLIP]
    found = resolved([*CLIP, "text_projection.weight"], files_with(*prefixed, "text_projection.weight"))
    assert found == {**dict(zip(CLIP, prefixed, strict=True)), "text_projection.weight": "text_projection.weight"}


def test_a_tied_parameter_is_found_under_either_name() -> None:
    aliases = {"encoder.embed_tokens.weight": "shared.weight"}
    for asked in aliases.items():
        for stored in aliases.items():
            for prefix in ("", "model."):
                found = resolved([*asked[:1], "encoder.x"], files_with(prefix + stored[0], prefix + "encoder.x"), aliases)
                assert found == {asked[0]: prefix + stored[0], "encoder.x": prefix + "encoder.x"}
    both = files_with("shared.weight", "encoder.embed_tokens.weight")
    assert resolved(list(aliases), both, aliases) == {"encoder.embed_tokens.weight": "encoder.embed_tokens.weight"}


def test_a_missing_parameter_does_not_take_a_blocks_parameter_of_the_same_ending() -> None:
    files = files_with("proj.weight", "blocks.0.norm.weight", "blocks.0.proj.weight")
    names = ["proj.weight", "blocks.0.proj.weight", "blocks.0.norm.weight", "norm.weight"]
    with pytest.raises(
        CompileError, match=r"text_encoder: 1 parameters are not in model\.safetensors: norm\.weight; it has 3 tensors"
    ):
        resolved(names, files)
    with pytest.raises(CompileError, match=r"1 parameters are not in .*: blocks\.0\.out\.weight"):
        resolved(["blocks.0.proj.weight", "blocks.0.out.weight"], files_with("blocks.0.proj.weight", "out.weight"))


def test_two_prefixes_as_good_as_each_other_are_an_error() -> None:
    files = files_with("encoder.block.0.weight", "decoder.block.0.weight")
    with pytest.raises(CompileError, match=r"either of the prefixes decoder\.; encoder\."):
        resolved(["block.0.weight"], files)


def test_all_that_is_missing_is_counted_and_ten_are_named() -> None:
    names = [f"layer.{i}.weight" for i in range(25)]
    with pytest.raises(
        CompileError, match=r"23 parameters are not in .*: layer\.2\.weight; .*layer\.11\.weight; and 13 more; it has 2"
    ):
        resolved(names, files_with(*names[:2]))


def test_shapes_and_dtypes_are_checked() -> None:
    with pytest.raises(
        CompileError, match=r"1 tensors have another shape than the configuration says: a: got \[3\], expected \[2\]"
    ):
        resolved(["a"], files_with("a", shape=(3,)))
    with pytest.raises(CompileError, match=r"'a' in model\.safetensors: safetensors dtype 'F8_E4M3' is unsupported"):
        resolved(["a"], files_with("a", stored="F8_E4M3"))
    with pytest.raises(CompileError, match=r"'a' in model\.safetensors is int8, expected one of BF16, F16, F32, F64; quantised"):
        resolved(["a"], files_with("a", stored="I8"))
    resolved(["a"], WeightFiles("t", (), {**files_with("a").tensors, "b": files_with("b", stored="F8_E4M3").tensors["b"]}))


def test_every_parameter_of_the_sample_is_found_under_both_spellings_of_its_names() -> None:
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    source = DiffusersFolder.open(Path(__file__).parents[2] / "examples" / "emoji_flux")

    def config(name: str) -> dict[str, Any]:
        return {key: value for key, value in source.component(name).config.items() if not key.startswith("_")}

    with torch.device("meta"):
        models: dict[str, Any] = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
            "text_encoder_2": T5EncoderModel(T5Config(**config("text_encoder_2"))),
            "transformer": FluxTransformer2DModel(**config("transformer")),  # type: ignore[no-untyped-call]
            "vae": AutoencoderKL(**config("vae")),  # type: ignore[no-untyped-call]
        }
    aliases = {"encoder.embed_tokens.weight": "shared.weight"}
    for name, model in models.items():
        files = source.weights(name)
        names = {key: tuple(value.shape) for key, value in model.named_parameters()}
        for prefix in ("", "text_model."):
            renamed = dataclasses.replace(files, tensors={prefix + key: place for key, place in files.tensors.items()})
            found = resolve_parameters(names, renamed, aliases)
            assert found == {key: files.tensors[key] for key in names}
            assert len(found) == len(files.tensors)
