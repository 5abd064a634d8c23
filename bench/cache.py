"""Things that take long to build, kept in a folder under a key of all they follow from."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vitrify.engine.errors import BackendError

__all__ = ["built", "code_digest", "package_versions"]


def built(cache: Path, kind: str, key: Mapping[str, Any], build: Callable[[Path], object]) -> Path:
    """The folder `build` filled for this `key`, from the cache where it is there; older ones of this `kind` are removed.

    build: called with a folder that does not exist yet, which it makes.
    """
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:16]
    place = cache / f"{kind}-{digest}"
    if place.is_dir():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    own = re.compile(re.escape(kind) + r"-[0-9a-f]{16}(?:\.(\d+))?")
    for path in list(cache.iterdir()):
        found = own.fullmatch(path.name)
        if found and not (found[1] and _is_running(int(found[1]))):
            shutil.rmtree(path)
    unfinished = cache / f"{place.name}.{os.getpid()}"
    build(unfinished)
    if place.is_dir():  # another process was quicker
        shutil.rmtree(unfinished)
    else:
        unfinished.rename(place)
    return place


def _is_running(pid: int) -> bool:
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def code_digest(*names: str) -> str:
    """A hash over the Python sources of packages and modules."""
    total = hashlib.sha256()
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise BackendError(f"{name} has no source to hash; reinstall vitrify")
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
        for path in files:
            total.update(f"{name}/{path.relative_to(origin.parent).as_posix()}".encode() + path.read_bytes())
    return total.hexdigest()


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions; what is not installed is left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
