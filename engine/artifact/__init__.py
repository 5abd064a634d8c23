"""The artifact on disk: a sealed folder that the compiler writes and the runtime reads. FORMAT.md is its page."""

from vitrify.engine.artifact.canonical import canonical_bytes
from vitrify.engine.artifact.manifest import FORMAT_VERSION, FileEntry, Manifest, SchedulerSpec, TokenizerSpec
from vitrify.engine.artifact.reader import Artifact
from vitrify.engine.artifact.safetensors_header import SafetensorsHeader, TensorEntry, read_header
from vitrify.engine.artifact.writer import ArtifactStream, ArtifactWriter

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "ArtifactStream",
    "ArtifactWriter",
    "FileEntry",
    "Manifest",
    "SafetensorsHeader",
    "SchedulerSpec",
    "TensorEntry",
    "TokenizerSpec",
    "canonical_bytes",
    "read_header",
]
