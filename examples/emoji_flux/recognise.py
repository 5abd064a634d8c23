"""How often a picture is nearest to the emoji whose name it was drawn from.

`python examples/emoji_flux/recognise.py` draws 128 names with diffusers and prints both rates.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from emoji_training.folder import draw, load_pipeline
from emoji_training.package import check_package, fetch_package
from emoji_training.pictures import MODEL_FOLDER, SIZE_PX, Emoji, Pictures, read_emoji, renditions

__all__ = ["Gallery", "Recognition", "build_gallery", "load_gallery", "recognition_rate", "spread_names"]

COMPARED_PX = 16
FIRST_FEW = 5


@dataclass(frozen=True)
class Gallery:
    """Every emoji in every rendition, reduced for comparing: `looks` [names, 28, 768] float32 in 0..1."""

    names: tuple[str, ...]
    looks: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recognition:
    """Shares in 0..1: the right name is the nearest; it is among the nearest five names."""

    first: float
    among_five: float


def build_gallery(emoji: Sequence[Emoji]) -> Gallery:
    """The gallery of these emoji."""
    return Gallery(tuple(item.name for item in emoji), np.stack([_looks(renditions(item.picture)) for item in emoji]))


def load_gallery(package: Path | None = None) -> Gallery:
    """The gallery of the whole set, from an unpacked npm package or fetched. Raises PackageError if it cannot be had."""
    return build_gallery(read_emoji(check_package(package) if package else fetch_package()))


def recognition_rate(pictures: Pictures, names: Sequence[str], gallery: Gallery) -> Recognition:
    """Compare pictures [n, 64, 64, 3] uint8 with the gallery; picture i was drawn from `names[i]`, in any case.

    A name is as far away as its nearest rendition (Euclidean, over 16 × 16 RGB means). Raises ValueError on another shape
    or dtype, and on a name that the gallery does not hold.
    """
    if pictures.dtype != np.uint8 or pictures.shape != (len(names), SIZE_PX, SIZE_PX, 3):
        raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}, expected uint8 {(len(names), SIZE_PX, SIZE_PX, 3)}")
    index = {name: number for number, name in enumerate(gallery.names)}
    unknown = [name for name in names if name.lower() not in index]
    if unknown:
        raise ValueError(f"not in the gallery: {unknown[:5]}; names.txt lists the {len(index)} that are")
    ranks = np.array([_rank(look, index[name.lower()], gallery) for look, name in zip(_looks(pictures), names, strict=True)])
    return Recognition(float((ranks == 0).mean()), float((ranks < FIRST_FEW).mean()))


def _rank(look: npt.NDArray[np.float32], right: int, gallery: Gallery) -> int:
    """How many other names are nearer than the right one."""
    distances = np.square(gallery.looks - look).sum(axis=2).min(axis=1)
    return int((distances < distances[right]).sum())


def _looks(pictures: Pictures) -> npt.NDArray[np.float32]:
    """Means over 4 × 4 px: [n, 64, 64, 3] uint8 → [n, 768] float32 in 0..1."""
    edge = SIZE_PX // COMPARED_PX
    blocks = pictures.reshape(-1, COMPARED_PX, edge, COMPARED_PX, edge, 3).astype(np.float32) / 255
    looks: npt.NDArray[np.float32] = blocks.mean(axis=(2, 4)).reshape(len(pictures), -1)
    return looks


def spread_names(count: int, names: Sequence[str]) -> list[str]:
    """`count` of the names, evenly spread over the set."""
    return [names[index * len(names) // count] for index in range(count)]


def main() -> None:
    """Draw with diffusers and print both rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=MODEL_FOLDER, help="a diffusers folder (default: the shipped one)"
    )
    parser.add_argument("--data", type=Path, help="an unpacked emoji-datasource-google 16.0.0 (default: fetched by npm pack)")
    parser.add_argument("--count", type=int, default=128, help="how many names (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=2.0, help="true_cfg_scale (default: %(default)s)")
    options = parser.parse_args()
    gallery = load_gallery(options.data)
    names = spread_names(options.count, gallery.names)
    pictures = draw(load_pipeline(options.folder), names, range(len(names)), options.steps, options.guidance)
    rate = recognition_rate(pictures, names, gallery)
    print(f"right name first: {rate.first:.1%}; among the first five: {rate.among_five:.1%} ({len(names)} names)")


if __name__ == "__main__":
    main()
