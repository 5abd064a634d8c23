"""FLUX.1: CLIP's pooled prompt and T5's embeddings condition a transformer over 2 × 2 packed latents.

Black Forest Labs, FLUX.1, 2024; what a request means is diffusers' FluxPipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vitrify.engine.component import ComponentModel
from vitrify.engine.errors import ArtifactError, RequestError
from vitrify.engine.specs import ComponentSpec
from vitrify.runtime.compiled import CompiledPipeline
from vitrify.runtime.components import CompiledDenoiser, CompiledModel
from vitrify.runtime.noise import Generator
from vitrify.runtime.request import Branch, PreparedRequest, Size, Text
from vitrify.runtime.rotary import raster_ids, rotary_table
from vitrify.runtime.sealed import check_named, config_number, config_numbers
from vitrify.runtime.tokenizers import Dropped
from vitrify.runtime.values import check_array, check_count, check_dim, check_texts

__all__ = ["FluxPipeline"]

Array = npt.NDArray[Any]

_THETA = 10_000.0
_AXES_DIMS = (16, 56, 56)  # FluxTransformer2DModel's default; FLUX.1-dev's own config.json leaves it out
_TIMESTEP_UNIT = np.float32(1000)  # FluxPipeline hands the transformer t / 1000, whatever the scheduler was trained with


class FluxPipeline(CompiledPipeline):
    """A compiled FLUX.1 pipeline, with or without guidance embedding."""

    components: ClassVar[dict[str, type[ComponentModel]] | None] = {
        "text_encoder": CompiledModel,
        "text_encoder_2": CompiledModel,
        "transformer": CompiledDenoiser,
        "vae": CompiledModel,
    }
    default_num_inference_steps = 28

    text_encoder: CompiledModel
    text_encoder_2: CompiledModel
    vae: CompiledModel

    def init_remaining_components(self) -> None:
        super().init_remaining_components()
        transformer, vae = self.transformer.spec, self.vae.spec
        check_named("dims", self.artifact.manifest.dims, ("height", "width", "batch", "text_tokens"))
        check_named("tokenizers", self.tokenizers, ("tokenizer", "tokenizer_2"))
        self.axes_dims = config_numbers(transformer, "axes_dims_rope", _AXES_DIMS)
        self.embeds_width = config_number(transformer, "joint_attention_dim")
        self.pooled_width = config_number(transformer, "pooled_projection_dim")
        self.latent_channels = config_number(vae, "latent_channels")
        self.vae_scale = 2 ** (len(config_numbers(vae, "block_out_channels")) - 1)
        channels = config_number(transformer, "in_channels")
        self.pack = math.isqrt(channels // self.latent_channels)
        if self.pack**2 * self.latent_channels != channels:
            raise ArtifactError(
                f"transformer takes {channels} channels, expected a square number of times the VAE's {self.latent_channels}; "
                "export the artifact again"
            )
        self.clip_tokens = _fixed_tokens(self.text_encoder.spec)
        longest = self.tokenizers["tokenizer"].max_length
        if longest > self.clip_tokens:
            raise ArtifactError(
                f"tokenizer gives {longest} tokens, text_encoder takes {self.clip_tokens}; export the artifact again"
            )

    def size(self, height: int, width: int) -> Size:
        dims, step = self.artifact.manifest.dims, self.vae_scale * self.pack
        check_dim(height, dims["height"], "height", "--height")
        check_dim(width, dims["width"], "width", "--width")
        tokens = (height // step) * (width // step)
        return Size(height, width, tokens, height // self.vae_scale, width // self.vae_scale)

    def noise(self, seed: int | list[int], rows: int, size: Size) -> Array:
        shape = (self.latent_channels, size.latent_h, size.latent_w)
        if isinstance(seed, list):
            return self._packed(np.stack([Generator(one).normal(shape) for one in seed]))
        return self._packed(Generator(seed).normal((rows, *shape)))

    def text(self, context: Any, guided: bool, note: Callable[[str], None]) -> Text:
        for side in ("", "negative_"):
            _check_fields(context, side)
        length = self._text_tokens(context)
        positive, record = self._branch(context, "", None, length, note)
        prompts = len(next(iter((positive.tokens or positive.embeds).values())))
        branches = [positive]
        if guided and self._has_negative(context):
            negative, said = self._branch(context, "negative_", prompts, length, note)
            branches.append(negative)
            record |= said
        else:
            self._check_idle(context)
        return Text(prompts, length, tuple(branches), record)

    def positions(self, context: Any, size: Size, text_tokens: int) -> Mapping[str, Array]:
        axes, step = len(self.axes_dims), self.vae_scale * self.pack
        text_ids, image_ids = getattr(context, "text_ids", None), getattr(context, "latent_image_ids", None)
        if text_ids is None:
            text_ids = np.zeros((text_tokens, axes), np.float32)
        if image_ids is None:
            image_ids = raster_ids(size.height // step, size.width // step, axes)
        return {
            "text_rotary": self._rotary(text_ids, "text_ids", text_tokens),
            "image_rotary": self._rotary(image_ids, "latent_image_ids", size.image_tokens),
        }

    def encode(self, tokens: Mapping[str, Array]) -> dict[str, Array]:
        pooled = self.text_encoder.model({"input_ids": tokens["tokenizer"]})["pooled_projections"]
        embeds = self.text_encoder_2.model({"input_ids": tokens["tokenizer_2"]})["prompt_embeds"]
        return {"pooled_projections": pooled, "encoder_hidden_states": embeds}

    def feed(self, request: PreparedRequest, embeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        pooled = embeds["pooled_projections"]
        steps, rows = len(request.schedule), len(pooled)
        times = request.schedule.timesteps / _TIMESTEP_UNIT
        by_step = {
            "timestep": np.broadcast_to(times[:, None], (steps, rows)),
            "pooled_projections": np.broadcast_to(pooled, (steps, *pooled.shape)),
        }
        if self.has_guidance_embedding:
            by_step["guidance"] = np.full((steps, rows), request.guidance_scale, np.float32)
        return {"encoder_hidden_states": embeds["encoder_hidden_states"], **request.positions}, by_step

    def decode(self, latents: Array, size: Size) -> Array:
        rows, _, channels = latents.shape
        high, wide = size.latent_h // self.pack, size.latent_w // self.pack
        grid = latents.reshape(rows, high, wide, channels // self.pack**2, self.pack, self.pack)
        unpacked = grid.transpose(0, 3, 1, 4, 2, 5).reshape(rows, -1, size.latent_h, size.latent_w)
        return self.vae.model({"latents": unpacked}, {"height": size.height, "width": size.width})["image"]

    def _packed(self, latents: Array) -> Array:
        """[rows, channels, latent_h, latent_w] → [rows, image_tokens, channels · pack²]: a token is a patch, by channels."""
        rows, channels, height, width = latents.shape
        grid = latents.reshape(rows, channels, height // self.pack, self.pack, width // self.pack, self.pack)
        return np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3, 5)).reshape(rows, -1, channels * self.pack**2)

    def _rotary(self, ids: Any, name: str, tokens: int) -> Array:
        checked = check_array(ids, name, (tokens, len(self.axes_dims)), np.float32, "tokens axes")
        return rotary_table(checked, self.axes_dims, _THETA)

    def _text_tokens(self, context: Any) -> int:
        """Text tokens of this request: as given tokens or embeddings have them, else max_sequence_length."""
        asked = getattr(context, "max_sequence_length", None)
        dim = self.artifact.manifest.dims["text_tokens"]
        for name in ("tokens_2", "prompt_embeds"):
            given = getattr(context, name, None)
            if given is not None and np.ndim(given) > 1:
                length = int(np.shape(given)[1])
                if asked not in (None, length):
                    raise RequestError(f"max_sequence_length={asked}, but {name} have {length} text tokens; give one of them")
                return check_dim(length, dim, f"text tokens of {name}", "--max-sequence-length")
        length = self._ask("max_sequence_length", context)
        wanted = dim.opt if length is None else check_count(length, "max_sequence_length")
        return check_dim(wanted, dim, "max_sequence_length", "--max-sequence-length")

    def _has_negative(self, context: Any) -> bool:
        names = ("negative_tokens", "negative_prompt_embeds", "negative_prompt")
        return any(getattr(context, name, None) is not None for name in names) or self._default_negative is not None

    @property
    def _default_negative(self) -> Any:
        return self.artifact.manifest.defaults.get("negative_prompt")

    def _branch(
        self, context: Any, side: str, prompts: int | None, length: int, note: Callable[[str], None]
    ) -> tuple[Branch, dict[str, Any]]:
        """One side of the guidance. side: "" or "negative_", before every field's name. prompts: how many, if known."""
        prompt, tokens, embeds = (getattr(context, f"{side}{name}", None) for name in ("prompt", "tokens", "prompt_embeds"))
        if embeds is not None:
            return self._given_embeds(context, side, prompts, length), {f"{side}prompt": None}
        if tokens is not None:
            return self._given_tokens(context, side, prompts, length), {f"{side}prompt": prompt}
        if prompt is None and side:
            prompt = self._default_negative
        if prompt is None:
            raise RequestError("prompt: got none; give prompt, or prompt_embeds with pooled_prompt_embeds")
        first = check_texts(prompt, f"{side}prompt", prompts)
        given = _text_or_none(context, f"{side}prompt_2")
        second = first if given is None else check_texts(given, f"{side}prompt_2", len(first))
        ids = {
            "tokenizer": self._clip_padded(self._encoded("tokenizer", first, None, note)),
            "tokenizer_2": self._encoded("tokenizer_2", second, length, note),
        }
        return Branch(tokens=ids), {f"{side}prompt": first, f"{side}prompt_2": None if given is None else second}

    def _encoded(self, tokenizer: str, texts: list[str], length: int | None, note: Callable[[str], None]) -> Array:
        seen: set[Dropped] = set()

        def report(dropped: Dropped) -> None:
            if dropped not in seen:
                seen.add(dropped)
                note(str(dropped))

        return self.tokenizers[tokenizer].encode(texts, length, report)

    def _clip_padded(self, ids: Array) -> Array:
        """Padding after the end token changes nothing: CLIP's attention is causal and its pooled output stands at that token."""
        missing = self.clip_tokens - ids.shape[1]
        if missing == 0:
            return ids
        return np.pad(ids, ((0, 0), (0, missing)), constant_values=self.tokenizers["tokenizer"].pad_token_id)

    def _check_idle(self, context: Any) -> None:
        """Negative fields where guidance is off: ignored, as in diffusers, but they must be what they are called."""
        prompt, second = (_text_or_none(context, name) for name in ("negative_prompt", "negative_prompt_2"))
        if prompt is not None:
            check_texts(prompt, "negative_prompt")
        if second is not None:
            check_texts(second, "negative_prompt_2")
            if not self._has_negative(context):
                raise RequestError("negative_prompt_2 without negative_prompt: alone it acts at no scale; give both, or neither")
        if getattr(context, "negative_tokens", None) is not None:
            self._given_tokens(context, "negative_", None, None)
        if getattr(context, "negative_prompt_embeds", None) is not None:
            self._given_embeds(context, "negative_", None, None)

    def _given_tokens(self, context: Any, side: str, prompts: int | None, length: int | None) -> Branch:
        first, second = getattr(context, f"{side}tokens"), getattr(context, f"{side}tokens_2")
        first = check_array(first, f"{side}tokens", (prompts, self.clip_tokens), np.int64, "prompts tokens")
        second = check_array(second, f"{side}tokens_2", (len(first), length), np.int64, "prompts tokens")
        _check_vocabulary(first, f"{side}tokens", self.text_encoder)
        _check_vocabulary(second, f"{side}tokens_2", self.text_encoder_2)
        return Branch(tokens={"tokenizer": first, "tokenizer_2": second})

    def _given_embeds(self, context: Any, side: str, prompts: int | None, length: int | None) -> Branch:
        name, pooled_name = f"{side}prompt_embeds", f"{side}pooled_prompt_embeds"
        pooled = getattr(context, pooled_name)
        shape = (prompts, length, self.embeds_width)
        embeds = check_array(getattr(context, name), name, shape, np.float32, "prompts text_tokens dim")
        pooled = check_array(pooled, pooled_name, (len(embeds), self.pooled_width), np.float32, "prompts dim")
        return Branch(embeds={"encoder_hidden_states": embeds, "pooled_projections": pooled})


