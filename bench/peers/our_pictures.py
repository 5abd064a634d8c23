"""Our side of whole pictures: the runtime's own pipeline, from prompt to uint8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitrify.bench.loop import timed_pipeline
from vitrify.bench.peers.ours import ARTIFACT
from vitrify.bench.peers.peer import PICTURE, Peer
from vitrify.bench.picture_inputs import PictureInputs
from vitrify.engine.session import Array
from vitrify.runtime import PixelGenerationContext

__all__ = ["OurPictures"]


class OurPictures(Peer):
    """cache: the step cache's name, `none` for every step computed. The parts of a picture are the graphs it ran.

    build: the artifact prepared under that name, in another precision; the case's own if not given.
    """

    inputs_type = PictureInputs

    def __init__(self, *, cache: str, build: str | None = None, **given: Any) -> None:
        super().__init__(**given)
        if build is not None:
            self.artifact = self.build(build) / ARTIFACT
        self._cache = cache

    def open(self) -> None:
        self._pipeline = timed_pipeline(self.artifact, self.threads, self.clock)

    def give(self, inputs: PictureInputs) -> None:
        self._contexts = [
            PixelGenerationContext(
                prompt=prompt,
                negative_prompt=inputs.negative_prompt,
                true_cfg_scale=inputs.true_cfg_scale,
                num_inference_steps=inputs.num_inference_steps,
                height=inputs.height,
                width=inputs.width,
                max_sequence_length=inputs.max_sequence_length,
                latents=inputs.latents[index : index + 1],
                cache=self._cache,
            )
            for index, prompt in enumerate(inputs.prompts)
        ]

    def predict(self, index: int) -> Array:
        return self._drawn(index)

    def calls(self) -> Mapping[str, Callable[[int], object]]:
        return {PICTURE: self._drawn}

    def counts(self) -> Mapping[str, int]:
        """Over all pictures: engine calls by graph, computed steps (summed over lanes); of one, the cache's bytes."""
        self.clock.take()
        computed = held = 0
        for context in self._contexts:
            request = self._pipeline.prepare_inputs(context)
            self._pipeline.execute(request)
            steps = len(request.schedule)
            lanes = [len(lane) for report in request.reports for lane in report.computed] or [steps] * len(request.lanes)
            computed += sum(lanes)
            held = max(held, sum(report.allocated_bytes for report in request.reports))
        calls = {f"engine calls, {graph}": count for graph, count in sorted(self.clock.take_counts().items())}
        return {"computed steps": computed, "cache bytes": held, **calls}

    def _drawn(self, index: int) -> Array:
        pipeline = self._pipeline
        images: Array = pipeline.execute(pipeline.prepare_inputs(self._contexts[index % len(self._contexts)])).images
        picture: Array = images[0]
        return picture
