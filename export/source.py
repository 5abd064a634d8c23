"""A diffusers pipeline folder on this machine: its configurations and where its weights lie. Nothing is loaded.

File names follow diffusers 0.42 (`_add_variant`, its index and its legacy index) and transformers 5 (`_add_variant`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrify.engine.artifact import read_header
from vitrify.engine.artifact.canonical import parse
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ArtifactError, CompileError

__all__ = ["ComponentSource", "DiffusersFolder", "TensorLocation", "WeightFiles"]

Json = Any

INDEX_NAME = "model_index.json"
_MAX_JSON_BYTES = 64 * 2**20
_DIFFUSERS_STEM, _TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class TensorLocation:
    """Where one tensor's bytes lie: `offset` from the start of `file`. stored_dtype: safetensors' name for it ("BF16")."""

    file: Path
    stored_dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def dtype(self) -> DType:
        """Raises SpecError for a type that vitrify does not compute with (an 8-bit float, a complex number)."""
        return DType.from_safetensors(self.stored_dtype)


@dataclass(frozen=True)
class WeightFiles:
    """A component's weights. files: in name order, under their names in the folder (links are not resolved).

    variant: the variant that was found, None for the plain files. index: the shards' index file.
    """

    component: str
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorLocation]
    variant: str | None = None
    index: Path | None = None

    @property
    def encoding(self) -> DType:
        """The dtype that holds most of the parameters. Raises CompileError if it is none that vitrify computes with."""
        counts: Counter[str] = Counter()
        for location in self.tensors.values():
            counts[location.stored_dtype] += math.prod(location.shape)
        # Ties go to the first name, so that the choice does not hang on the order of the file.
        stored = min(counts, key=lambda name: (-counts[name], name), default="F32")
        try:
            return DType.from_safetensors(stored)
        except ValueError as error:
            raise CompileError(f"{self.component}: {error}; convert the weights to bfloat16 first") from None


@dataclass(frozen=True)
class ComponentSource:
    """One component's folder. library, class_name: as model_index.json names them. config: its configuration file's content."""

    name: str
    library: str
    class_name: str
    folder: Path
    config: Mapping[str, Json]


@dataclass(frozen=True)
class DiffusersFolder:
    """A pipeline folder. classes: component → (library, class), in the index's order, absent components left out.

    settings: what else model_index.json says. Weights are looked for only by `weights`; all else needs the configurations alone.
    """

    root: Path
    variant: str | None
    pipeline_class: str
    classes: Mapping[str, tuple[str, str]]
    settings: Mapping[str, Json]

    @classmethod
    def open(cls, path: Path | str, *, variant: str | None = None) -> DiffusersFolder:
        """Reads `path`/model_index.json. variant: of the weight files, as in diffusers (`fp16`).

        Raises CompileError if `path` is no such folder or the index is damaged.
        """
        root = Path(path)
        if not root.is_dir():
            what = "is a file" if root.exists() else "is not there"
            raise CompileError(
                f"{root}: {what}, expected a diffusers pipeline folder; "
                "download a model's folder first, or save a pipeline with save_pretrained(folder)"
            )
        index = root / INDEX_NAME
        if not index.is_file():
            raise CompileError(
                f"{root}: no {INDEX_NAME} in it, expected a diffusers pipeline folder, saved with save_pretrained(folder)"
            )
        if variant is not None and (not variant or set(variant) & set("/\\")):
            raise CompileError(f"variant {variant!r}: expected a word such as fp16")
        fields = _read_json(index)
        name = fields.get("_class_name")
        if not isinstance(name, str) or not name:
            raise CompileError(f"{index}: no _class_name, so the pipeline's class is unknown; save the pipeline again")
        classes: dict[str, tuple[str, str]] = {}
        settings: dict[str, Json] = {}
        for key, value in fields.items():
            if isinstance(value, list) and len(value) == 2 and not key.startswith("_"):
                if value == [None, None]:
                    continue
                if not all(isinstance(part, str) for part in value) or key in (".", "..") or set(key) & set("/\\"):
                    raise CompileError(f"{index}: component {key!r} is {str(value)[:80]}, expected [library, class]")
                classes[key] = (value[0], value[1])
            elif not key.startswith("_"):
                settings[key] = value
        return cls(root, variant, name, classes, settings)

    def component(self, name: str) -> ComponentSource:
        """The configuration of component `name`. Raises CompileError naming what is missing."""
        if name not in self.classes:
            raise CompileError(f"{self.root}: {INDEX_NAME} has no component {name!r}; it has: {', '.join(self.classes)}")
        library, class_name = self.classes[name]
        folder = self.root / name
        if not folder.is_dir():
            raise CompileError(
                f"{folder}: missing; {INDEX_NAME} names it as {library}.{class_name}: copy the whole pipeline folder"
            )
        config_name = _config_name(class_name)
        config = folder / config_name
        if not config.is_file():
            # A tokenizer can be complete without a configuration of its own.
            if config_name == "tokenizer_config.json":
                return ComponentSource(name, library, class_name, folder, {})
            raise CompileError(
                f"{config}: missing; {library}.{class_name} cannot be built without it: copy the whole pipeline folder"
            )
        return ComponentSource(name, library, class_name, folder, _read_json(config))

    def weights(self, name: str) -> WeightFiles:
        """Where each tensor of component `name` lies, from the files' headers.

        Raises CompileError naming the file: none there, pickles only, another variant only, a shard or tensor of the index
        missing, truncated or corrupt.
        """
        source = self.component(name)
        found = _find(source, self.variant)
        # As in diffusers, a component without the variant gives its plain files, if another component has it.
        if found is None and self.variant is not None and self._has_variant():
            found = _find(source, None)
        if found is None:
            raise CompileError(self._advice(source))
        if found.name.endswith(".json"):
            files, tensors = _sharded(found)
        else:
            files, tensors = (found,), _header(found)
        if not tensors:
            raise CompileError(f"{found}: holds no tensors")
        variant = self.variant if self.variant is not None and f".{self.variant}." in _undashed(found.name) else None
        return WeightFiles(name, files, tensors, variant, found if found.name.endswith(".json") else None)

    def documents(self) -> tuple[Path, ...]:
        """Licences, notices and the model card in the folder's top, by name: they go with every copy of the weights."""
        wanted = ("license", "licence", "notice", "copying")
        return tuple(
            path
            for path in sorted(self.root.iterdir(), key=lambda p: p.name)
            if path.is_file() and (path.name.lower().startswith(wanted) or path.name == "README.md")
        )

    def _has_variant(self) -> bool:
        sources = (ComponentSource(n, lib, cls, self.root / n, {}) for n, (lib, cls) in self.classes.items())
        return any(_find(source, self.variant) is not None for source in sources)

    def _advice(self, source: ComponentSource) -> str:
        names = sorted(path.name for path in source.folder.iterdir())
        stem = _stems(source.library)[0]
        wanted = f"{stem}.safetensors" if self.variant is None else f"{stem}.{self.variant}.safetensors"
        message = f"{source.folder}: no weights: expected {wanted}, or shards with an index"
        variants = sorted({v for n in names if (v := _variant_of(n)) is not None})
        if _find(source, None) is not None:
            return f"{message}; the plain files are there: leave --variant out"
        if variants:
            return f"{message}; there are files of variant {', '.join(variants)}: pass --variant {variants[0]}"
        pickles = [name for name in names if name.endswith(_PICKLES)]
        if pickles:
            return (
                f"{message}; {pickles[0]} is a pickle, which can run code when it is opened, so vitrify never opens one: "
                "convert it in an environment that you trust, with save_pretrained(folder, safe_serialization=True)"
            )
        return f"{message}; it holds: {', '.join(names) or 'nothing'}. Copy the whole pipeline folder"


