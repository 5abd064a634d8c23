"""What int8 is measured on: a component's own calls while the eager diffusers pipeline draws prompts."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from vitrify.engine.errors import CompileError
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.rounding import Runs
from vitrify.export.source import DiffusersFolder

__all__ = ["CALIBRATION_PROMPTS", "recorded_calls"]

CALIBRATION_PROMPTS = (
    "a red apple on a wooden table",
    "portrait of an old fisherman, soft light",
    "a rocket above the clouds at night",
    "cat face",
    "city street in the rain, neon signs, reflections",
    "a bowl of noodle soup seen from above",
    "snowy mountains behind a lake",
    "the word OPEN written on a yellow sign",
)
_STEPS = 6
_SEED = 1


@dataclass
class _Calls:
    """called: the part of the component that the pipeline calls. made: arguments by position and by name."""

    called: nn.Module
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def again(self) -> list[Callable[[], torch.Tensor]]:
        """What makes each call once more and gives its first output."""
        return [partial(self._again, args, kwargs) for args, kwargs in self.made]

    def _again(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        return _first(self.called(*args, **kwargs))


def recorded_calls(
    folder: DiffusersFolder,
    components: Sequence[ComponentRecipe],
    prompts: Sequence[str],
    defaults: Mapping[str, Any],
) -> dict[str, Runs]:
    """The components' calls while the source's own diffusers pipeline draws the prompts, in float32, six steps each, from the
    first to the last noise level of a request with `defaults`.

    It takes the memory that diffusers takes for the whole pipeline in float32. defaults: of a request, as the artifact will
    carry them. Raises CompileError if diffusers cannot load or run the source.
    """
    import diffusers

    try:
        with _quiet():
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                folder.root, torch_dtype=torch.float32, variant=folder.variant, local_files_only=True
            )
            pipe.set_progress_bar_config(disable=True)
            modules = {recipe.name: getattr(pipe, recipe.name) for recipe in components}
            calls = {recipe.name: _Calls(modules[recipe.name].get_submodule(recipe.called)) for recipe in components}
            known = inspect.signature(type(pipe).__call__).parameters
            asked = {name: value for name, value in defaults.items() if name in known}
            asked |= _steps(int(asked.get("num_inference_steps", _STEPS)), known)
            with contextlib.ExitStack() as hooks:
                for call in calls.values():
                    hook = call.called.register_forward_pre_hook(_record(call.made), with_kwargs=True)
                    hooks.callback(hook.remove)
                for number, prompt in enumerate(prompts):
                    generator = torch.Generator("cpu").manual_seed(_SEED + number)
                    pipe(prompt, generator=generator, output_type="np", **asked)
    except Exception as error:
        raise CompileError(
            f"int8 is measured on the eager diffusers pipeline, which failed: {type(error).__name__}: {error}; "
            "mend the source, or export bf16, which needs no calibration"
        ) from error
    return {name: Runs(modules[name], call.again()) for name, call in calls.items()}


def _steps(usual: int, known: Collection[str]) -> dict[str, Any]:
    """Arguments for `_STEPS` steps from the first to the last noise level of `usual` steps: a layer's error hangs on the level,
    and is largest at the last, which a request of few steps would not reach. known: the pipeline's parameters."""
    count = min(_STEPS, usual)
    levels = {"sigmas": np.linspace(1.0, 1 / usual, count).tolist()} if usual > count and "sigmas" in known else {}
    return {"num_inference_steps": count, **levels}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries print bars and advice; what matters to the user is raised as an error."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


def _record(made: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Any:
    def record(_module: Any, args: Any, kwargs: Any) -> None:
        made.append((_copied(args), _copied(kwargs)))

    return record


def _copied(value: Any) -> Any:
    """The pipeline changes tensors in place later on."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return tuple(_copied(item) for item in value) if isinstance(value, tuple | list) else value


def _first(result: Any) -> torch.Tensor:
    """The output that the recipe's wrapper gives on: a pooled prompt where there is one, else the first."""
    pooled = getattr(result, "pooler_output", None)
    tensor: torch.Tensor = result if isinstance(result, torch.Tensor) else (result[0] if pooled is None else pooled)
    return tensor
