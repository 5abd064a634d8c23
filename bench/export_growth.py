"""How the compiler's memory and time grow with the model: exports and plans in processes of their own, watched."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitrify.bench.cache import built
from vitrify.bench.cases import FLUX_DEV, TransformerShape
from vitrify.bench.flux_configs import flux_dev_configs
from vitrify.bench.jobs import job_environment
from vitrify.bench.process_memory import Watched, watch
from vitrify.bench.sources import check_sample, source_key, weight_bytes, write_source
from vitrify.engine.errors import CompileError

__all__ = ["GROWTH_CASES", "Growth", "GrowthCase", "measure_growth"]

_PROGRAM = "import sys; from vitrify.engine.cli import main; sys.exit(main())"
_DOWNSAMPLING = 8


@dataclass(frozen=True)
class GrowthCase:
    """FLUX.1-dev's width with some of its blocks. export: with random weights, parity included; else `--plan`, configs only."""

    name: str
    double_blocks: int
    single_blocks: int
    export: bool

    @property
    def shape(self) -> TransformerShape:
        """The transformer."""
        return replace(FLUX_DEV, double_blocks=self.double_blocks, single_blocks=self.single_blocks)


GROWTH_CASES: Mapping[str, GrowthCase] = {
    one.name: one
    for one in (
        GrowthCase("plan-quarter", 5, 10, export=False),
        GrowthCase("plan-half", 10, 19, export=False),
        GrowthCase("plan", 19, 38, export=False),
        GrowthCase("wide-quarter", 1, 1, export=True),
        GrowthCase("wide-half", 2, 2, export=True),
        GrowthCase("wide-whole", 3, 6, export=True),
    )
}


@dataclass(frozen=True)
class Growth:
    """One watched run of `vitrify export`. parameters: of the transformer. source_bytes, artifact_bytes: of safetensors files,
    None for a plan. graph_bytes: of the artifact's ONNX files.
    """

    name: str
    double_blocks: int
    single_blocks: int
    parameters: int
    seconds: float
    peak_anonymous_bytes: int
    peak_mapped_bytes: int
    source_bytes: int | None
    artifact_bytes: int | None
    graph_bytes: int | None
    phases: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_growth(case: GrowthCase, cache: Path, sample: Path, *, threads: int) -> Growth:
    """Export or plan `case`; the artifact is removed afterwards, the source stays in `cache`.

    sample: the sample pipeline's folder (its tokenizers). Raises CompileError with what the export said.
    """
    if case.export:
        check_sample(sample)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="growth-", dir=cache) as scratch:
        if not case.export:
            configs = Path(scratch) / "configs"
            flux_dev_configs(case.shape).write(configs)
            return _growth(case, _run(case, ["--plan", "--json", str(configs)], threads), None, None)
        source = built(
            cache,
            f"source-{case.name}",
            source_key(case.shape, _DOWNSAMPLING),
            lambda folder: write_source(folder, case.shape, sample, downsampling=_DOWNSAMPLING),
        )
        artifact = Path(scratch) / "artifact"
        return _growth(case, _run(case, [str(source), str(artifact)], threads), source, artifact)


def _run(case: GrowthCase, arguments: list[str], threads: int) -> Watched:
    watched = watch([sys.executable, "-c", _PROGRAM, "export", *arguments], environment=job_environment(threads))
    if watched.exit_code != 0:
        raise CompileError(f"{case.name}: vitrify export ended with exit code {watched.exit_code}: {watched.said}")
    return watched


def _growth(case: GrowthCase, watched: Watched, source: Path | None, artifact: Path | None) -> Growth:
    return Growth(
        name=case.name,
        double_blocks=case.double_blocks,
        single_blocks=case.single_blocks,
        parameters=case.shape.parameters,
        seconds=watched.seconds,
        peak_anonymous_bytes=watched.peak_anonymous_bytes,
        peak_mapped_bytes=watched.peak_mapped_bytes,
        source_bytes=None if source is None else weight_bytes(source),
        artifact_bytes=None if artifact is None else weight_bytes(artifact),
        graph_bytes=None if artifact is None else sum(path.stat().st_size for path in artifact.rglob("*.onnx")),
        phases=tuple(asdict(phase) for phase in watched.phases),
    )
