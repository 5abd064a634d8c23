"""Writes an artifact: all of it, or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from vitrify.engine.artifact import disk
from vitrify.engine.artifact.layout import is_artifact, lock_path, partial_path, publish, recover, resolved
from vitrify.engine.artifact.lock import OutputLock
from vitrify.engine.artifact.manifest import FileEntry, Manifest
from vitrify.engine.artifact.paths import ID_NAME, MANIFEST_NAME, check_path
from vitrify.engine.artifact.reader import Artifact
from vitrify.engine.errors import ArtifactError

__all__ = ["CHUNK_BYTES", "ArtifactStream", "ArtifactWriter"]

CHUNK_BYTES = 16 * 2**20
"""How much of a file `copy_file` holds in memory at a time."""


class ArtifactStream:
    """A file of the artifact while it is written; what passes through `write` is hashed on its way."""

    def __init__(self, handle: io.FileIO, naming: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._handle = handle
        self._naming = naming
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends all of `data`. Raises ArtifactError if the disk refuses it."""
        with self._naming():
            disk.write(self._handle, data)
        self._digest.update(data)
        self._size += memoryview(data).nbytes

    def entry(self) -> FileEntry:
        """What the manifest says of the bytes written so far."""
        return FileEntry(self._digest.hexdigest(), self._size)


