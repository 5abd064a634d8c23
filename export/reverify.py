"""`vitrify verify`: a sealed artifact held against eager PyTorch again, over its own weights or those of its source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vitrify.engine.artifact import Artifact, read_header
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ArtifactError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.source_record import source_of
from vitrify.engine.specs import ComponentSpec, ParitySpec
from vitrify.export.eager import Scaled
from vitrify.export.families import recipe_for
from vitrify.export.lowering import SCALE_SUFFIX, lowered_weights, write_lowered
from vitrify.export.options import ExportOptions, Range
from vitrify.export.recipe import Recipe
from vitrify.export.source import DiffusersFolder, TensorLocation, WeightFiles
from vitrify.export.verify import WHOLE_LIMIT_BYTES, verify_component
from vitrify.export.weights import resolve_parameters

__all__ = ["verify_artifact"]

_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Sealed:
    """An artifact's manifest, read as a source of configurations."""

    artifact: Artifact

    @property
    def pipeline_class(self) -> str:
        return self.artifact.manifest.pipeline_class

    def component(self, name: str) -> ComponentSpec:
        if name not in self.artifact.manifest.components:
            has = ", ".join(self.artifact.manifest.components)
            raise ArtifactError(f"{self.artifact.root}: no component {name!r}; it has {has}; export the artifact again")
        return self.artifact.manifest.components[name]


def verify_artifact(
    artifact: Artifact,
    against: Path | None = None,
    *,
    whole_limit_bytes: int = WHOLE_LIMIT_BYTES,
    backend: OrtCpuBackend | None = None,
) -> dict[str, ParitySpec]:
    """Measure every component's parity again, as an export does.

    against: the diffusers folder it was compiled from; its configurations and weight files must be the artifact's, the
    files byte for byte, and are what eager PyTorch reads. backend: what runs the graphs; None: this machine's best kernels.
    Raises ArtifactError where they differ, ParityError where a graph does, CompileError if `against` is no such folder.
    """
    recipe = _recipe(artifact)
    found = {}
    for component in recipe.components:
        spec = artifact.manifest.components[component.name]
        stored = _stored(artifact, spec)
        layers = {} if spec.precision is None else {name: layer.precision for name, layer in spec.precision.layers.items()}
        parameters: Mapping[str, TensorLocation | Scaled] = _lifted(stored)
        if against is not None:
            _same_config(artifact, spec, against)
            files = _weights(artifact, spec, against)
            shapes = {name: place.shape for name, place in parameters.items()}
            locations = resolve_parameters(shapes, files, component.aliases or {})
            names = {(place.file, place.offset): name for name, place in files.tensors.items()}
            weights = {n: p for n, p in layers.items() if p != "fp32" and n in locations}
            lowered = {names[locations[n].file, locations[n].offset]: p for n, p in weights.items()}
            _same_weights(artifact, spec, files, lowered)
            parameters = locations
        found[component.name] = verify_component(
            component, spec, artifact.root, parameters, layers=layers, whole_limit_bytes=whole_limit_bytes, backend=backend
        )
    return found


def _recipe(artifact: Artifact) -> Recipe:
    dims = artifact.manifest.dims

    def asked(name: str) -> Range:
        if name not in dims:
            raise ArtifactError(f"{artifact.root}: no dimension {name!r}; it has {', '.join(dims)}; export the artifact again")
        return Range(dims[name].min, dims[name].opt, dims[name].max)

    options = ExportOptions(
        height=asked("height"), width=asked("width"), batch=asked("batch"), max_sequence_length=asked("text_tokens")
    )
    return recipe_for(_Sealed(artifact), options)


def _weights(artifact: Artifact, spec: ComponentSpec, source: Path) -> WeightFiles:
    """A component's weight files in `source`: an artifact keeps their folders and names. Raises ArtifactError."""
    files = tuple(source / path for path in spec.weights)
    for file in files:
        if not file.is_file():
            raise ArtifactError(f"{file}: missing, the artifact was compiled from it; name the source of {artifact.root}")
    tensors = {
        name: TensorLocation(file, entry.dtype, entry.shape, entry.offset, entry.nbytes)
        for file in files
        for name, entry in read_header(file).tensors.items()
    }
    return WeightFiles(spec.name, files, tensors)


def _stored(artifact: Artifact, spec: ComponentSpec) -> dict[str, TensorLocation]:
    """The weights that the sealed graphs read: name → where the artifact has them."""
    found = {}
    for graph in spec.graphs.values():
        path = artifact.path(graph.path)
        for value in ir.load(path).graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                dtype = DType.from_onnx(int(tensor.dtype)).safetensors
                shape = tuple(int(size) for size in tensor.shape.numpy())
                file = path.parent / str(tensor.location)
                found[str(value.name)] = TensorLocation(file, dtype, shape, int(tensor.offset or 0), int(tensor.length or 0))
    return found


def _lifted(stored: Mapping[str, TensorLocation]) -> dict[str, TensorLocation | Scaled]:
    """The same as the source's parameters: int8 rows together with their scales."""
    scales = {name + SCALE_SUFFIX for name, place in stored.items() if place.dtype is DType.INT8}
    return {
        name: Scaled(place, stored[name + SCALE_SUFFIX]) if place.dtype is DType.INT8 else place
        for name, place in stored.items()
        if name not in scales
    }


def _same_config(artifact: Artifact, spec: ComponentSpec, source: Path) -> None:
    """Raises ArtifactError where the component's configuration in `source` is not what the artifact was compiled from."""
    config = DiffusersFolder.open(source).component(spec.name).config
    other = sorted(key for key in {*config, *spec.config} if config.get(key) != spec.config.get(key))
    if other:
        raise ArtifactError(
            f"{source / spec.name}: its configuration is not what the artifact was compiled from: {other[0]} is "
            f"{config.get(other[0])!r}, sealed {spec.config.get(other[0])!r}; name the source of {artifact.root}, or export again"
        )


def _same_weights(artifact: Artifact, spec: ComponentSpec, files: WeightFiles, lowered: Mapping[str, str]) -> None:
    """Raises ArtifactError naming the first of the source's files that the artifact was not compiled from.

    lowered: stored name → the precision that the artifact has it in; such a file is written again, to nowhere, and compared.
    """
    changed = lowered_weights(files, lowered)
    for path, file in zip(spec.weights, files.files, strict=True):
        digest = hashlib.sha256()
        if file in changed:
            write_lowered(changed[file], _Hashed(digest))
        else:
            with file.open("rb") as handle:
                while chunk := handle.read(_CHUNK_BYTES):
                    digest.update(chunk)
        if artifact.manifest.files[path].sha256 != digest.hexdigest():
            raise ArtifactError(
                f"{file}: not what the artifact was compiled from (sha256 {digest.hexdigest()[:16]}…, sealed "
                f"{artifact.manifest.files[path].sha256[:16]}…); name the source of {artifact.root}{_named(artifact, path)}, "
                "or export again"
            )


def _named(artifact: Artifact, path: str) -> str:
    """What the artifact knows of its source, for a message."""
    known = source_of(artifact.manifest.provenance)
    facts = [known.name] if known.name else []
    facts += [f"whose {path} has sha256 {known.weights[path]}"] if path in known.weights else []
    return f" ({', '.join(facts)})" if facts else ""


class _Hashed:
    """A sink that keeps nothing but the hash."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def write(self, data: bytes) -> None:
        self._digest.update(data)
