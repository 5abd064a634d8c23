"""A compiled pipeline: the request, the one denoising loop, the image."""

from __future__ import annotations

import contextlib
import threading
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_policy import Cache, FirstBlock
from vitrify.engine.cache_presets import MEASURED, PRESETS, named_cache
from vitrify.engine.component import PipelineConfig
from vitrify.engine.errors import BackendError, RequestCancelled, RequestError, SpecError
from vitrify.runtime.caching import segments
from vitrify.runtime.caching.decisions import check_policy
from vitrify.runtime.caching.probe import ProbeGraph
from vitrify.runtime.caching.state import lane_state
from vitrify.runtime.caching.summary import report
from vitrify.runtime.components import KEEP, CompiledDenoiser
from vitrify.runtime.context import DOCUMENTED_DEFAULTS, PixelGenerationContext, resolve
from vitrify.runtime.guidance import Lane, combine, lanes
from vitrify.runtime.output import (
    DiffusionPipelineOutput,
    NotFiniteError,
    Result,
    check_output_type,
    pictures,
    to_uint8,
)
from vitrify.runtime.pipeline import DiffusionPipeline
from vitrify.runtime.request import PreparedRequest, PromptTruncatedWarning, Size, Text
from vitrify.runtime.schedulers.registry import open_scheduler
from vitrify.runtime.tokenizers import Tokenizer
from vitrify.runtime.values import check_array, check_count, check_number, check_seed

if TYPE_CHECKING:
    from vitrify.engine.artifact import Artifact
    from vitrify.engine.cache_config import DenoisingCacheConfig
    from vitrify.engine.device import Device
    from vitrify.engine.session import Backend
    from vitrify.runtime.caching.state import DenoisingCacheState
    from vitrify.runtime.schedulers.flow_match_euler import Schedule

__all__ = ["Callback", "CompiledPipeline", "Keep"]

Array = npt.NDArray[Any]
Keep = Literal["all", "denoiser", "none"]
Callback = Callable[["CompiledPipeline", int, float, dict[str, Any]], "Mapping[str, Any] | None"]
"""Called with (pipeline, step, timestep, {"latents": a copy}) after each step; returns what `__call__` says.

step: 0-based. timestep: what the step ran at, a plain float of the scheduler's unit (1000 is pure noise).
"""