class ArtifactWriter:
    """A context manager: between its borders files are written aside, `commit` makes them the artifact `out` in one step.

    Left without `commit`, or by any exception, it removes what it wrote; what stood at `out` is untouched.
    Every method raises ArtifactError; a full disk names the file and says that nothing was written.
    """

    def __init__(self, out: Path | str, *, force: bool = False) -> None:
        """out: the folder to be. force: an artifact that stands there is replaced; any other file or folder never is."""
        # Resolved now: a later change of directory moves nothing, and through a link its target is replaced, not the link.
        self.out = resolved(out)
        self.force = force
        self._partial = partial_path(self.out)
        self._lock = OutputLock(lock_path(self.out))
        self._parents: list[Path] = []
        self._files: dict[str, FileEntry] = {}
        self._open = False
        self._committed = False

    def __enter__(self) -> ArtifactWriter:
        """Takes the lock and repairs what a dead writer left. Raises ArtifactError if `out` is taken or being written."""
        if self._open:
            raise ArtifactError(f"{self.out}: this writer is entered already")
        try:
            with self._naming(self.out):
                self._make_parents()
                self._lock.acquire()
                self._open = True
                recover(self.out)
                self._refuse_existing()
                disk.make_folder(self._partial)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()

    @property
    def folder(self) -> Path:
        """Where the files lie until `commit`: for reading what was written, never for writing."""
        return self._partial

    def write_bytes(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Writes the whole file `path` (relative, POSIX)."""
        with self.open_stream(path) as stream:
            stream.write(data)

    def copy_file(self, path: str, source: Path, *, on_chunk: Callable[[memoryview], None] | None = None) -> FileEntry:
        """Copies `source` byte for byte, CHUNK_BYTES in memory at a time.

        on_chunk: sees each chunk, in the file's order, before it is written, and must keep no view of it; what it raises passes.
        """
        try:
            file = source.open("rb", buffering=0)
        except OSError as error:
            raise ArtifactError(f"{source}: cannot be read: {error.strerror}; nothing was written to {self.out}") from error
        with file, self.open_stream(path) as stream:
            size = os.fstat(file.fileno()).st_size
            buffer = memoryview(bytearray(max(1, min(CHUNK_BYTES, size))))
            while taken := _fill(file, buffer, source):
                if on_chunk is not None:
                    on_chunk(buffer[:taken])
                stream.write(buffer[:taken])
            entry = stream.entry()
            if entry.size != size:
                raise ArtifactError(f"{source}: changed while it was read: got {entry.size} bytes, expected {size}; export again")
        return entry

    def remove(self, path: str) -> None:
        """Takes back a file that was written: it will not be part of the artifact, and `path` is free again."""
        self._check_open()
        if path not in self._files:
            raise ArtifactError(f"{self.out}: {path!r} was not written, so that it cannot be taken back")
        with self._naming(self.out / path):
            (self._partial / path).unlink()
        del self._files[path]

    @contextlib.contextmanager
    def open_stream(self, path: str) -> Iterator[ArtifactStream]:
        """A new file `path` (relative, POSIX) to be written in pieces; it counts once the block ends without an exception."""
        self._check_open()
        check_path(path, str(self.out))
        if path in self._files or path in (MANIFEST_NAME, ID_NAME):
            raise ArtifactError(f"{self.out}: {path!r} is written twice; each file of an artifact is written once")
        with self._naming(self.out / path):
            target = self._partial / path
            self._make_folders(target.parent)
            handle = disk.create(target)
        try:
            with handle:
                stream = ArtifactStream(handle, lambda: self._naming(self.out / path))
                yield stream
                with self._naming(self.out / path):
                    disk.sync(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                target.unlink()
            raise
        self._files[path] = stream.entry()

    def commit(self, manifest: Manifest) -> str:
        """Seals the artifact and makes it visible; gets its id. `manifest.files` is filled in here and must be empty.

        The artifact is first opened as a reader would: one that the reader refuses is never published.
        """
        self._check_open()
        if manifest.files:
            raise ArtifactError(f"{self.out}: the manifest already lists files; the writer lists what was written through it")
        data = dataclasses.replace(manifest, files=dict(sorted(self._files.items()))).canonical_bytes()
        artifact_id = hashlib.sha256(data).hexdigest()
        for name, content in ((MANIFEST_NAME, data), (ID_NAME, f"{artifact_id}\n".encode())):
            with self._naming(self.out / name), disk.create(self._partial / name) as handle:
                disk.write(handle, content)
                disk.sync(handle)
        try:
            Artifact.open(self._partial, hash_limit_bytes=0)
        except ArtifactError as error:
            raise ArtifactError(f"{self.out}: what was to be written is no valid artifact: {error}") from None
        with self._naming(self.out):
            for folder in self._folders():
                disk.sync_folder(folder)
            self._refuse_existing()
            publish(self.out)
        self._committed = True
        return artifact_id

    def _folders(self) -> list[Path]:
        return [Path(folder) for folder, _, _ in os.walk(self._partial, topdown=False)]

    def _check_open(self) -> None:
        if not self._open or self._committed:
            state = "already committed" if self._committed else "not open"
            raise ArtifactError(
                f"{self.out}: this writer is {state}; use `with ArtifactWriter(out) as writer:` and commit once, last"
            )

    def _refuse_existing(self) -> None:
        if not self.out.exists():
            return
        if not self.force:
            raise ArtifactError(f"{self.out}: already there; pass --force to replace it, or choose another output")
        if not is_artifact(self.out):
            raise ArtifactError(
                f"{self.out}: already there and no artifact, so --force will not delete it; choose another output"
            )

    def _make_parents(self) -> None:
        for parent in reversed([p for p in self.out.parents if not p.exists()]):
            with contextlib.suppress(FileExistsError):
                disk.make_folder(parent)
                self._parents.append(parent)

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            disk.make_folder(new)

    def _leave(self) -> None:
        """Removes all that is not published, then frees the lock."""
        try:
            if self._open and not self._committed:
                with contextlib.suppress(OSError):
                    disk.remove_tree(self._partial)
        finally:
            self._open = False
            self._lock.release()
            if not self._committed:
                with contextlib.suppress(OSError):
                    for parent in reversed(self._parents):
                        parent.rmdir()

    @contextlib.contextmanager
    def _naming(self, path: Path) -> Iterator[None]:
        """Turns what the operating system refuses into an ArtifactError that names the file by its final path."""
        try:
            yield
        except OSError as error:
            hint = {
                errno.ENOSPC: "free some space, or choose an output on another disk",
                errno.EDQUOT: "free some of your quota, or choose an output on another disk",
            }.get(error.errno or 0, "mend that, or choose another output")
            raise ArtifactError(
                f"{path}: cannot be written: {error.strerror}; nothing was written to {self.out}; {hint}"
            ) from error


def _fill(file: io.FileIO, buffer: memoryview, source: Path) -> int:
    """Reads until `buffer` is full or the file ends, so that chunks have one size whatever a read returns."""
    filled = 0
    try:
        while filled < len(buffer) and (taken := file.readinto(buffer[filled:])):
            filled += taken
    except OSError as error:
        raise ArtifactError(f"{source}: cannot be read at byte {file.tell()}: {error.strerror}") from error
    return filled
