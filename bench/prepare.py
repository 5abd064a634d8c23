"""What the peers of a case load: its source folder, our artifact and the plain ONNX export; built in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitrify.bench.cache import built, code_digest, package_versions
from vitrify.bench.cases import Case, case
from vitrify.bench.jobs import run_job

__all__ = ["Prepared", "prepare"]

_EXPORTERS = ("diffusers", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")


@dataclass(frozen=True)
class Prepared:
    """Folders of a case. plain: holds the unsplit export, `model.onnx`; None where no peer wants it."""

    source: Path
    artifact: Path
    plain: Path | None

    def to_json(self) -> dict[str, Any]:
        return {name: None if path is None else str(path) for name, path in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Prepared:
        return cls(Path(data["source"]), Path(data["artifact"]), None if data["plain"] is None else Path(data["plain"]))


def prepare(one: Case, cache: Path, sample: Path, *, plain: bool, threads: int) -> Prepared:
    """Build what is missing for case `one` in a subprocess, so that no exporter's memory or threads stay in the caller's.

    cache: folder that keeps what was built. sample: the sample pipeline's folder. plain: also the unsplit export.
    Raises BackendError with what the process said.
    """
    arguments = {"case": one.name, "cache": str(cache), "sample": str(sample), "plain": plain}
    return Prepared.from_json(run_job("vitrify.bench.prepare", arguments, threads=threads))


def _prepare_here(one: Case, cache: Path, sample: Path, plain: bool) -> Prepared:
    from vitrify.bench.sources import check_sample, source_key, write_source

    check_sample(sample)
    if one.trained:
        source = sample
        stamp: Any = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(sample.rglob("*.safetensors"))]
    else:
        downsampling = one.pixels_per_token // 2
        source = built(
            cache,
            f"source-{one.name}",
            source_key(one.shape, downsampling),
            lambda folder: write_source(folder, one.shape, sample, downsampling=downsampling),
        )
        stamp = source.name
    size = {"rows": one.rows, "columns": one.columns, "text": one.text_tokens, "batch": one.batch, "defaults": dict(one.defaults)}
    key = {"source": stamp, "size": size, "packages": package_versions(_EXPORTERS)}
    artifact = built(
        cache,
        f"artifact-{one.name}",
        {**key, "compiler": code_digest("vitrify.engine", "vitrify.export", "vitrify.kernels")},
        lambda folder: _compile(one, source, folder),
    )
    unsplit = built(cache, f"plain-{one.name}", key, lambda folder: _export_plain(one, source, folder)) if plain else None
    return Prepared(source, artifact / "artifact", unsplit)


def _compile(one: Case, source: Path, folder: Path) -> None:
    from vitrify.export.compile import compile_pipeline
    from vitrify.export.options import ExportOptions, Range

    options = ExportOptions(
        height=Range(one.height_px, one.height_px, one.height_px),
        width=Range(one.width_px, one.width_px, one.width_px),
        batch=Range(1, one.batch, max(2, one.batch)),
        max_sequence_length=Range(one.text_tokens, one.text_tokens, one.text_tokens),
        defaults=one.defaults,
    )
    folder.mkdir()
    compile_pipeline(source, folder / "artifact", options)


def _export_plain(one: Case, source: Path, folder: Path) -> None:
    from vitrify.bench.peers.plain_ort import export_plain

    export_plain(one, source, folder)


def main() -> None:
    """The job that `prepare` runs."""
    given = json.loads(sys.argv[1])
    prepared = _prepare_here(case(given["case"]), Path(given["cache"]), Path(given["sample"]), bool(given["plain"]))
    print(json.dumps(prepared.to_json()))


if __name__ == "__main__":
    main()
