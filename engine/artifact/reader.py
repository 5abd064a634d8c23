"""Opens an artifact, trusting nothing in it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from vitrify.engine.artifact.layout import resolved, set_aside_path
from vitrify.engine.artifact.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest
from vitrify.engine.artifact.onnx_external import external_tensors
from vitrify.engine.artifact.paths import ID_NAME, MANIFEST_NAME, check_path
from vitrify.engine.artifact.safetensors_header import SafetensorsHeader, read_header
from vitrify.engine.errors import ArtifactError, SpecError

__all__ = ["DEFAULT_HASH_LIMIT_BYTES", "Artifact"]

Verify = Literal["load", "full"]

DEFAULT_HASH_LIMIT_BYTES = 256 * 2**20
_MAX_GRAPH_BYTES = 2**31 - 1
_CHUNK_BYTES = 4 * 2**20
_AGAIN = "copy the artifact again from where it came, or export it again"


@dataclass(frozen=True)
class Artifact:
    """A checked artifact folder. root: absolute, links resolved. id: the sha256 of `manifest.json`, in hexadecimal."""

    root: Path
    manifest: Manifest
    id: str

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        verify: Verify = "load",
        hash_limit_bytes: int = DEFAULT_HASH_LIMIT_BYTES,
        progress: Callable[[int], None] | None = None,
    ) -> Artifact:
        """The artifact at `path`, which may be read-only and may have been moved.

        Checked always: the manifest and its hash, the list of files (none missing, none more, no links), their sizes,
        the hashes of files smaller than `hash_limit_bytes`, every safetensors header, and that graphs point only into
        their component's weights. verify="full": the hashes of all files.
        progress: called with the number of bytes just hashed.
        Raises ArtifactError naming the file, what was found and expected, and what to do; SpecError for an unknown `verify`.
        """
        if verify not in get_args(Verify):
            raise SpecError(f"verify={verify!r} is unknown; known: {', '.join(get_args(Verify))}")
        root = resolved(path)
        try:
            manifest, digest = _read_manifest(root)
            _check_files(root, manifest)
            for name, entry in sorted(manifest.files.items()):
                if verify == "full" or entry.size < hash_limit_bytes:
                    _check_hash(root / name, name, entry, progress)
            _check_weights(root, manifest)
        except OSError as error:
            where = error.filename or root
            raise ArtifactError(f"{where}: cannot be read: {error.strerror}; check its permissions, or {_AGAIN}") from error
        return cls(root, manifest, digest)

    def path(self, relative: str) -> Path:
        """The file on disk of a path that the manifest lists. Raises ArtifactError for any other."""
        check_path(relative, f"{self.root}")
        if relative not in self.manifest.files:
            raise ArtifactError(
                f"{self.root}: {relative!r} is no file of this artifact; it has: {', '.join(sorted(self.manifest.files))}"
            )
        return self.root / relative


def _read_manifest(root: Path) -> tuple[Manifest, str]:
    if not root.is_dir():
        aside = set_aside_path(root)
        if aside.is_dir() and not root.exists():
            raise ArtifactError(
                f"{root}: not there; an export with --force is replacing it, or was interrupted and left the previous artifact "
                f"in {aside}: if none is running, export again, or rename that folder to {root.name}"
            )
        what = "a file" if root.exists() else "not there"
        raise ArtifactError(f"{root}: {what}, expected an artifact folder; write one with `vitrify export`")
    for name in (MANIFEST_NAME, ID_NAME):
        try:
            mode = (root / name).lstat().st_mode
        except FileNotFoundError:
            hint = (
                ": this is a diffusers folder, compile it with `vitrify export`" if (root / "model_index.json").exists() else ""
            )
            raise ArtifactError(f"{root}: no {name}, so this is no artifact{hint or f'; {_AGAIN}'}") from None
        if not stat.S_ISREG(mode):
            raise ArtifactError(f"{root / name}: not a regular file; {_AGAIN} (`cp -rL` copies what links point to)")
    data = _read_capped(root / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    expected = _read_capped(root / ID_NAME, 1024)
    if expected != f"{digest}\n".encode():
        raise ArtifactError(
            f"{root / MANIFEST_NAME}: sha256 is {digest}, {ID_NAME} says {_shown(expected)}: damaged or edited; {_AGAIN}"
        )
    return Manifest.from_bytes(data, str(root / MANIFEST_NAME)), digest


def _shown(data: bytes) -> str:
    return data[:80].decode("ascii", "replace").strip()


def _read_capped(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ArtifactError(f"{path}: larger than {limit} bytes, which is the most it may have; {_AGAIN}")
    return data


def _check_files(root: Path, manifest: Manifest) -> None:
    folders = {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents} - {"."}
    found: set[str] = set()
    for name, mode, size in _tree(root, ""):
        if stat.S_ISDIR(mode):
            if name not in folders:
                raise ArtifactError(f"{root / name}: a folder that the manifest does not know; remove it, or {_AGAIN}")
        elif not stat.S_ISREG(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise ArtifactError(f"{root / name}: {what}; {_AGAIN} (`cp -rL` copies what links point to)")
        elif name in (MANIFEST_NAME, ID_NAME):
            continue
        elif name not in manifest.files:
            raise ArtifactError(f"{root / name}: a file that the manifest does not list; remove it, or {_AGAIN}")
        elif size != manifest.files[name].size:
            raise ArtifactError(f"{root / name}: got {size} bytes, expected {manifest.files[name].size}; {_AGAIN}")
        else:
            found.add(name)
    missing = sorted(set(manifest.files) - found)
    if missing:
        raise ArtifactError(f"{root / missing[0]}: missing ({len(missing)} of {len(manifest.files)} files are); {_AGAIN}")


def _tree(root: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Every entry below `root`: its POSIX path, mode and size; links are not followed."""
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            status = entry.stat(follow_symlinks=False)
            yield name, status.st_mode, status.st_size
            # A link's mode is a link's, so only real folders are entered.
            if stat.S_ISDIR(status.st_mode):
                yield from _tree(root, f"{name}/")


