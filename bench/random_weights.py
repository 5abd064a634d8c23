"""Random weights for a model that exists only as configuration, written shard by shard: memory stays at one chunk."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from vitrify.engine.session import Array

__all__ = ["write_random_weights"]

_CHUNK_ELEMENTS = 1 << 22
_SCORE_NORMS = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")
_BYTES = 2  # of a bfloat16
_OUTLIER = np.float32(20)


def write_random_weights(
    folder: Path,
    stem: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: int,
    outliers: float = 0.0,
    shard_bytes: int = 1 << 30,
) -> int:
    """Write bfloat16 tensors of `shapes` as `stem`.safetensors, or as shards with an index; returns the tensors' bytes.

    Scales keep activations at their size: 1/√fan-in for matrices and kernels, vectors around 1 in norms (2 where queries
    and keys are normalised) and around 0 as biases. A tensor's values depend on `seed`, its name and `outliers` alone.
    outliers: share of every matrix's output channels that are 20 times as large, drawn for each matrix.
    """
    shards = _sharded(shapes, shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    if len(shards) == 1:
        _write(folder / f"{stem}.safetensors", shards[0], seed, outliers)
        return _total(shapes)
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, seed, outliers)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": _total(shapes)}, "weight_map": dict(sorted(places.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return _total(shapes)


def _total(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(_BYTES * math.prod(shape) for shape in shapes.values())


def _sharded(shapes: Mapping[str, tuple[int, ...]], limit: int) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in sorted(shapes.items()):
        size = _BYTES * math.prod(shape)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, outliers: float) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            for chunk in _values(name, shape, seed, outliers):
                file.write(chunk.tobytes())


def _values(name: str, shape: tuple[int, ...], seed: int, outliers: float) -> Iterator[Array]:
    key = [seed, zlib.crc32(name.encode())]
    rng = np.random.default_rng(key)
    mean, spread = _scale(name, shape)
    factors = np.ones(shape[0], np.float32)
    if len(shape) == 2:
        factors[np.random.default_rng([*key, 1]).random(shape[0]) < outliers] = _OUTLIER
    row = math.prod(shape[1:])
    done, total = 0, math.prod(shape)
    while done < total:
        count = min(total - done, _CHUNK_ELEMENTS)
        drawn = rng.standard_normal(count, dtype=np.float32) * np.float32(spread) + np.float32(mean)
        if outliers:
            drawn *= factors[np.arange(done, done + count) // row]
        yield drawn.astype(ml_dtypes.bfloat16)
        done += count


def _scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation."""
    if len(shape) < 2:
        if name.endswith("bias"):
            return 0.0, 0.02
        # Scores of standard deviation 4: near 1 attention would be a plain mean over a thousand tokens, and text and
        # positions would hardly matter.
        return (2.0, 0.1) if name.endswith(_SCORE_NORMS) else (1.0, 0.1)
    if name.endswith(("embedding.weight", "shared.weight", "relative_attention_bias.weight")):
        return 0.0, 0.5
    spread = 1.0 / math.sqrt(math.prod(shape[1:]))
    # T5 leaves its scores unscaled: the query's weights carry the scale.
    return 0.0, spread / 6.0 if name.endswith("SelfAttention.q.weight") else spread
