"""Whole requests through the runtime's own loop: what is spent outside the engine's calls. Runs in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrify.bench.jobs import run_job
from vitrify.bench.measure import Clock, now, summarise
from vitrify.bench.results import LoopResult
from vitrify.bench.timed_backend import TimedBackend
from vitrify.engine.denoiser import LOOP_SEGMENTS

if TYPE_CHECKING:
    from vitrify.runtime import CompiledPipeline

__all__ = ["measure_loop", "timed_pipeline"]

_PROMPT = "red apple"


def measure_loop(artifact: Path, *, steps: int, runs: int, threads: int) -> LoopResult:
    """`runs` requests of `steps` steps, after one to warm up. Raises BackendError with what the process said."""
    given = {"artifact": str(artifact), "steps": steps, "runs": runs, "threads": threads}
    return LoopResult.from_json(run_job("vitrify.bench.loop", given, threads=threads), "loop")


def timed_pipeline(folder: Path, threads: int, clock: Clock) -> CompiledPipeline:
    """As `vitrify.runtime.load` makes it, but its backend tells the clock."""
    from vitrify.engine.artifact import Artifact
    from vitrify.engine.backends import backend
    from vitrify.engine.component import PipelineConfig
    from vitrify.engine.device import Device
    from vitrify.runtime.families.registry import family

    artifact = Artifact.open(folder)
    config = PipelineConfig.from_artifact(artifact)
    weights = [file for model in config.models.values() for file in model.weight_paths]
    engine = TimedBackend(backend(artifact.manifest.target, threads=threads), clock)
    return family(artifact.manifest.family)(config, engine, [Device()], weights, artifact=artifact, keep="all")


def _measure_here(folder: Path, steps: int, runs: int, threads: int) -> LoopResult:
    from vitrify.runtime import PixelGenerationContext

    clock = Clock()
    pipeline = timed_pipeline(folder, threads, clock)
    context = PixelGenerationContext(prompt=_PROMPT, seed=1, num_inference_steps=steps)
    walls, loops, engines = [], [], []
    for _ in range(runs + 1):
        clock.take()
        start = now()
        request = pipeline.prepare_inputs(context)
        pipeline.execute(request)
        walls.append(now() - start)
        loops.append(request.timings["loop"])
        engines.append(clock.take())
    walls, loops, engines = walls[1:], loops[1:], engines[1:]
    segments = {f"transformer/{segment}" for segment in LOOP_SEGMENTS}
    in_loop = [sum(seconds for graph, seconds in engine.items() if graph in segments) for engine in engines]
    return LoopResult(
        steps=steps,
        run=summarise(walls),
        loop=summarise(loops),
        run_outside=summarise([1 - sum(engine.values()) / wall for engine, wall in zip(engines, walls, strict=True)]),
        loop_outside=summarise([1 - inside / loop for inside, loop in zip(in_loop, loops, strict=True)]),
        graphs={graph: summarise([engine[graph] for engine in engines]) for graph in engines[0]},
    )


def main() -> None:
    """The job that `measure_loop` runs."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    result = _measure_here(Path(given["artifact"]), given["steps"], given["runs"], given["threads"])
    print(json.dumps(result.to_json()))


if __name__ == "__main__":
    main()
