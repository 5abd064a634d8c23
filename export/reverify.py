"""`vitrify verify`: a sealed artifact held against eager PyTorch again, over its own weights or those of its source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vitrify.engine.artifact import Artifact, read_header
from vitrify.engine.errors import ArtifactError
from vitrify.engine.specs import ComponentSpec, ParitySpec
from vitrify.export.families import recipe_for
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
    artifact: Artifact, against: Path | None = None, *, whole_limit_bytes: int = WHOLE_LIMIT_BYTES
) -> dict[str, ParitySpec]:
    """Measure every component's parity again, as an export does.

    against: the diffusers folder it was compiled from; its configurations and weight files must be the artifact's, the
    files byte for byte, and are what eager PyTorch reads.
    Raises ArtifactError where they differ, ParityError where a graph does, CompileError if `against` is no such folder.
    """
    recipe = _recipe(artifact)
    found = {}
    for component in recipe.components:
        spec = artifact.manifest.components[component.name]
        if against is not None:
            _same_source(artifact, spec, against)
        files = _weights(spec, artifact.root if against is None else against)
        locations = resolve_parameters(_parameters(artifact, spec), files, component.aliases or {})
        found[component.name] = verify_component(component, spec, artifact.root, locations, whole_limit_bytes=whole_limit_bytes)
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


def _weights(spec: ComponentSpec, root: Path) -> WeightFiles:
    """A component's weight files under `root`: an artifact keeps the folders and names of its source."""
    files = tuple(root / path for path in spec.weights)
    tensors = {
        name: TensorLocation(file, entry.dtype, entry.shape, entry.offset, entry.nbytes)
        for file in files
        for name, entry in read_header(file).tensors.items()
    }
    return WeightFiles(spec.name, files, tensors)


def _parameters(artifact: Artifact, spec: ComponentSpec) -> dict[str, tuple[int, ...]]:
    """The parameters that the sealed graphs read: name → shape."""
    found = {}
    for graph in spec.graphs.values():
        for value in ir.load(artifact.path(graph.path)).graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                found[str(value.name)] = value.const_value.shape.numpy()
    return found


def _same_source(artifact: Artifact, spec: ComponentSpec, source: Path) -> None:
    """Raises ArtifactError naming the first file of `source` that is not what the artifact was compiled from."""
    config = DiffusersFolder.open(source).component(spec.name).config
    other = sorted(key for key in {*config, *spec.config} if config.get(key) != spec.config.get(key))
    if other:
        raise ArtifactError(
            f"{source / spec.name}: its configuration is not what the artifact was compiled from: {other[0]} is "
            f"{config.get(other[0])!r}, sealed {spec.config.get(other[0])!r}; name the source of {artifact.root}, or export again"
        )
    for path in spec.weights:
        file, digest = source / path, hashlib.sha256()
        if not file.is_file():
            raise ArtifactError(f"{file}: missing, the artifact was compiled from it; name the source of {artifact.root}")
        with file.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
        if artifact.manifest.files[path].sha256 != digest.hexdigest():
            raise ArtifactError(
                f"{file}: not what the artifact was compiled from (sha256 {digest.hexdigest()[:16]}…, sealed "
                f"{artifact.manifest.files[path].sha256[:16]}…); name the source of {artifact.root}, or export again"
            )
