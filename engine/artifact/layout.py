"""The names beside an output folder, and how the folder is replaced and repaired.

A writer works in `OUT.vitrify-partial` under the lock `OUT.lock`. Publishing is at most three steps:

1. OUT → OUT.vitrify-old (only with force),
2. OUT.vitrify-partial → OUT,
3. OUT.vitrify-old is deleted.

A crash before 1 leaves the old artifact. Between 1 and 2 it leaves no OUT but the old one aside: a reader says so, the next
writer puts it back. Between 2 and 3 it leaves the new artifact and a leftover, which the next writer deletes.
"""

from __future__ import annotations

import logging
from pathlib import Path

from vitrify.engine.artifact import disk
from vitrify.engine.artifact.paths import ID_NAME, MANIFEST_NAME
from vitrify.engine.errors import ArtifactError

__all__ = ["is_artifact", "lock_path", "partial_path", "publish", "recover", "resolved", "set_aside_path"]

_LOG = logging.getLogger(__name__)


def resolved(path: Path | str) -> Path:
    """`path` absolute, with links followed. Raises ArtifactError if it cannot name a folder."""
    try:
        found = Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{str(path)!r}: cannot name an artifact: {error}") from None
    if not found.name:
        raise ArtifactError(f"{found}: cannot name an artifact; name a folder below it")
    return found


def lock_path(out: Path) -> Path:
    """The lock file of the output `out`."""
    return out.with_name(f"{out.name}.lock")


def partial_path(out: Path) -> Path:
    """Where a writer of `out` works."""
    return out.with_name(f"{out.name}.vitrify-partial")


def set_aside_path(out: Path) -> Path:
    """Where the artifact that stood at `out` waits while it is replaced."""
    return out.with_name(f"{out.name}.vitrify-old")


def is_artifact(folder: Path) -> bool:
    """Whether `folder` looks like an artifact, however damaged: only such a folder may be replaced."""
    return folder.is_dir() and (folder / MANIFEST_NAME).is_file() and (folder / ID_NAME).is_file()


def recover(out: Path) -> None:
    """Repairs what a dead writer left beside `out`. Only for the holder of its lock."""
    old = set_aside_path(out)
    if old.exists():
        if out.exists():
            disk.remove_tree(old)
        else:
            disk.rename(old, out)
            disk.sync_folder(out.parent)
    disk.remove_tree(partial_path(out))


def publish(out: Path) -> None:
    """Puts the partial folder in `out`'s place. Raises OSError with everything as it was before."""
    partial, old = partial_path(out), set_aside_path(out)
    replaces, published = out.exists(), False
    try:
        if replaces:
            disk.rename(out, old)
        disk.rename(partial, out)
        published = True
        disk.sync_folder(out.parent)
    except BaseException:
        if published:
            out.rename(partial)
        if replaces and old.exists():
            old.rename(out)
        raise
    if replaces:
        try:
            disk.remove_tree(old)
        except OSError as error:
            _LOG.warning(
                "%s: the replaced artifact could not be deleted (%s); the next export here deletes it", old, error.strerror
            )