def _config_name(class_name: str) -> str:
    if class_name.endswith("Scheduler"):
        return "scheduler_config.json"
    if "Tokenizer" in class_name:
        return "tokenizer_config.json"
    if class_name.endswith(("ImageProcessor", "FeatureExtractor", "ImageProcessorFast")):
        return "preprocessor_config.json"
    return "config.json"


def _stems(library: str) -> tuple[str, str]:
    stems = (_DIFFUSERS_STEM, _TRANSFORMERS_STEM)
    return stems[::-1] if library == "transformers" else stems


def _candidates(library: str, variant: str | None) -> Iterator[str]:
    """File names in the order of preference: transformers takes a single file before an index, diffusers the other way."""
    for stem in _stems(library):
        if variant is None:
            single, indices = f"{stem}.safetensors", [f"{stem}.safetensors.index.json"]
        else:
            single = f"{stem}.{variant}.safetensors"
            indices = [
                f"{stem}.safetensors.index.{variant}.json",
                # The legacy form of diffusers, and what huggingface_hub's own splitter writes.
                f"{stem}.safetensors.{variant}.index.json",
                f"{stem}.{variant}.safetensors.index.json",
            ]
        yield from (single, *indices) if library == "transformers" else (*indices, single)


def _find(source: ComponentSource, variant: str | None) -> Path | None:
    return next((p for name in _candidates(source.library, variant) if (p := source.folder / name).is_file()), None)


