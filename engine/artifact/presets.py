"""What was measured of an artifact on a machine: `ART.presets.json` beside the sealed folder, bound to the artifact's id."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrify.engine.artifact import disk
from vitrify.engine.artifact.canonical import canonical_bytes, parse
from vitrify.engine.artifact.layout import lock_path
from vitrify.engine.artifact.lock import OutputLock
from vitrify.engine.artifact.reader import Artifact
from vitrify.engine.cache_json import cache_from_json, cache_to_json
from vitrify.engine.cache_policy import Cache, Magnitude
from vitrify.engine.errors import ArtifactError, SpecError
from vitrify.engine.scheduler_config import MAX_STEPS

__all__ = [
    "PRESETS_VERSION",
    "Calibration",
    "Presets",
    "Tuned",
    "check_writable",
    "presets_path",
    "read_presets",
    "update_presets",
    "write_presets",
]

Json = Any

PRESETS_VERSION = 1
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Calibration:
    """MagCache's table. ratios: γ, one a step of the measured runs. requests: pictures it is the mean over."""

    ratios: tuple[float, ...]
    requests: int

    def __post_init__(self) -> None:
        Magnitude(self.ratios)
        _check_whole("requests", self.requests)


@dataclass(frozen=True)
class Tuned:
    """The setting that `vitrify tune` found.

    steps: of the requests that it was searched on, and serves. record: the bound, and what was measured; for people.
    """

    cache: Cache
    steps: int
    record: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_whole("steps", self.steps)


@dataclass(frozen=True)
class Presets:
    """All that is known of one artifact on this machine; a part that was not measured is None."""

    calibration: Calibration | None = None
    tuned: Tuned | None = None


def presets_path(root: Path) -> Path:
    """Where the measured presets of the artifact at `root` lie."""
    resolved = root.resolve()
    return resolved.with_name(f"{resolved.name}.presets.json")


def read_presets(artifact: Artifact) -> Presets:
    """What was measured of `artifact`; nothing where there is no file.

    Raises ArtifactError for a file that is not whole, of another version, or of another artifact.
    """
    path = presets_path(artifact.root)
    data = _bytes(path)
    if data is None:
        return Presets()
    found = parse(data, str(path))
    again = "measure again with `vitrify calibrate` and `vitrify tune`, which replace the file once it is removed"
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: got a {type(found).__name__}, expected an object; {again}")
    if found.get("version") != PRESETS_VERSION:
        raise ArtifactError(f"{path}: version is {str(found.get('version'))[:60]}, expected {PRESETS_VERSION}; {again}")
    if found.get("artifact") != artifact.id:
        raise ArtifactError(
            f"{path}: measured on artifact {str(found.get('artifact'))[:64]}, but {artifact.root} is {artifact.id}; {again}"
        )
    try:
        parts = _fields(found, "the file", {"version", "artifact", "calibration", "tuned"})
        return Presets(_calibration(parts["calibration"]), _tuned(parts["tuned"]))
    except SpecError as error:
        raise ArtifactError(f"{path}: {error}; {again}") from None


def write_presets(artifact: Artifact, presets: Presets) -> Path:
    """Put `presets` beside the artifact in one step, in place of what stood there. Raises ArtifactError if the disk refuses."""
    path = presets_path(artifact.root)
    calibration, tuned = presets.calibration, presets.tuned
    data = canonical_bytes(
        {
            "version": PRESETS_VERSION,
            "artifact": artifact.id,
            "calibration": calibration and {"ratios": calibration.ratios, "requests": calibration.requests},
            "tuned": tuned and {"cache": cache_to_json(tuned.cache), "steps": tuned.steps, "record": tuned.record},
        },
        str(path),
    )
    try:
        disk.replace_file(path, data)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def update_presets(artifact: Artifact, change: Callable[[Presets], Presets]) -> Path:
    """Put `change` of what stands beside the artifact now in its place; other processes that do the same wait meanwhile.

    Raises as `read_presets` and `write_presets` do.
    """
    with _locked(presets_path(artifact.root)):
        return write_presets(artifact, change(read_presets(artifact)))


def check_writable(artifact: Artifact) -> None:
    """Raise ArtifactError where no presets can be put beside the artifact: to be known before hours of measuring."""
    with _locked(presets_path(artifact.root)):
        pass


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = OutputLock(lock_path(path))
    try:
        lock.acquire(wait=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path} cannot be written: {error.strerror}; the folder that the artifact lies in must be writable")


def _bytes(path: Path) -> bytes | None:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ArtifactError(f"{path}: not a regular file; remove it")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise ArtifactError(f"{path}: larger than {_MAX_BYTES} bytes, which is the most it may have; remove it")
    return data


def _calibration(data: Json) -> Calibration | None:
    if data is None:
        return None
    found = _fields(data, "calibration", {"ratios", "requests"})
    ratios = found["ratios"]
    if not isinstance(ratios, list) or not 1 <= len(ratios) <= MAX_STEPS:
        raise SpecError(f"calibration.ratios: expected a list of 1 to {MAX_STEPS} numbers")
    return Calibration(tuple(ratios), found["requests"])


def _tuned(data: Json) -> Tuned | None:
    if data is None:
        return None
    found = _fields(data, "tuned", {"cache", "steps", "record"})
    if not isinstance(found["record"], dict):
        raise SpecError(f"tuned.record: got a {type(found['record']).__name__}, expected an object")
    return Tuned(cache_from_json(found["cache"], "tuned.cache"), found["steps"], found["record"])


def _fields(data: Json, where: str, names: set[str]) -> Mapping[str, Json]:
    if not isinstance(data, dict) or set(data) != names:
        got = [str(name)[:60] for name in sorted(data)] if isinstance(data, dict) else type(data).__name__
        raise SpecError(f"{where}: got {got}, expected {sorted(names)}")
    return data


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{name}={str(value)[:60]}: expected a whole number of at least 1")
