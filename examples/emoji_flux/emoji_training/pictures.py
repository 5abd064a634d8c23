"""The emoji as pictures on white, and the 28 renditions of each that the denoiser learns."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from emoji_training.package import NAMES_FILE, SHEET_FILE

__all__ = [
    "EVALUATION_SHEET",
    "MODEL_FOLDER",
    "NAMES",
    "RENDITIONS",
    "SIZE_PX",
    "Emoji",
    "Pictures",
    "Rendition",
    "Vocables",
    "read_emoji",
    "read_evaluation_set",
    "read_vocables",
    "rendition_weights",
    "renditions",
    "write_evaluation_sheet",
]

Pictures = npt.NDArray[np.uint8]

MODEL_FOLDER = Path(__file__).resolve().parents[1]
NAMES = MODEL_FOLDER / "names.txt"
EVALUATION_SHEET = MODEL_FOLDER / "evaluation.png"

SIZE_PX = 64
CELL_PX = 66
CELL_BORDER_PX = 1
# One token of the denoiser covers 8 × 8 px: only places on this raster give latents that are shifted copies of each other.
RASTER_PX = 8
CATEGORIES = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Activities", "Objects", "Travel & Places")
SYMBOL_SUBCATEGORIES = ("geometric", "zodiac")
EVALUATION_COLUMNS = 8
EVALUATION_COUNT = 64
EVALUATION_STRIDE = 16
# Share of the training pictures at each size (px); all places and both mirrorings of a size are equally likely.
SIZE_WEIGHTS = {64: 0.25, 56: 0.35, 48: 0.40}


@dataclass(frozen=True)
class Vocables:
    """What one entry of the package is called: name and aliases in lower case, categories from wide to narrow."""

    name: str
    aliases: tuple[str, ...]
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Emoji:
    """One emoji of the set: its words, and `picture`, [64, 64, 3] uint8 on white."""

    words: Vocables
    picture: Pictures

    @property
    def name(self) -> str:
        """The name by which it is asked for, in lower case."""
        return self.words.name


@dataclass(frozen=True)
class Rendition:
    """A picture drawn `size` px large with its corner at (`left`, `top`), mirrored or not; `weight` is its share."""

    size: int
    left: int
    top: int
    mirrored: bool
    weight: float


def _rendition_table() -> tuple[Rendition, ...]:
    rows = []
    for size, share in SIZE_WEIGHTS.items():
        places = range(0, SIZE_PX - size + 1, RASTER_PX)
        corners = [(left, top) for top in places for left in places]
        for left, top in corners:
            for mirrored in (False, True):
                rows.append(Rendition(size, left, top, mirrored, share / (2 * len(corners))))
    return tuple(rows)


RENDITIONS = _rendition_table()


def rendition_weights() -> npt.NDArray[np.float64]:
    """The share of each of the 28 renditions in training: [28] float64, sum 1."""
    return np.array([rendition.weight for rendition in RENDITIONS])


def renditions(picture: Pictures) -> Pictures:
    """The picture [64, 64, 3] in every rendition of `RENDITIONS`, on white: [28, 64, 64, 3] uint8."""
    drawn = np.full((len(RENDITIONS), SIZE_PX, SIZE_PX, 3), 255, np.uint8)
    image = Image.fromarray(picture)
    scaled = {size: np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for size in SIZE_WEIGHTS}
    for target, rendition in zip(drawn, RENDITIONS, strict=True):
        source = scaled[rendition.size]
        if rendition.mirrored:
            source = source[:, ::-1]
        target[rendition.top : rendition.top + rendition.size, rendition.left : rendition.left + rendition.size] = source
    return drawn


def read_emoji(package: Path) -> list[Emoji]:
    """The 1,046 emoji of the set in the package's order; no people, flags, clocks or abstract symbols."""
    sheet = Image.open(package / SHEET_FILE).convert("RGBA")
    emoji = []
    for entry in _entries(package):
        if not _is_in_set(entry["category"], entry["subcategory"], entry["name"]):
            continue
        left = entry["sheet_x"] * CELL_PX + CELL_BORDER_PX
        top = entry["sheet_y"] * CELL_PX + CELL_BORDER_PX
        cell = sheet.crop((left, top, left + SIZE_PX, top + SIZE_PX))
        white = Image.new("RGBA", cell.size, (255, 255, 255, 255))
        emoji.append(Emoji(_vocables(entry), np.asarray(Image.alpha_composite(white, cell).convert("RGB"))))
    return emoji


def read_vocables(package: Path) -> list[Vocables]:
    """The words of every entry of the package, also of those whose pictures are not in the set."""
    return [_vocables(entry) for entry in _entries(package)]


def _entries(package: Path) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], json.loads((package / NAMES_FILE).read_text(encoding="utf-8")))


def _vocables(entry: dict[str, Any]) -> Vocables:
    aliases = tuple(re.sub("[_-]", " ", alias) for alias in entry["short_names"])
    return Vocables(entry["name"].lower(), aliases, (entry["category"], entry["subcategory"].replace("-", " ")))


def _is_in_set(category: str, subcategory: str, name: str) -> bool:
    if category == "Symbols":
        return subcategory in SYMBOL_SUBCATEGORIES
    return category in CATEGORIES and not (subcategory == "time" and "CLOCK" in name)


def write_evaluation_sheet(emoji: list[Emoji], path: Path) -> None:
    """Every 16th emoji, 64 of them, as one 512 × 512 PNG in reading order."""
    chosen = np.stack([item.picture for item in emoji[::EVALUATION_STRIDE][:EVALUATION_COUNT]])
    grid = chosen.reshape(-1, EVALUATION_COLUMNS, SIZE_PX, SIZE_PX, 3).swapaxes(1, 2)
    Image.fromarray(grid.reshape(-1, EVALUATION_COLUMNS * SIZE_PX, 3)).save(path, optimize=True)


def read_evaluation_set(sheet: Path = EVALUATION_SHEET, names: Path = NAMES) -> tuple[list[str], Pictures]:
    """The 64 names and pictures [64, 64, 64, 3] uint8 on which the loss is measured; needs no download."""
    chosen = names.read_text(encoding="utf-8").splitlines()[::EVALUATION_STRIDE][:EVALUATION_COUNT]
    grid = np.asarray(Image.open(sheet).convert("RGB"))
    rows = grid.reshape(-1, SIZE_PX, EVALUATION_COLUMNS, SIZE_PX, 3).swapaxes(1, 2)
    return chosen, np.ascontiguousarray(rows.reshape(-1, SIZE_PX, SIZE_PX, 3))