def _check_hash(path: Path, name: str, entry: FileEntry, progress: Callable[[int], None] | None) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, entry.size + 1)))
    with path.open("rb", buffering=0) as file:
        while taken := file.readinto(buffer):
            digest.update(buffer[:taken])
            if progress is not None:
                progress(taken)
    if digest.hexdigest() != entry.sha256:
        raise ArtifactError(
            f"{path}: sha256 is {digest.hexdigest()}, the manifest says {entry.sha256}: {name} was damaged; {_AGAIN}"
        )


def _check_weights(root: Path, manifest: Manifest) -> None:
    headers: dict[str, SafetensorsHeader] = {}
    for component in manifest.components.values():
        for name in component.weights:
            headers[name] = _header(root / name)
    for graph_name, (component_or_none, graph) in manifest.graphs().items():
        weights = component_or_none.weights if component_or_none is not None else ()
        data = _read_capped(root / graph.path, _MAX_GRAPH_BYTES)
        for tensor in external_tensors(data, str(root / graph.path)):
            where = f"{root / graph.path}: graph {graph_name!r}, tensor {tensor.name[:200]!r}"
            target = str(PurePosixPath(graph.path).parent / check_path(tensor.location, where))
            if target not in weights:
                raise ArtifactError(f"{where} points into {tensor.location!r}, expected one of {list(weights)}; {_AGAIN}")
            size, start = manifest.files[target].size, headers[target].data_start
            end = size if tensor.length is None else tensor.offset + tensor.length
            if not start <= tensor.offset <= end <= size:
                raise ArtifactError(
                    f"{where} points at bytes {tensor.offset}..{end} of {tensor.location!r}, "
                    f"whose data are {start}..{size}; {_AGAIN}"
                )


def _header(path: Path) -> SafetensorsHeader:
    try:
        return read_header(path)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; {_AGAIN}") from None
