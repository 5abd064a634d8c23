"""The pipeline contract: components constructed from a folder, one denoising step, images out."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from vitrify.engine.cache_config import DenoisingCacheConfig
from vitrify.engine.component import ComponentModel, PipelineConfig, Weights
from vitrify.engine.errors import SpecError
from vitrify.runtime.caching.predictors import predict, record
from vitrify.runtime.caching.state import DenoisingCacheState, documented_state
from vitrify.runtime.caching.step import denoising_step, probed
from vitrify.runtime.output import DiffusionPipelineOutput

if TYPE_CHECKING:
    from vitrify.engine.cache_policy import Cache
    from vitrify.engine.device import Device
    from vitrify.engine.session import Backend

__all__ = ["DiffusionPipeline"]

Array = npt.NDArray[Any]


class DiffusionPipeline(ABC):
    """A diffusion pipeline of named components; subclass it with your own, or load a compiled one.

    A subclass sets `components` (name → ComponentModel subclass) and fills `init_remaining_components`,
    `prepare_inputs`, `execute` and, if it denoises by `run_denoising_step`, `run_transformer`.

    pipeline_config: the model's folder and what it says of each model.
    session: the backend that opens graphs, or None where the components bring their own callables.
    devices: where to run. weight_paths: safetensors files by their path in the model's folder, `component/file`.
    cache_config: None: every cache off. What it means is `cache`, None when all is off.

    Components become attributes of their names, in the order of `components`; then `init_remaining_components` runs.
    Raises TypeError for keyword arguments that no subclass took; SpecError (a ValueError) for `components` not set,
    a component that the folder lacks, weights that cannot be assigned, and a cache that this class has no hook for.
    """

    components: ClassVar[dict[str, type[ComponentModel]] | None] = None
    unprefixed_weight_component: str | None = None
    """The component that weight files without a `component/` prefix belong to."""

    default_num_inference_steps: int = 50
    default_residual_threshold: float = 0.05
    default_taylorseer_cache_interval: int = 5
    default_taylorseer_warmup_steps: int = 9
    default_taylorseer_max_order: int = 1

    activation_dtype: npt.DTypeLike = np.float32
    """What `run_transformer` computes in: the dtype of what caches hold."""

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: Backend | None,
        devices: Sequence[Device],
        weight_paths: Sequence[str | Path],
        cache_config: DenoisingCacheConfig | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if kwargs:
            raise TypeError(f"{name}() got unexpected keyword arguments: {', '.join(sorted(kwargs))}")
        self.cache_config = (cache_config or DenoisingCacheConfig()).filled(
            cache_interval=self.default_taylorseer_cache_interval,
            warmup_steps=self.default_taylorseer_warmup_steps,
            max_order=self.default_taylorseer_max_order,
        )
        self.cache = self.cache_config.policy()
        self.held_quantity(self.cache)
        self.pipeline_config = pipeline_config
        self.session = session
        self.devices = list(devices)
        if not self.components:
            raise SpecError(f"{name}.components is not set.")
        self._construct_components(self.components, weight_paths)
        self.init_remaining_components()

    @abstractmethod
    def init_remaining_components(self) -> None:
        """Set up what is no ComponentModel (tokenizers, schedulers, image processors). Called once, last."""

    @abstractmethod
    def prepare_inputs(self, context: Any) -> Any:
        """What `execute` takes, made from a request.

        context: a PixelGenerationContext, or any object with num_images_per_prompt, height, width, num_inference_steps.
        """

    @abstractmethod
    def execute(self, model_inputs: Any, **kwargs: Any) -> DiffusionPipelineOutput:
        """Run one prepared request; images [batch, height, width, 3] uint8."""

    def create_cache_state(
        self, batch_size: int, seq_len: int, transformer_config: Any, text_seq_len: int = 0
    ) -> DenoisingCacheState:
        """Fresh state for one lane of one request: the documented buffers of the caches that are on, zeros.

        batch_size: rows. seq_len: image tokens. transformer_config: object or mapping with num_attention_heads,
        attention_head_dim, patch_size, out_channels, in_channels (SpecError naming one that is missing).
        text_seq_len: for caches that hold text; none does.
        """
        del text_seq_len
        of = self.held_quantity(self.cache)
        return documented_state(self.cache, of, batch_size, seq_len, transformer_config, self.activation_dtype)

    def run_transformer(self, cache_state: DenoisingCacheState, **kwargs: Any) -> tuple[Array, ...]:
        """One call of the transformer: `(noise_pred,)`, or what `first_block` returns where first-block caching is on.

        kwargs: what `run_denoising_step` was given. Arrays are of `activation_dtype`.
        """
        del cache_state, kwargs
        raise SpecError(
            f"{type(self).__name__} calls run_denoising_step, so it must define run_transformer(cache_state, **kwargs)"
        )

    def run_skipped(self, cache_state: DenoisingCacheState, **kwargs: Any) -> Array:
        """noise_pred of a skipped step where a static decision holds the residual of all blocks.

        Define it to make such predictors possible: what comes before the blocks, plus `predicted_residual(cache_state)`,
        through what comes after them; and call `keep_residual(cache_state, residual)` in `run_transformer`.
        """
        del cache_state, kwargs
        raise SpecError(f"{type(self).__name__} has no run_skipped, so a residual cannot stand in for a step")

    def run_denoising_step(self, step: int, cache_state: DenoisingCacheState, device: Device, **kwargs: Any) -> Array:
        """noise_pred of step `step` (0-based) for one lane, computed or predicted; then it is the cache's memory, read-only.

        kwargs go to `run_transformer`, whose tuple must have the documented form (else SpecError).
        """
        del device
        return denoising_step(self, step, cache_state, kwargs)

    def first_block(
        self,
        cache_state: DenoisingCacheState,
        residual: Array,
        compute: Callable[[], Array],
        finish: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, Array]:
        """Decide by the first block, inside `run_transformer`, and return its tuple: `return self.first_block(…)`.

        residual: [B, S, D], block 0's output − input, image tokens alone. compute: runs the remaining blocks; called on computed
        steps. With `finish` it returns their residual and `finish(residual)` gives noise_pred; else it returns noise_pred.
        """
        threshold = cache_state.residual_threshold
        decided = getattr(cache_state.policy.decision, "threshold", None) if cache_state.policy is not None else None
        if threshold is None:
            threshold = self.default_residual_threshold if decided is None else decided
        return probed(cache_state, residual, compute, finish, threshold)

    def keep_residual(self, cache_state: DenoisingCacheState, residual: Array) -> None:
        """Take the residual of all blocks, [B, S, D], in a computed step; does nothing where no static decision holds it."""
        if cache_state.of == "residual" and cache_state.policy is not None and not cache_state.policy.probes:
            record(cache_state, residual)

    def predicted_residual(self, cache_state: DenoisingCacheState) -> Array:
        """What stands in for the residual of all blocks in a skipped step, [B, S, D], read-only."""
        return predict(cache_state)

    def held_quantity(self, policy: Cache | None) -> Literal["residual", "output"] | None:
        """What a predictor that does not say holds here; None under a first-block decision, where `first_block`'s call says.

        Raises SpecError for a residual under a static decision in a class without the hook for it.
        """
        if policy is None:
            return None
        asked = policy.predictor.of if policy.predictor is not None else None
        if policy.probes:
            return "output" if policy.compat else asked
        has_hook = type(self).run_skipped is not DiffusionPipeline.run_skipped
        if asked == "residual" and not has_hook:
            raise SpecError(
                f"{policy}: {type(self).__name__} has no hook for it; define run_skipped(cache_state, **kwargs) "
                "or hold the output"
            )
        return asked or ("residual" if has_hook else "output")

    def component_arguments(self, name: str) -> Mapping[str, Any]:
        """Keyword arguments that component `name` is constructed with, those of them that its `__init__` names."""
        del name
        return {"cache_config": self.cache_config, "session": self.session}

    def _construct_components(self, components: Mapping[str, Any], weight_paths: Sequence[str | Path]) -> None:
        models = self.pipeline_config.models
        wanted = {name: kind for name, kind in components.items() if isinstance(kind, type) and issubclass(kind, ComponentModel)}
        for name in wanted:
            if name not in models:
                raise SpecError(
                    f"component {name!r} of {type(self).__name__} is not in {self.pipeline_config.model_path}; "
                    f"available: {', '.join(sorted(models)) or 'none'}"
                )
        files = self._files_by_component(wanted, weight_paths)
        for name, model in wanted.items():
            config = models[name]
            named = inspect.signature(model.__init__).parameters
            options = {key: value for key, value in self.component_arguments(name).items() if key in named}
            weights = Weights(files[name])
            setattr(self, name, model(dict(config.config), config.encoding, self.devices, weights, **options))

    def _files_by_component(self, wanted: Mapping[str, Any], weight_paths: Sequence[str | Path]) -> dict[str, list[Path]]:
        root = self.pipeline_config.model_path
        files: dict[str, list[Path]] = {name: [] for name in wanted}
        for given in weight_paths:
            path = self._inside(Path(given), root)
            name = path.parts[0] if len(path.parts) > 1 else self.unprefixed_weight_component
            if name is None:
                raise SpecError(
                    f"weight file {str(given)!r} has no component/ prefix, and {type(self).__name__}.unprefixed_weight_component "
                    f"is not set; put it under one of {', '.join(files)}, or set that attribute"
                )
            if name not in files and name not in self.pipeline_config.models:
                raise SpecError(f"weight file {str(given)!r}: there is no component {name!r}; components: {', '.join(files)}")
            files.setdefault(name, []).append(root / path)
        for name in wanted:
            files[name] = files[name] or [root / path for path in self.pipeline_config.models[name].weight_paths]
            files[name] = files[name] or sorted((root / name).glob("*.safetensors"))
            if not files[name]:
                raise SpecError(f"No weight files found for component {name!r} in {root / name}")
        return files

    @staticmethod
    def _inside(path: Path, root: Path) -> Path:
        """`path` relative to the model's folder `root`, in which it must lie."""
        relative = Path(os.path.relpath(root / path, root))
        if relative.parts[:1] == ("..",):
            raise SpecError(f"weight file {str(path)!r} lies outside the model folder {root}")
        if not (root / relative).is_file():
            what = "is a folder, expected a file" if (root / relative).is_dir() else "does not exist"
            raise SpecError(f"weight file {str(path)!r} {what} in {root}")
        return relative
