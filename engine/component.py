"""The models of a pipeline: what a folder says of them, and the class that turns one into something callable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrify.engine.artifact import Artifact
from vitrify.engine.artifact.canonical import parse
from vitrify.engine.errors import SpecError
from vitrify.engine.weight_files import select_files
from vitrify.engine.weights import Weights

if TYPE_CHECKING:
    from vitrify.engine.cache_config import DenoisingCacheConfig
    from vitrify.engine.device import Device
    from vitrify.engine.session import Backend

__all__ = ["ComponentConfig", "ComponentModel", "PipelineConfig", "Weights"]

_DIFFUSERS_INDEX = "model_index.json"


@dataclass(frozen=True)
class ComponentConfig:
    """One model as its folder describes it.

    config: its config.json. encoding: the dtype of most of its weights ("bfloat16"). weight_paths: relative to the model folder.
    """

    config: dict[str, Any]
    encoding: str
    weight_paths: list[str]


@dataclass(frozen=True)
class PipelineConfig:
    """A pipeline's folder and the models in it. metadata: what the folder says of itself as a whole."""

    model_path: Path
    models: dict[str, ComponentConfig]
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: str | Path, variant: str | None = None) -> PipelineConfig:
        """What a diffusers folder says: every entry of its model_index.json that has a config.json.

        variant: of the weight files, as in diffusers ("fp16"). metadata: the model_index.json. Weight files are those that an
        export of the folder takes.
        Raises SpecError if there is no such index, ArtifactError for damaged JSON or safetensors headers.
        """
        root = Path(folder)
        index = root / _DIFFUSERS_INDEX
        if not index.is_file():
            raise SpecError(f"{root} is not a diffusers pipeline folder: it has no {_DIFFUSERS_INDEX}")
        metadata = _read_object(index)
        libraries = {
            name: str(entry[0]) if isinstance(entry, list) and entry else "diffusers"
            for name, entry in metadata.items()
            if not name.startswith("_") and (root / name / "config.json").is_file()
        }
        files = {name: select_files(root / name, variant, library) for name, library in libraries.items()}
        # As in diffusers, a component without the variant gives its plain files, if another component has it.
        if variant is not None and any(files.values()):
            files = {name: found or select_files(root / name, None, libraries[name]) for name, found in files.items()}
        return cls(root, {name: _component(root, name, found) for name, found in files.items()}, metadata)

    @classmethod
    def from_artifact(cls, artifact: str | Path | Artifact) -> PipelineConfig:
        """What an artifact's manifest says; a folder is opened and checked first.

        metadata: family, pipeline_class, target, defaults, provenance. Raises ArtifactError.
        """
        opened = artifact if isinstance(artifact, Artifact) else Artifact.open(Path(artifact))
        manifest = opened.manifest
        models = {
            name: ComponentConfig(dict(spec.config), spec.encoding.value, list(spec.weights))
            for name, spec in manifest.components.items()
        }
        metadata = {
            "family": manifest.family,
            "pipeline_class": manifest.pipeline_class,
            "target": manifest.target,
            "defaults": dict(manifest.defaults),
            "provenance": dict(manifest.provenance),
        }
        return cls(opened.root, models, metadata)


class ComponentModel(ABC):
    """One model of a pipeline; a subclass's constructor calls its `load_model` and keeps the result.

    config: the model's configuration. encoding: the dtype of its weights ("float32", "bfloat16", …).
    devices: where to run. weights: name → array, read from file when asked for.
    cache_config, session: passed only to a subclass whose `__init__` names them.
    """

    def __init__(
        self,
        config: dict[str, Any],
        encoding: str,
        devices: Sequence[Device],
        weights: Mapping[str, Any],
        *,
        cache_config: DenoisingCacheConfig | None = None,
        session: Backend | None = None,
    ) -> None:
        self.config = config
        self.encoding = encoding
        self.devices = list(devices)
        self.weights = weights
        self.cache_config = cache_config
        self.session = session

    @abstractmethod
    def load_model(self) -> Any:
        """The model: at compile time the nn.Module to trace, at run time something callable over a Session."""


def _component(root: Path, name: str, files: Sequence[Path]) -> ComponentConfig:
    config = _read_object(root / name / "config.json")
    elements: Counter[str] = Counter()
    for file in files:
        for dtype, count in Weights([file]).elements():
            elements[dtype] += count
    encoding = max(sorted(elements), key=elements.__getitem__, default="float32")
    return ComponentConfig(config, encoding, [f"{name}/{file.name}" for file in files])


def _read_object(path: Path) -> dict[str, Any]:
    data = parse(path.read_bytes(), str(path))
    if not isinstance(data, dict):
        raise SpecError(f"{path}: got a {type(data).__name__}, expected a JSON object")
    return data
