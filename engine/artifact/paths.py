"""Which paths may stand in an artifact."""

from __future__ import annotations

from vitrify.engine.errors import ArtifactError

__all__ = ["ID_NAME", "MANIFEST_NAME", "check_path"]

MANIFEST_NAME = "manifest.json"
ID_NAME = "manifest.sha256"

_MAX_PART_BYTES = 255
_MAX_PATH_BYTES = 1024


def check_path(path: str, where: str = "path") -> str:
    """`path` if it is a relative POSIX path that cannot leave a folder; else ArtifactError.

    Refused: empty, absolute, `.` or `..` or nothing between two slashes, backslash, colon, control characters,
    text that is no UTF-8, parts over 255 and paths over 1024 bytes.
    """

    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(f"{where}: path {path[:120]!r} {reason}; expected a relative POSIX path inside the artifact")

    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        raise refuse("is not valid UTF-8") from None
    if not path:
        raise refuse("is empty")
    if path.startswith("/"):
        raise refuse("is absolute")
    bad = next((c for c in path if c in "\\:\x7f" or ord(c) < 32), None)
    if bad is not None:
        raise refuse(f"holds {bad!r}")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise refuse("holds an empty, '.' or '..' part")
    if len(encoded) > _MAX_PATH_BYTES or any(len(part.encode("utf-8")) > _MAX_PART_BYTES for part in parts):
        raise refuse(f"is longer than {_MAX_PATH_BYTES} bytes, or a part of it than {_MAX_PART_BYTES}")
    return path
