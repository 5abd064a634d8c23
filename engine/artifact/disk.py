"""Every byte that an export puts on disk goes through `write`; every other change of the disk through its neighbours here.

One place, so that a test can fail the n-th write and see that nothing was left behind.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import threading
from pathlib import Path

__all__ = ["create", "make_folder", "remove_tree", "rename", "replace_file", "sync", "sync_folder", "write"]


def create(path: Path) -> io.FileIO:
    """A new unbuffered file, with the modes that the umask gives. Raises FileExistsError if the name is taken."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    return io.FileIO(descriptor, "w")


def write(handle: io.FileIO, data: bytes | bytearray | memoryview) -> None:
    """All of `data`, at the handle's position: an unbuffered write may take less than it was given."""
    rest = memoryview(data).cast("B")
    while len(rest):
        taken = handle.write(rest)
        if not taken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest = rest[taken:]


def sync(handle: io.FileIO) -> None:
    """Until the file's bytes are on the device."""
    os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Until the folder's list of names is on the device, where its file system can say so."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A new folder, with the modes that the umask gives."""
    path.mkdir(mode=0o777)


def rename(source: Path, target: Path) -> None:
    """`source` under its new name, in one step."""
    source.rename(target)


def replace_file(path: Path, data: bytes | bytearray | memoryview) -> None:
    """`data` in the file `path`, in one step in place of what stood there. Raises OSError with that untouched, nothing left."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with create(partial) as file:
            write(file, data)
            sync(file)
        rename(partial, path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def remove_tree(path: Path) -> None:
    """The folder and all below it, read-only folders too; links are removed, never followed. Nothing there: nothing done."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
        return
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