class CompiledPipeline(DiffusionPipeline):
    """Draws images with an artifact; made by `vitrify.runtime.load`. A family subclasses it and fills the hooks.

    artifact: opened and checked. keep: which sessions stay open between requests: "all", "denoiser" (the loop's
    segments) or "none". Requests may run in several threads at once; they share sessions, never buffers.
    """

    transformer: CompiledDenoiser

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: Backend,
        devices: Sequence[Device],
        weight_paths: Sequence[str | Path],
        cache_config: DenoisingCacheConfig | None = None,
        *,
        artifact: Artifact,
        keep: Keep = "all",
        **kwargs: Any,
    ) -> None:
        if keep not in KEEP:
            raise SpecError(f"keep={keep!r} is unknown; known: {', '.join(KEEP)}")
        self.artifact = artifact
        self.keep = keep
        self._lock = threading.Lock()
        self._running = 0
        self._closed = False
        super().__init__(pipeline_config, session, devices, weight_paths, cache_config, **kwargs)

    # The hooks that a family fills.

    @abstractmethod
    def size(self, height: int, width: int) -> Size:
        """An image's size in the family's units. Raises RequestError naming the nearest size the artifact was compiled for."""

    @abstractmethod
    def noise(self, seed: int | list[int], rows: int, size: Size) -> Array:
        """The noise of `rows` images, packed as the denoiser takes it: one draw for one seed, one a row for a list."""

    @abstractmethod
    def text(self, context: Any, guided: bool, note: Callable[[str], None]) -> Text:
        """The prompts of a request, tokenised; with the negative ones if `guided` and there are any. note: takes warnings."""

    @abstractmethod
    def positions(self, context: Any, size: Size, text_tokens: int) -> Mapping[str, Array]:
        """The denoiser's inputs that depend on sizes alone, by graph input."""

    @abstractmethod
    def encode(self, tokens: Mapping[str, Array]) -> dict[str, Array]:
        """Token ids by tokenizer, [prompts, tokens] each → embeddings by name, [prompts, …] each."""

    @abstractmethod
    def feed(self, request: PreparedRequest, embeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The denoiser's inputs for one lane: (once a request, one row a step and row), as `DenoiserPlan.condition` takes them.

        embeds: of `encode`, one row for each of the lane's rows.
        """

    @abstractmethod
    def decode(self, latents: Array, size: Size) -> Array:
        """Packed latents [rows, image_tokens, channels] → images [rows, height, width, 3] float32 from 0 to 1."""

    def schedule(self, steps: int, size: Size, sigmas: Any) -> Schedule:
        """The times of a request. sigmas: the user's raw ones, or None."""
        return self.scheduler.schedule(steps, size.image_tokens, sigmas)

    # The request.

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        pooled_prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        negative_pooled_prompt_embeds: Array | None = None,
        output_type: str = "pil",
        max_sequence_length: int | None = None,
        callback_on_step_end: Callback | None = None,
        seed: int | Sequence[int] | None = None,
        cache: str | Cache | None = None,
    ) -> Result:
        """Draw images. Arguments are FluxPipeline's by name; None takes the artifact's default, then the documented one.

        prompt: one or a list; `num_images_per_prompt` images of each. prompt_2: for the second encoder, if it differs.
        true_cfg_scale: acts above 1 with a negative prompt ("" counts). guidance_scale: ignored by models without its embedding.
        height, width: pixels. sigmas: one a step, before any shift; their number is the number of steps.
        latents: [rows, image_tokens, channels] float32, packed, instead of a seed's noise; rows = prompts · images.
        prompt_embeds: [prompts, text_tokens, dim] float32 with pooled_prompt_embeds [prompts, dim], instead of a prompt.
        output_type: "pil"; "np" float32 0..1; "uint8"; "latent" (packed).
        callback_on_step_end: called with (pipeline, step, timestep, {"latents": a copy}) after each step; may return
            {"latents": …} to go on with others, or {"cancel": True} to end this request with RequestCancelled.
        seed: draws what `torch.Generator("cpu").manual_seed(seed)` draws; a list holds one an image; None: a random one.
        cache: a step cache, lossy: a name such as "first-block:0.08" or "taylorseer", or a Cache; None: the pipeline's own, off
            unless it was made with one; "none": off.
        Raises RequestError naming the argument. A prompt that is too long is cut with a PromptTruncatedWarning.
        """
        check_output_type(output_type)
        if not (callback_on_step_end is None or callable(callback_on_step_end)):
            raise RequestError(f"callback_on_step_end={callback_on_step_end!r}: expected a function")
        context = PixelGenerationContext(
            prompt=prompt,
            prompt_2=prompt_2,
            negative_prompt=negative_prompt,
            negative_prompt_2=negative_prompt_2,
            true_cfg_scale=true_cfg_scale,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            latents=latents,
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            max_sequence_length=max_sequence_length,
            seed=seed,
            cache=cache,
        )
        request = self.prepare_inputs(context)
        images: Any
        if output_type == "latent":
            images = self.denoise(request, callback_on_step_end)
        elif output_type == "np":
            images = self.draw(request, callback_on_step_end)
        else:
            images = self.execute(request, callback_on_step_end=callback_on_step_end).images
        return Result(
            images=pictures(images) if output_type == "pil" else images,
            seed=request.seed,
            settings=request.settings,
            timings=request.timings,
            warnings=(*request.warnings, *(r.warning for r in request.reports if r.warning)),
            cache=request.reports[-1] if request.reports else None,
        )

    def prepare_inputs(self, context: Any) -> PreparedRequest:
        """A request: checked, defaults filled in, prompts tokenised, noise drawn. Raises RequestError naming what is wrong."""
        for name, reason in _CANNOT_ACT.items():
            given = getattr(context, name, None)
            if given is not None and not (name in DOCUMENTED_DEFAULTS and given == DOCUMENTED_DEFAULTS[name]):
                raise RequestError(f"{name}: {reason}")
        size = self.size(check_count(self._ask("height", context), "height"), check_count(self._ask("width", context), "width"))
        schedule = self._scheduled(context, size)
        policy, threshold = self._cache(context, schedule)
        true_cfg_scale = check_number(self._ask("true_cfg_scale", context), "true_cfg_scale")
        guidance_scale = check_number(self._ask("guidance_scale", context), "guidance_scale")
        images_per_prompt = check_count(self._ask("num_images_per_prompt", context), "num_images_per_prompt")
        notes: list[str] = []
        text = self.text(context, true_cfg_scale > 1, notes.append)
        rows = text.prompts * images_per_prompt
        counted = f"{text.prompts} prompts × {images_per_prompt} images"
        layout = lanes(len(text.branches), rows, self.artifact.manifest.dims["batch"], counted)
        seed, latents = self._noise(context, rows, size)
        settings = {
            **text.record,
            "height": size.height,
            "width": size.width,
            "num_inference_steps": len(schedule),
            "sigmas": None if getattr(context, "sigmas", None) is None else [float(s) for s in context.sigmas],
            "guidance_scale": guidance_scale if self.has_guidance_embedding else None,
            "true_cfg_scale": true_cfg_scale if len(text.branches) > 1 else 1.0,
            "num_images_per_prompt": images_per_prompt,
            "max_sequence_length": text.tokens,
            "seed": seed,
            "artifact": self.artifact.id,
            "cache": None if policy is None else str(policy),
            "residual_threshold": threshold if policy is not None and policy.probes else None,
        }
        for note in notes:
            warnings.warn(note, PromptTruncatedWarning, stacklevel=3)
        return PreparedRequest(
            size=size,
            text=text,
            images_per_prompt=images_per_prompt,
            lanes=layout,
            schedule=schedule,
            latents=latents,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            positions=self.positions(context, size, text.tokens),
            seed=seed,
            settings=settings,
            warnings=tuple(notes),
            cache=policy,
            residual_threshold=threshold,
        )

    def execute(self, model_inputs: Any, **kwargs: Any) -> DiffusionPipelineOutput:
        """Images of a prepared request, uint8. kwargs: callback_on_step_end. Raises RequestCancelled, BackendError."""
        return DiffusionPipelineOutput(to_uint8(self.draw(model_inputs, **kwargs)))

    def draw(self, request: PreparedRequest, callback_on_step_end: Callback | None = None) -> Array:
        """Images of a prepared request, [rows, height, width, 3] float32 from 0 to 1.

        Raises RequestCancelled, BackendError, and of those NotFiniteError where latents or images are NaN or infinite.
        """
        with self._admitted():
            latents = self._denoised(request, callback_on_step_end, None)
            with request.timed("decode"):
                images = self.decode(latents, request.size)
        if not np.isfinite(images).all():
            raise NotFiniteError("images are not finite though the latents are: the decoder's weights overflow on them")
        return images

    def denoise(
        self,
        request: PreparedRequest,
        callback_on_step_end: Callback | None = None,
        observe: Callable[[int, Lane], None] | None = None,
    ) -> Array:
        """A request's latents after its last step, [rows, image_tokens, channels] float32, packed.

        observe: called with (step, lane) when a lane has run a step; its plan holds that step's states until the next.
        Raises as `draw` does.
        """
        with self._admitted():
            return self._denoised(request, callback_on_step_end, observe)

    def run_transformer(self, cache_state: DenoisingCacheState, **kwargs: Any) -> tuple[Array, ...]:
        """A lane's step from its segments, in the documented form.

        kwargs: plan, a DenoiserPlan; index, its step; probe, the lane's Probe where its cache needs one.
        """
        return segments.computed(cache_state, kwargs["plan"], kwargs["index"], kwargs.get("probe"))

    def run_skipped(self, cache_state: DenoisingCacheState, **kwargs: Any) -> Array:
        """A skipped step of a lane that holds its residual: embed, add, finish. kwargs: as in `run_transformer`."""
        return segments.skipped(cache_state, kwargs["plan"], kwargs["index"])

    def close(self) -> None:
        """Refuse new requests from now on (BackendError), and close every session when the last running one has ended.

        It does not wait for those that run.
        """
        with self._lock:
            self._closed = True
            last = self._running == 0
        if last:
            self._close_sessions()

    def _close_sessions(self) -> None:
        for name in self.components or {}:
            getattr(self, name).close()
        self.probe_graph.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Inside.

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        """One request that runs: sessions outlive it, whoever closes the pipeline meanwhile."""
        with self._lock:
            if self._closed:
                raise BackendError("this pipeline is closed; load the artifact again")
            self._running += 1
        try:
            yield
        finally:
            self._left()

    def _left(self) -> None:
        with self._lock:
            self._running -= 1
            last = self._closed and self._running == 0
        if last:
            self._close_sessions()

    def _denoised(
        self, request: PreparedRequest, callback: Callback | None, observe: Callable[[int, Lane], None] | None
    ) -> Array:
        with request.timed("encode"):
            conditions = self._conditions(request)
        with contextlib.ExitStack() as stack:
            with request.timed("condition"):
                running = [self._open(stack, request, branches, conditions) for branches in request.lanes]
            with request.timed("loop"):
                latents = self._loop(request, running, callback, observe)
            request.reports.extend(filter(None, [report([lane.cache_state for lane in running])]))
            running.clear()  # plans hold the engine's memory: sessions that close here can give it back
        if not np.isfinite(latents).all():
            raise NotFiniteError(
                f"latents are not finite after {len(request.schedule)} steps: the denoiser's weights or inputs overflow"
            )
        return latents

    def _loop(
        self,
        request: PreparedRequest,
        running: Sequence[Lane],
        callback: Callback | None,
        observe: Callable[[int, Lane], None] | None,
    ) -> Array:
        latents, sigmas = request.latents.copy(), request.schedule.sigmas
        for step, timestep in enumerate(request.schedule.timesteps.tolist()):
            predictions: dict[int, Array] = {}
            for lane in running:
                lane.load(latents)
                kwargs = {"plan": lane.plan, "index": step, "probe": lane.probe}
                output = self.run_denoising_step(step, lane.cache_state, self.devices[0], **kwargs)
                predictions.update(lane.split(output))
                if observe is not None:
                    observe(step, lane)
            noise_pred = combine(predictions, request.true_cfg_scale)
            latents = self.scheduler.step(latents, noise_pred, sigmas[step], sigmas[step + 1], out=latents)
            if callback is not None:
                latents = self._call_back(callback, step, timestep, latents)
        return latents

    @property
    def has_guidance_embedding(self) -> bool:
        """Whether `guidance_scale` reaches the model."""
        return any(t.name == "guidance" for t in self.artifact.manifest.components["transformer"].graphs["condition"].inputs)

    def component_arguments(self, name: str) -> Mapping[str, Any]:
        return {**super().component_arguments(name), "artifact": self.artifact, "component": name, "keep": self.keep}

    def init_remaining_components(self) -> None:
        manifest = self.artifact.manifest
        self.scheduler = open_scheduler(manifest.scheduler.class_name, manifest.scheduler.config)
        assert self.session is not None
        self.probe_graph = ProbeGraph(self.artifact, self.session, keep=self.keep != "none")
        specs = manifest.tokenizers
        self.tokenizers = {name: Tokenizer.open(self.artifact.path(spec.path), spec) for name, spec in specs.items()}

    def request_default(self, name: str) -> Any:
        """What a request that does not set `name` gets: the artifact's default, else the class's, else the documented one."""
        return self._ask(name, None)

    def named_cache(
        self, name: str, predictor: str | None = None, guards: Sequence[str] = (), *, steps: int | None = None
    ) -> Cache:
        """The cache called `name` for this pipeline: with what was measured of its artifact, and its class's TaylorSeer defaults.

        predictor, guards, steps, errors: as in `vitrify.engine.cache_presets.named_cache`.
        """
        own = (
            self.default_taylorseer_cache_interval,
            self.default_taylorseer_warmup_steps,
            self.default_taylorseer_max_order,
        )
        return named_cache(name, predictor, guards, artifact=self.artifact, steps=steps, taylorseer=own)

    def _ask(self, name: str, context: Any) -> Any:
        own = {"num_inference_steps": self.default_num_inference_steps, "residual_threshold": self.default_residual_threshold}
        return resolve(name, context, self.artifact.manifest.defaults, own)

    def _scheduled(self, context: Any, size: Size) -> Schedule:
        sigmas, steps = getattr(context, "sigmas", None), getattr(context, "num_inference_steps", None)
        if sigmas is None:
            return self.schedule(check_count(self._ask("num_inference_steps", context), "num_inference_steps"), size, None)
        one_axis = getattr(sigmas, "ndim", 1) == 1
        if not isinstance(sigmas, Sequence | np.ndarray) or isinstance(sigmas, str) or not one_axis or any(map(np.ndim, sigmas)):
            raise RequestError(f"sigmas: got {sigmas!r}, expected a list of numbers from 0 to 1")
        if steps is not None and steps != len(sigmas):
            raise RequestError(f"num_inference_steps={steps} and {len(sigmas)} sigmas contradict each other; give one of them")
        return self.schedule(len(sigmas), size, sigmas)

    def _cache(self, context: Any, schedule: Schedule) -> tuple[Cache | None, float]:
        """The request's step cache, checked against its steps, and the threshold of a first-block decision."""
        asked, threshold = getattr(context, "cache", None), getattr(context, "residual_threshold", None)
        policy = self.cache if asked is None else asked
        if isinstance(policy, str):
            policy = self.named_cache(policy, steps=len(schedule))
        if not isinstance(policy, Cache | None):
            raise RequestError(f"cache={asked!r}: expected a name or a Cache; names: {', '.join((*PRESETS, *MEASURED))}")
        policy = policy if policy is not None and policy.enabled else None
        if threshold is not None and (policy is None or not policy.probes):
            raise RequestError(
                "residual_threshold: it acts with a first-block cache alone; set cache='first-block' or leave it unset"
            )
        if policy is not None:
            if policy.probes:
                self.probe_graph.check()
            try:
                check_policy(policy, len(schedule), schedule.sigmas)
            except SpecError as error:
                raise RequestError(f"cache: {error}") from error
            if threshold is None and isinstance(policy.decision, FirstBlock):
                threshold = policy.decision.threshold
        threshold = check_number(self._ask("residual_threshold", None) if threshold is None else threshold, "residual_threshold")
        if threshold < 0:
            raise RequestError(f"residual_threshold={threshold}: expected a number of at least 0")
        return policy, threshold

    def _noise(self, context: Any, rows: int, size: Size) -> tuple[int | list[int] | None, Array]:
        seed, latents = getattr(context, "seed", None), getattr(context, "latents", None)
        if latents is None:
            drawn = check_seed(seed, rows)
            return drawn, self.noise(drawn, rows, size)
        if seed is not None:
            raise RequestError("seed and latents both say where to start; give one of them")
        shape = (rows, size.image_tokens, self.transformer.config["in_channels"])
        return None, check_array(latents, "latents", shape, np.float32, _LATENT_AXES)

    def _conditions(self, request: PreparedRequest) -> list[dict[str, Array]]:
        """The embeddings of each branch, one row an image; all that must be encoded goes through the encoders together."""
        branches = request.text.branches
        waiting = [branch.tokens for branch in branches if branch.tokens]
        encoded: dict[str, Array] = {}
        if waiting:
            encoded = self.encode({name: np.concatenate([tokens[name] for tokens in waiting]) for name in waiting[0]})
        conditions, start = [], 0
        for branch in branches:
            embeds = dict(branch.embeds)
            if branch.tokens:
                embeds |= {name: array[start : start + request.text.prompts] for name, array in encoded.items()}
                start += request.text.prompts
            conditions.append({name: np.repeat(array, request.images_per_prompt, axis=0) for name, array in embeds.items()})
        return conditions

    def _open(
        self, stack: contextlib.ExitStack, request: PreparedRequest, branches: tuple[int, ...], conditions: list[dict[str, Array]]
    ) -> Lane:
        batch, image_tokens, text_tokens = len(branches) * request.rows, request.size.image_tokens, request.text.tokens
        steps = len(request.schedule)
        plan = stack.enter_context(
            self.transformer.model.plan(batch=batch, image_tokens=image_tokens, text_tokens=text_tokens, steps=steps)
        )
        embeds = {name: np.concatenate([conditions[b][name] for b in branches]) for name in conditions[0]}
        plan.condition(*self.feed(request, embeds))
        sigmas = request.schedule.sigmas.tolist()
        state = lane_state(request.cache, plan.hidden.last, plan.noise_pred, steps, sigmas, request.residual_threshold)
        probe = None
        if request.cache is not None and request.cache.probes:
            probe = stack.enter_context(self.probe_graph.open(plan, state))
        return Lane(branches, plan, state, probe)

    def _call_back(self, callback: Callback, step: int, timestep: float, latents: Array) -> Array:
        returned = callback(self, step, timestep, {"latents": latents.copy()})
        if not isinstance(returned, Mapping | None):
            raise RequestError(
                f"callback_on_step_end returned {returned!r}; expected a dictionary with cancel or latents, or None"
            )
        answer = dict(returned or {})
        if answer.pop("cancel", False):
            raise RequestCancelled(f"the request was cancelled by its callback after step {step}")
        changed = answer.pop("latents", None)
        if answer:
            raise RequestError(f"callback_on_step_end returned {sorted(answer)}; known: cancel, latents")
        if changed is None:
            return latents
        return check_array(changed, "the callback's latents", latents.shape, np.float32, _LATENT_AXES).copy()


_LATENT_AXES = "rows image_tokens channels"

_CANNOT_ACT = {
    "input_image": "drawing from an image is not supported by this pipeline; leave it unset",
    "strength": "it acts on an input_image alone; leave it unset",
    "timesteps": "schedules are given as sigmas; set those instead",
    "mask": "this pipeline attends to every text token; leave it unset",
    "negative_mask": "this pipeline attends to every text token; leave it unset",
}