def _fixed_tokens(encoder: ComponentSpec) -> int:
    """The number of tokens that an encoder's graph takes. Raises ArtifactError where it takes any."""
    inputs = encoder.graphs["model"].inputs
    if len(inputs) != 1 or len(inputs[0].shape) != 2 or not isinstance(inputs[0].shape[1], int):
        raise ArtifactError(
            f"{encoder.name} takes {[f'{t.name}: {t}' for t in inputs]}, expected one input of a fixed number of tokens; "
            "export the artifact again"
        )
    return inputs[0].shape[1]


_PARTNERS = (
    ("tokens", "tokens_2", "both encoders need theirs"),
    ("prompt_embeds", "pooled_prompt_embeds", "the transformer needs both"),
)
_TEXT_FIELDS = ("prompt", "prompt_2", *(name for one, other, _ in _PARTNERS for name in (one, other)))
# Built once: names made anew in each request would fill Python's cache of looked-up attributes.
_FIELDS = {side: {name: f"{side}{name}" for name in _TEXT_FIELDS} for side in ("", "negative_")}


def _check_fields(context: Any, side: str) -> None:
    """Raise RequestError for fields of one side that say the same thing twice, or that lack the one they act with."""
    given = {name for name, field in _FIELDS[side].items() if getattr(context, field, None) is not None}
    for name in ("prompt", "prompt_2", "tokens"):
        if {name, "prompt_embeds"} <= given:
            raise RequestError(f"{side}{name} and {side}prompt_embeds say the same thing twice; give one of them")
    for one, other, why in _PARTNERS:
        for name, partner in ((one, other), (other, one)):
            if name in given and partner not in given:
                raise RequestError(f"{side}{name} without {side}{partner}: {why}")


def _text_or_none(context: Any, name: str) -> Any:
    """A text field; an empty one is as good as none, as in diffusers."""
    value = getattr(context, name, None)
    return None if isinstance(value, str | list | tuple) and not value else value


def _check_vocabulary(ids: Array, name: str, encoder: CompiledModel) -> None:
    size = config_number(encoder.spec, "vocab_size")
    wrong = ids[(ids < 0) | (ids >= size)]
    if len(wrong):
        raise RequestError(
            f"{name}: got the id {wrong[0]}, expected ids from 0 to {size - 1}, the vocabulary of {encoder.spec.name}"
        )
