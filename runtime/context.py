"""One request as the contract words it, and what an unset field of it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

__all__ = ["DOCUMENTED_DEFAULTS", "PixelGenerationContext", "resolve"]

Array = npt.NDArray[Any]

DOCUMENTED_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 50,
        "guidance_scale": 3.5,
        "true_cfg_scale": 1.0,
        "num_images_per_prompt": 1,
        "strength": 0.6,
        "output_format": "jpeg",
    }
)
"""What holds when neither the request, nor the artifact, nor the pipeline class says otherwise."""


@dataclass
class PixelGenerationContext:
    """One request. Every field may be None: unset, to be filled by `resolve` when the request is prepared.

    tokens, tokens_2: [prompts, tokens] int64, of the first and second text encoder; negative_… for true CFG.
    mask, negative_mask: [prompts, tokens], for families whose transformer masks text.
    latents: [rows, image_tokens, channels] float32, packed; rows = prompts · num_images_per_prompt.
    timesteps, sigmas: one a step. latent_image_ids: [image_tokens, axes] float32. text_ids: [text_tokens, axes].
    height, width: pixels. seed: one number, or one a row. strength: of an input_image, 0..1.
    output_format, request_id, status: the server's; not read here.
    residual_threshold: of the first-block decision, if that cache is on.
    The rest is vitrify's: what stands in for tokens, and what the tokens were.
    prompt_embeds: [prompts, text_tokens, dim] float32; pooled_prompt_embeds: [prompts, dim] float32; negative_… likewise.
    max_sequence_length: text tokens of the second encoder. cache: the step cache, by name or as a Cache.
    prompt …: the texts, for the record only.
    """

    tokens: Array | None = None
    tokens_2: Array | None = None
    negative_tokens: Array | None = None
    negative_tokens_2: Array | None = None
    mask: Array | None = None
    negative_mask: Array | None = None
    latents: Array | None = None
    timesteps: Sequence[float] | Array | None = None
    sigmas: Sequence[float] | Array | None = None
    latent_image_ids: Array | None = None
    text_ids: Array | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    num_images_per_prompt: int | None = None
    strength: float | None = None
    seed: int | Sequence[int] | None = None
    input_image: Any | None = None
    output_format: str | None = None
    request_id: str | None = None
    status: Any | None = None
    residual_threshold: float | None = None
    prompt_embeds: Array | None = None
    pooled_prompt_embeds: Array | None = None
    negative_prompt_embeds: Array | None = None
    negative_pooled_prompt_embeds: Array | None = None
    max_sequence_length: int | None = None
    cache: Any | None = None
    prompt: Sequence[str] | None = None
    prompt_2: Sequence[str] | None = None
    negative_prompt: Sequence[str] | None = None
    negative_prompt_2: Sequence[str] | None = None


def resolve(name: str, context: Any, artifact: Mapping[str, Any], pipeline: Mapping[str, Any]) -> Any:
    """The value of request field `name`: the request's, else the artifact's, else the pipeline class's, else the documented one.

    context: any object; a field that it lacks is unset. None where nobody says anything.
    """
    value = getattr(context, name, None)
    for source in (artifact, pipeline, DOCUMENTED_DEFAULTS):
        if value is None:
            value = source.get(name)
    return value
