"""`vitrify kernels build`: all variants for all architectures, on all cores, into one folder with one manifest.

The folder holds `manifest.json`, the images, and `records/`: one file per image that remembers what it was made from, so that a
build that was interrupted goes on where it was, and one after a change compiles what the change touches.
The same sources and the same Triton give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

from vitrify.engine.cubins import MANIFEST, Image
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.kernels.aot import manifest, programs
from vitrify.kernels.aot.compile import compile_variant, key
from vitrify.kernels.aot.description import Variant
from vitrify.kernels.aot.targets import ARCH_NAMES, FALLBACK, arch
from vitrify.kernels.aot.tiles import built, tile

__all__ = ["build", "select"]

Record = dict[str, Any]


def select(dtypes: Sequence[DType] = (), kernels: Sequence[str] = ()) -> tuple[Variant, ...]:
    """The variants of these dtypes and kernels; empty means all. Raises SpecError for a kernel that does not exist."""
    unknown = set(kernels) - set(programs.kernels())
    if unknown:
        raise SpecError(f"kernels {sorted(unknown)} are unknown; known: {', '.join(programs.kernels())}")
    return tuple(
        variant
        for variant in programs.variants()
        if (not dtypes or variant.dtype in dtypes) and (not kernels or variant.kernel.name in kernels)
    )


def build(
    folder: Path,
    variants: Sequence[Variant],
    archs: Sequence[str] = ARCH_NAMES,
    *,
    workers: int | None = None,
    report: Callable[[int, int, str, float], None] = lambda *_: None,
) -> Path:
    """Compile `variants` for `archs` into `folder` and write its manifest, which lists exactly these.

    A variant that the tables leave out for an architecture has no image for it (aot/tiles.py).

    workers: processes, None for one per CPU that this process may use. report: called with (images done, images in all, name,
    seconds of one core) after each that was compiled. Returns the manifest's path.
    Raises CompileError for the first variant that fails (what was compiled is kept), SpecError for an unknown architecture.
    """
    (folder / "records").mkdir(parents=True, exist_ok=True)
    jobs = [(variant, arch(name)) for variant in variants for name in archs if built(variant, name)]
    records: dict[tuple[str, str], Record] = {}
    waiting = []
    for variant, target in jobs:
        record = _recorded(folder, variant, target.name)
        if record is None:
            waiting.append((variant, target))
        else:
            records[variant.name, target.name] = record
    total = len(jobs)
    # A worker imports Triton itself: forking a process that has used LLVM is not safe.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers or len(os.sched_getaffinity(0)), max(len(waiting), 1)), mp_context=context) as pool:
        futures = {pool.submit(_compile, folder, variant, target.name): (variant, target) for variant, target in waiting}
        try:
            for future in as_completed(futures):
                variant, target = futures[future]
                records[variant.name, target.name], seconds = future.result()
                report(len(records), total, f"{variant.name} {target.name}", seconds)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    images: dict[str, dict[str, Image]] = {}
    for (name, _arch), record in sorted(records.items()):
        images.setdefault(name, {}).update({key: Image(**fields) for key, fields in record["images"].items()})
    described = manifest.describe(f"triton {metadata.version('triton')}", images, variants)
    _write(folder / MANIFEST, described.canonical_bytes())
    kept = {image.file for of_variant in images.values() for image in of_variant.values()}
    for file in folder.iterdir():
        if file.suffix in (".cubin", ".ptx") and file.name not in kept:
            file.unlink()
    return folder / MANIFEST


def _stem(variant: Variant, arch_name: str) -> str:
    return f"{variant.name}.{arch_name}"


def _recorded(folder: Path, variant: Variant, arch_name: str) -> Record | None:
    """The record of an image that is there, whole, and made from what would be compiled now."""
    try:
        record: Record = json.loads((folder / "records" / f"{_stem(variant, arch_name)}.json").read_bytes())
        if record["key"] != key(variant, arch(arch_name), tile(variant, arch_name)):
            return None
        for image in record["images"].values():
            if hashlib.sha256((folder / image["file"]).read_bytes()).hexdigest() != image["sha256"]:
                return None
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _compile(folder: Path, variant: Variant, arch_name: str) -> tuple[Record, float]:
    """In a worker: compile one image, write it, then its record. Returns it and the CPU seconds, the assembler's included."""
    before = os.times()
    target, sizes = arch(arch_name), tile(variant, arch_name)
    image = compile_variant(variant, target, sizes)
    shared: dict[str, Any] = {
        "entry": image.entry,
        "tile": dict(sizes.sizes),
        "num_warps": image.num_warps,
        "num_stages": sizes.num_stages,
        "shared_bytes": image.shared_bytes,
        "parameters": [list(parameter) for parameter in image.parameters],
    }
    stem = _stem(variant, arch_name)
    facts = {
        "registers": image.registers,
        "stack_bytes": image.stack_bytes,
        "tensor_core_instructions": image.tensor_core_instructions,
    }
    images = {arch_name: {**_write(folder / f"{stem}.cubin", image.cubin), **shared, **facts}}
    if arch_name == FALLBACK:
        images[f"{arch_name}_ptx"] = {**_write(folder / f"{stem}.ptx", image.ptx), **shared}
    record = {"key": key(variant, target, sizes), "images": images}
    _write(folder / "records" / f"{stem}.json", json.dumps(record, sort_keys=True).encode())
    return record, sum(os.times()[:4]) - sum(before[:4])


def _write(file: Path, data: bytes) -> dict[str, Any]:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    temporary.write_bytes(data)
    temporary.replace(file)
    return {"file": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
