"""What the peers of a case load: its source folder, our artifact, and other compilers' models; built in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vitrify.bench.cache import built, code_digest, package_versions
from vitrify.bench.cases import Case, from_json, to_json
from vitrify.bench.jobs import run_job

__all__ = ["BUILDS", "Build", "GivenModel", "Prepared", "prepare"]

_CALIBRATION = ("a bowl of soup", "a ship", "old book")
"""Other prompts than those that are drawn."""

_EXPORTERS = ("diffusers", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")


@dataclass(frozen=True)
class Prepared:
    """Folders of a case. builds: what peers need beside them, by kind (see BUILDS)."""

    source: Path
    artifact: Path
    builds: Mapping[str, Path] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        builds = {kind: str(path) for kind, path in self.builds.items()}
        return {"source": str(self.source), "artifact": str(self.artifact), "builds": builds}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Prepared:
        builds = {kind: Path(path) for kind, path in data["builds"].items()}
        return cls(Path(data["source"]), Path(data["artifact"]), builds)


@dataclass(frozen=True)
class GivenModel:
    """A model of the user's own to measure. artifact: compiled from the diffusers folder `source`."""

    artifact: Path
    source: Path


def prepare(
    one: Case,
    cache: Path,
    sample: Path,
    *,
    builds: Iterable[str],
    threads: int,
    given: GivenModel | None = None,
    python: str = sys.executable,
) -> Prepared:
    """Build what is missing for case `one` in a subprocess, so that no exporter's memory or threads stay in the caller's.

    cache: folder that keeps what was built. sample: the sample pipeline's folder. builds: kinds of BUILDS.
    given: takes the place of the case's own source and artifact. python: the interpreter whose vitrify builds.
    Raises BackendError with what the process said.
    """
    arguments = {
        "case": to_json(one),
        "cache": str(cache),
        "sample": str(sample),
        "builds": list(dict.fromkeys(builds)),
        "given": None if given is None else {"artifact": str(given.artifact), "source": str(given.source)},
    }
    return Prepared.from_json(run_job("vitrify.bench.prepare", arguments, threads=threads, python=python))


def _prepare_here(one: Case, cache: Path, sample: Path, builds: Iterable[str], given: GivenModel | None) -> Prepared:
    source, stamp = _source(one, cache, sample) if given is None else (given.source, _stamp(given.source))
    size = {"rows": one.rows, "columns": one.columns, "text": one.text_tokens, "batch": one.batch}
    key = {"source": stamp, "size": size, "packages": package_versions(_EXPORTERS)}
    if given is None:
        artifact = built(
            cache,
            f"artifact-{one.model_name}",
            {**key, "defaults": dict(one.defaults), "compiler": code_digest(*_COMPILER)},
            lambda folder: _compile(one, source, folder),
        )
        artifact = artifact / "artifact"
    else:
        artifact = given.artifact
    found: dict[str, Path] = {}
    for kind in builds:
        for step in (*BUILDS[kind].needs, kind):
            if step not in found:
                build = BUILDS[step]
                kept = {**key, "makers": package_versions(build.packages), "code": code_digest(*build.code)}
                found[step] = built(cache, f"{step}-{one.model_name}", kept, partial(build.make, one, source, dict(found)))
    return Prepared(source, artifact, found)


def _source(one: Case, cache: Path, sample: Path) -> tuple[Path, Any]:
    """The case's source folder and what it follows from."""
    from vitrify.bench.sources import check_sample, source_key, write_source

    check_sample(sample)
    if one.trained:
        return sample, _stamp(sample)
    downsampling = one.pixels_per_token // 2
    source = built(
        cache,
        f"source-{one.model_name}",
        source_key(one.shape, downsampling, one.outliers, one.encoders),
        lambda folder: write_source(
            folder, one.shape, sample, downsampling=downsampling, outliers=one.outliers, encoders=one.encoders
        ),
    )
    return source, source.name


def _stamp(folder: Path) -> Any:
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.rglob("*.safetensors"))]


def _compile(one: Case, source: Path, folder: Path, precision: str = "fp32") -> None:
    from vitrify.export.compile import compile_pipeline
    from vitrify.export.options import ExportOptions, Range, parse_precision

    options = ExportOptions(
        height=Range(one.height_px, one.height_px, one.height_px),
        width=Range(one.width_px, one.width_px, one.width_px),
        batch=Range(1, one.batch, max(2, one.batch)),
        max_sequence_length=Range(one.text_tokens, one.text_tokens, one.text_tokens),
        defaults=one.defaults,
        precision=parse_precision(precision),
        calibration_prompts=_CALIBRATION if precision == "int8" else (),
    )
    folder.mkdir()
    compile_pipeline(source, folder / "artifact", options)


def _ours(precision: str, one: Case, source: Path, _found: Mapping[str, Path], folder: Path) -> None:
    _compile(one, source, folder, precision)


def _plain(one: Case, source: Path, _found: Mapping[str, Path], folder: Path) -> None:
    from vitrify.bench.peers.plain_ort import export_plain

    export_plain(one, source, folder)


def _openvino(one: Case, source: Path, _found: Mapping[str, Path], folder: Path) -> None:
    from vitrify.bench.peers.openvino import export_openvino

    export_openvino(one, source, folder)


def _openvino_int8(one: Case, _source: Path, found: Mapping[str, Path], folder: Path) -> None:
    from vitrify.bench.peers.openvino import quantise

    quantise(one, found["openvino"], folder)


def _openvino_models(one: Case, source: Path, _found: Mapping[str, Path], folder: Path) -> None:
    from vitrify.bench.peers.diffusers_pictures import export_models
    from vitrify.bench.picture_inputs import draw_picture_inputs

    export_models(source, draw_picture_inputs(one, seed=0), folder)


@dataclass(frozen=True)
class Build:
    """What peers load beside source and artifact.

    make: builds it from (case, source, builds so far) into a new folder. packages, code: that its bytes follow from; code are
    modules and packages of ours. needs: builds that come before it.
    """

    make: Callable[[Case, Path, Mapping[str, Path], Path], None]
    packages: tuple[str, ...]
    code: tuple[str, ...]
    needs: tuple[str, ...] = ()


_COMPILER = ("vitrify.engine", "vitrify.export", "vitrify.kernels")
_CONVERTER = ("vitrify.bench.inputs", "vitrify.bench.peers.openvino")

BUILDS: Mapping[str, Build] = {
    "vitrify-bf16": Build(partial(_ours, "bf16"), _EXPORTERS, _COMPILER),
    "vitrify-int8": Build(partial(_ours, "int8"), _EXPORTERS, _COMPILER),
    "plain": Build(_plain, ("onnx", "onnxscript"), ("vitrify.bench.peers.plain_ort",)),
    "openvino": Build(_openvino, ("openvino",), _CONVERTER),
    "openvino-int8": Build(_openvino_int8, ("nncf", "openvino"), _CONVERTER, ("openvino",)),
    "openvino-models": Build(_openvino_models, ("openvino",), (*_CONVERTER, "vitrify.bench.peers.diffusers_pictures")),
}
"""By kind."""


def main() -> None:
    """The job that `prepare` runs."""
    asked = json.loads(sys.argv[1])
    given = None if asked["given"] is None else GivenModel(Path(asked["given"]["artifact"]), Path(asked["given"]["source"]))
    prepared = _prepare_here(from_json(asked["case"]), Path(asked["cache"]), Path(asked["sample"]), asked["builds"], given)
    print(json.dumps(prepared.to_json()))


if __name__ == "__main__":
    main()
