"""Pictures in documents: PNG bytes and back, and how far two of them are apart."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitrify.engine.errors import SpecError
from vitrify.engine.session import Array

__all__ = ["PictureDifference", "from_png", "picture_difference", "to_png"]


@dataclass(frozen=True)
class PictureDifference:
    """worst: of one value, in levels of 255. mean: over all values, in levels."""

    worst: int
    mean: float


def to_png(picture: Array) -> bytes:
    """A PNG file of [height, width, 3] uint8."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def from_png(data: bytes) -> Array:
    """[height, width, 3] uint8. Raises SpecError for what is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SpecError(f"a picture of {len(data)} bytes cannot be read: {error}") from None


def picture_difference(left: bytes, right: bytes) -> PictureDifference | None:
    """How far two PNG files are apart; None where their sizes differ."""
    one, other = from_png(left).astype(np.int16), from_png(right).astype(np.int16)
    if one.shape != other.shape:
        return None
    apart = np.abs(one - other)
    return PictureDifference(int(apart.max(initial=0)), float(apart.mean()))
