"""Which files hold a component's weights: one answer for whoever compiles a folder and whoever runs it.

File names follow diffusers 0.42 (`_add_variant`, its index and its legacy index) and transformers 5 (`_add_variant`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vitrify.engine.artifact.canonical import parse
from vitrify.engine.errors import ArtifactError

__all__ = ["find_weights", "select_files", "stems", "weight_map"]

_DIFFUSERS_STEM, _TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
_MAX_INDEX_BYTES = 64 * 2**20
_FILE = re.compile(r"(?P<stem>[^.]+?)(?:-\d{5}-of-\d{5})?(?:\.(?P<variant>[^.]+?))?(?:-\d{5}-of-\d{5})?\.safetensors")


def stems(library: str) -> tuple[str, str]:
    """The first parts of weight files' names, the library's own before the other's."""
    found = (_DIFFUSERS_STEM, _TRANSFORMERS_STEM)
    return found[::-1] if library == "transformers" else found


def find_weights(folder: Path, library: str, variant: str | None = None) -> Path | None:
    """The safetensors file or the index of shards that `library` would load from `folder`; None if there is neither.

    variant: of the files, as in diffusers ("fp16"); None: of none.
    """
    return next((path for name in _candidates(library, variant) if (path := folder / name).is_file()), None)


def weight_map(index: Path) -> dict[str, str]:
    """Tensor → name of the file beside `index`. Raises ArtifactError naming what is damaged, or a file that is missing."""
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ArtifactError(f"{index}: larger than {_MAX_INDEX_BYTES} bytes, which no index is")
        fields = parse(index.read_bytes(), str(index))
    except OSError as error:
        raise ArtifactError(f"{index}: cannot be read: {error.strerror}") from error
    found = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ArtifactError(f"{index}: no weight_map of tensor to file; download the index again")
    files = sorted(set(found.values()))
    for name in files:
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ArtifactError(f"{index}: shard {name[:120]!r} is no plain file name; download the index again")
        if not (index.parent / name).is_file():
            raise ArtifactError(
                f"{index.parent / name}: missing; {index.name} names it ({len(files)} shards): copy the whole pipeline folder"
            )
    return found


def select_files(folder: Path, variant: str | None = None, library: str = "diffusers") -> list[Path]:
    """The safetensors files of the component in `folder`, by name; [] if there are none.

    What `library` would load where the files have its names: the shards of an index, or the single file. Else all files of this
    `variant` (None: of none), named as stem, variant and shard (`.fp16`, `-00001-of-00002`) in either order.
    Raises ArtifactError for a damaged index.
    """
    found = find_weights(folder, library, variant)
    if found is not None:
        names = sorted(set(weight_map(found).values())) if found.suffix == ".json" else [found.name]
        return [folder / name for name in names]
    matches = ((path, _FILE.fullmatch(path.name)) for path in sorted(folder.glob("*.safetensors")))
    return [path for path, match in matches if match is not None and match["variant"] == variant]


def _candidates(library: str, variant: str | None) -> Iterator[str]:
    """File names in the order of preference: transformers takes a single file before an index, diffusers the other way."""
    for stem in stems(library):
        if variant is None:
            single, indices = f"{stem}.safetensors", [f"{stem}.safetensors.index.json"]
        else:
            single = f"{stem}.{variant}.safetensors"
            indices = [
                f"{stem}.safetensors.index.{variant}.json",
                # The legacy form of diffusers, and what huggingface_hub's own splitter writes.
                f"{stem}.safetensors.{variant}.index.json",
                f"{stem}.{variant}.safetensors.index.json",
            ]
        yield from (single, *indices) if library == "transformers" else (*indices, single)
