"""A diffusers pipeline folder on this machine: its configurations and where its weights lie. Nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrify.engine.artifact import read_header
from vitrify.engine.artifact.canonical import parse
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ArtifactError, CompileError
from vitrify.engine.weight_files import find_weights, stems, weight_map

__all__ = ["ComponentSource", "DiffusersFolder", "TensorLocation", "WeightFiles"]

Json = Any

INDEX_NAME = "model_index.json"
_MAX_JSON_BYTES = 64 * 2**20
_MODEL_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
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
    """A component's weights. files: in name order, under their names in the folder (links are not resolved)."""

    component: str
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorLocation]


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

    name: the model's, where model_index.json says one. Weights are looked for only by `weights`; all else needs the
    configurations alone.
    """

    root: Path
    variant: str | None
    pipeline_class: str
    classes: Mapping[str, tuple[str, str]]
    name: str | None

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
        for key, value in fields.items():
            if isinstance(value, list) and len(value) == 2 and not key.startswith("_"):
                if value == [None, None]:
                    continue
                if not all(isinstance(part, str) for part in value) or key in (".", "..") or set(key) & set("/\\"):
                    raise CompileError(f"{index}: component {key!r} is {str(value)[:80]}, expected [library, class]")
                classes[key] = (value[0], value[1])
        return cls(root, variant, name, classes, _model_name(fields.get("_name_or_path")))

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
        found = find_weights(source.folder, source.library, self.variant)
        # As in diffusers, a component without the variant gives its plain files, if another component has it.
        if found is None and self.variant is not None and self._has_variant():
            found = find_weights(source.folder, source.library)
        if found is None:
            raise CompileError(self._advice(source))
        if found.name.endswith(".json"):
            files, tensors = _sharded(found)
        else:
            files, tensors = (found,), _header(found)
        if not tensors:
            raise CompileError(f"{found}: holds no tensors")
        return WeightFiles(name, files, tensors)

    def documents(self) -> tuple[Path, ...]:
        """Licences, notices and the model card in the folder's top, by name: they go with every copy of the weights."""
        wanted = ("license", "licence", "notice", "copying")
        return tuple(
            path
            for path in sorted(self.root.iterdir(), key=lambda p: p.name)
            if path.is_file() and (path.name.lower().startswith(wanted) or path.name == "README.md")
        )

    def _has_variant(self) -> bool:
        return any(find_weights(self.root / name, library, self.variant) for name, (library, _) in self.classes.items())

    def _advice(self, source: ComponentSource) -> str:
        names = sorted(path.name for path in source.folder.iterdir())
        stem = stems(source.library)[0]
        wanted = f"{stem}.safetensors" if self.variant is None else f"{stem}.{self.variant}.safetensors"
        message = f"{source.folder}: no weights: expected {wanted}, or shards with an index"
        variants = sorted({v for n in names if (v := _variant_of(n)) is not None})
        if find_weights(source.folder, source.library) is not None:
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


def _model_name(value: Json) -> str | None:
    """`owner/name` as a hub has it; anything else may be a path of the machine that saved the folder, which nobody else knows."""
    return value if isinstance(value, str) and _MODEL_NAME.fullmatch(value) else None


def _config_name(class_name: str) -> str:
    if class_name.endswith("Scheduler"):
        return "scheduler_config.json"
    if "Tokenizer" in class_name:
        return "tokenizer_config.json"
    if class_name.endswith(("ImageProcessor", "FeatureExtractor", "ImageProcessorFast")):
        return "preprocessor_config.json"
    return "config.json"


def _undashed(name: str) -> str:
    """`model.fp16-00001-of-00002.safetensors` → `model.fp16.safetensors`."""
    return _SHARD.sub("", name)


def _variant_of(name: str) -> str | None:
    """The variant in a weight file's or index's name, None if it has none or is no such file."""
    parts = _undashed(name).split(".")
    if parts[0] not in stems("diffusers") or "safetensors" not in parts:
        return None
    rest = [part for part in parts[1:] if part not in ("safetensors", "index", "json")]
    return rest[0] if rest else None


def _sharded(index: Path) -> tuple[tuple[Path, ...], dict[str, TensorLocation]]:
    try:
        places = weight_map(index)
    except ArtifactError as error:
        raise CompileError(str(error)) from None
    tensors: dict[str, TensorLocation] = {}
    files = []
    for shard in sorted(set(places.values())):
        file = index.parent / shard
        header = _header(file)
        wanted = [name for name, place in places.items() if place == shard]
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