def _undashed(name: str) -> str:
    """`model.fp16-00001-of-00002.safetensors` → `model.fp16.safetensors`."""
    return _SHARD.sub("", name)


def _variant_of(name: str) -> str | None:
    """The variant in a weight file's or index's name, None if it has none or is no such file."""
    parts = _undashed(name).split(".")
    if parts[0] not in (_DIFFUSERS_STEM, _TRANSFORMERS_STEM) or "safetensors" not in parts:
        return None
    rest = [part for part in parts[1:] if part not in ("safetensors", "index", "json")]
    return rest[0] if rest else None


def _sharded(index: Path) -> tuple[tuple[Path, ...], dict[str, TensorLocation]]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CompileError(f"{index}: no weight_map of tensor to file; download the index again")
    shards = sorted(set(weight_map.values()))
    tensors: dict[str, TensorLocation] = {}
    files = []
    for shard in shards:
        if shard in ("", ".", "..") or set(shard) & set("/\\\0"):
            raise CompileError(f"{index}: shard {shard[:120]!r} is no plain file name; download the index again")
        file = index.parent / shard
        if not file.is_file():
            raise CompileError(f"{file}: missing; {index.name} names it ({len(shards)} shards): copy the whole pipeline folder")
        header = _header(file)
        wanted = [name for name, place in weight_map.items() if place == shard]
        absent = [name for name in wanted if name not in header]
        if absent:
            raise CompileError(f"{file}: no tensor {absent[0]!r} ({len(absent)} missing), which {index.name} says is in it")
        tensors.update({name: header[name] for name in wanted})
        files.append(file)
    return tuple(files), tensors


def _header(file: Path) -> dict[str, TensorLocation]:
    try:
        header = read_header(file)
    except ArtifactError as error:
        raise CompileError(f"{error}; download or copy the file again") from None
    return {n: TensorLocation(file, e.dtype, e.shape, e.offset, e.nbytes) for n, e in header.tensors.items()}


def _read_json(path: Path) -> dict[str, Json]:
    """The object in a configuration file. Raises CompileError naming the file."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CompileError(f"{path}: larger than {_MAX_JSON_BYTES} bytes, which no configuration is")
        fields = parse(path.read_bytes(), str(path))
    except OSError as error:
        raise CompileError(f"{path}: cannot be read: {error.strerror}") from error
    except ArtifactError as error:
        raise CompileError(f"{error}; download or copy the file again") from None
    if not isinstance(fields, dict):
        raise CompileError(f"{path}: holds a {type(fields).__name__}, expected a JSON object")
    return fields
