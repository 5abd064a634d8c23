"""One writer per output: an flock on `OUT.lock`, which the kernel frees when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from vitrify.engine.errors import ArtifactError

__all__ = ["OutputLock"]


class OutputLock:
    """The lock file of one output; taken by `acquire` and removed by `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = False) -> None:
        """wait: for another holder to release it. Raises ArtifactError if one does and is not to be waited for, and if the file
        system cannot lock.
        """
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise ArtifactError(
                        f"{self.path}: another export to the same place is running; wait until it ends, or choose another output"
                    ) from None
                raise ArtifactError(
                    f"{self.path}: the file system cannot lock it ({error.strerror}); choose an output on a local disk"
                ) from None
            # The holder before may have removed the file between our open and our lock: a lock on it would bind nobody.
            if self._is_current(descriptor):
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def release(self) -> None:
        """Removes the lock file, then frees it."""
        if self._descriptor is None:
            return
        if self._is_current(self._descriptor):
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False
