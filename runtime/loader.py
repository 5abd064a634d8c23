"""From an artifact's folder to a pipeline that draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitrify.engine.artifact import Artifact
from vitrify.engine.backends import backend
from vitrify.engine.component import PipelineConfig
from vitrify.engine.device import Device
from vitrify.runtime.families.registry import family

if TYPE_CHECKING:
    from vitrify.engine.cache_config import DenoisingCacheConfig
    from vitrify.runtime.compiled import CompiledPipeline, Keep

__all__ = ["load"]


def load(
    path: str | Path,
    *,
    keep: Keep = "all",
    verify: Literal["load", "full"] = "load",
    kernels: Literal["auto", "native", "portable"] = "auto",
    threads: int | None = None,
    cache_config: DenoisingCacheConfig | None = None,
) -> CompiledPipeline:
    """The pipeline of the artifact at `path`, ready to be called. Sessions open at the first request.

    keep: which components stay open between requests: "all", "denoiser" (the loop's segments alone) or "none".
    verify: "load" hashes files under 256 MiB, "full" all of them.
    kernels: "auto" takes our native kernels where they are installed, "native" insists, "portable" runs the ops' bodies.
    threads: of the process's one pool; None: one per core.
    cache_config: the step caches of requests that do not say otherwise; None: off.
    Raises ArtifactError for a damaged artifact, BackendError for a missing or unfit backend, SpecError for a bad argument.
    """
    artifact = Artifact.open(path, verify=verify)
    pipeline = family(artifact.manifest.family)
    config = PipelineConfig.from_artifact(artifact)
    weights = [file for model in config.models.values() for file in model.weight_paths]
    engine = backend(artifact.manifest.target, kernels=kernels, threads=threads, ops=artifact.manifest.ops)
    return pipeline(config, engine, [Device()], weights, cache_config, artifact=artifact, keep=keep)
