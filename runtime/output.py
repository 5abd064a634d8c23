"""Images out: the contract's array, what a user gets, and PNG files that say how they were made."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.artifact import disk
from vitrify.engine.errors import BackendError, RequestError, SpecError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrify.runtime.caching.summary import CacheReport

__all__ = ["OUTPUT_TYPES", "DiffusionPipelineOutput", "NotFiniteError", "Result", "check_output_type", "pictures", "to_uint8"]

OUTPUT_TYPES = ("pil", "np", "uint8", "latent")

_CHANNELS = 3


class NotFiniteError(BackendError):
    """A request's latents or images are NaN or infinite."""


@dataclass(frozen=True)
class DiffusionPipelineOutput:
    """What a pipeline's `execute` returns. images: [batch, height, width, 3] uint8 (else SpecError)."""

    images: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        images = self.images
        if not isinstance(images, np.ndarray):
            raise SpecError(f"images: got {type(images).__name__}, expected a numpy array [batch, height, width, 3] uint8")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != _CHANNELS:
            raise SpecError(f"images: got {images.dtype}{list(images.shape)}, expected uint8[batch, height, width, 3]")


@dataclass(frozen=True)
class Result:
    """What a call of a compiled pipeline returns.

    images: "pil": a list of PIL images; "np": [rows, height, width, 3] float32 from 0 to 1; "uint8": the same in
        uint8; "latent": [rows, image_tokens, channels] float32, packed.
    seed: what the noise was drawn from, also when nobody set it; one number or one a row; None for given latents.
    settings: every setting as it was used, plain JSON data. timings: phase → seconds.
    warnings: what was done otherwise than asked, e.g. the end of a prompt that did not fit.
    cache: what the step cache did; None when it is off.
    """

    images: Any
    seed: int | list[int] | None
    settings: Mapping[str, Any]
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cache: CacheReport | None = None

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the images as PNG files with prompt, seed and settings in their metadata; returns where they are.

        One image goes to `path`, several to `name-1.png`, `name-2.png`, …; an existing file is replaced at once or not at all.
        Raises RequestError for "np" and "latent" results and for a name that does not end in .png.
        """
        target = Path(path)
        if target.suffix.lower() != ".png":
            raise RequestError(f"output {target}: got suffix {target.suffix!r}, expected .png")
        rows = pictures(self.images) if isinstance(self.images, np.ndarray) else self.images
        paths = [target] if len(rows) == 1 else [target.with_stem(f"{target.stem}-{i + 1}") for i in range(len(rows))]
        for i, (image, destination) in enumerate(zip(rows, paths, strict=True)):
            _write_png(image, destination, self.metadata(i))
        return paths

    def metadata(self, row: int) -> dict[str, str]:
        """The text chunks of one image's PNG: prompt (if there was one), seed, settings (JSON)."""
        per_prompt = int(self.settings.get("num_images_per_prompt") or 1)
        prompts = self.settings.get("prompt")
        text = {"settings": json.dumps({**self.settings, "row": row}, ensure_ascii=False, sort_keys=True)}
        if prompts:
            text["prompt"] = prompts[row // per_prompt]
        if self.seed is not None:
            text["seed"] = str(self.seed[row] if isinstance(self.seed, list) else self.seed)
        return text


def check_output_type(output_type: Any) -> str:
    """`output_type` if there is such a one. Raises RequestError listing them."""
    if output_type not in OUTPUT_TYPES:
        raise RequestError(f"output_type={output_type!r} is unknown; known: {', '.join(OUTPUT_TYPES)}")
    return str(output_type)


def to_uint8(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """[...] float32 from 0 to 1 → 0..255, rounded half to even, as diffusers does."""
    return (images * np.float32(255)).round().astype(np.uint8)


def pictures(images: npt.NDArray[Any]) -> list[Image]:
    """[batch, height, width, 3] uint8 → PIL images. Raises RequestError for another array."""
    from PIL import Image

    if images.dtype != np.uint8 or images.ndim != 4:
        raise RequestError(f"images: got {images.dtype}{list(images.shape)}; files need output_type 'pil' or 'uint8'")
    return [Image.fromarray(image) for image in images]


def _write_png(image: Image, path: Path, text: Mapping[str, str]) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)  # Latin-1 goes to tEXt, the rest to iTXt
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=info)
    try:
        disk.replace_file(path, encoded.getbuffer())
    except OSError as error:
        raise RequestError(f"output {path} cannot be written: {error.strerror}") from error
