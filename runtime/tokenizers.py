"""Prompts to token ids, by the tokenizer that diffusers really loaded, serialised at export.

The ids equal those of transformers' `tokenizer(prompts, padding="max_length", truncation=True, max_length=n)`.
The serialised tokenizer is never changed after it was opened, so that requests in several threads can share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from numpy.typing import NDArray

from vitrify.engine.errors import ArtifactError, RequestError

if TYPE_CHECKING:
    from vitrify.engine.artifact import TokenizerSpec

__all__ = ["Dropped", "Tokenizer"]


@dataclass(frozen=True)
class Dropped:
    """The end of a prompt that did not fit. tokens and max_length count the special tokens too."""

    tokenizer: str
    tokens: int
    max_length: int
    text: str

    def __str__(self) -> str:
        return f"prompt too long for {self.tokenizer}: {self.tokens} tokens, {self.max_length} fit; dropped: {self.text!r}"


class Tokenizer:
    """One of an artifact's tokenizers.

    name: as in the source's model_index.json. max_length: the tokens of one prompt unless `encode` is told another
    number. pad_token_id: what fills up short prompts, at their end.
    """

    def __init__(self, name: str, backend: tokenizers.Tokenizer, max_length: int, pad_token_id: int) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.name = name
        self.max_length = max_length
        self.pad_token_id = pad_token_id
        self._backend = backend
        self._special = int(backend.num_special_tokens_to_add(False))

    @classmethod
    def open(cls, path: Path, spec: TokenizerSpec) -> Tokenizer:
        """The tokenizer in `path`, a tokenizer.json. Raises ArtifactError if it cannot be read or pads at the start."""
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(f"{path}: not a tokenizer that tokenizers {tokenizers.__version__} reads: {error}") from error
        for kind, options in (("padding", backend.padding), ("truncation", backend.truncation)):
            side = "right" if options is None else options["direction"]
            if side != "right":
                raise ArtifactError(f"{path}: {kind} on the {side}, expected on the right; export the artifact again")
        return cls(spec.name, backend, spec.max_length, spec.pad_token_id)

    def encode(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        on_dropped: Callable[[Dropped], None] | None = None,
    ) -> NDArray[np.int64]:
        """Token ids `[len(texts), max_length] int64`, special tokens included, padded at the end.

        A longer text loses its end, not its closing special token; `on_dropped` is told of each.
        Raises RequestError for what is not a text and for a max_length without room for the special tokens.
        """
        length = self.max_length if max_length is None else max_length
        if length <= self._special:
            raise RequestError(f"{self.name}: max_length={length}, expected more than its {self._special} special tokens")
        ids = np.full((len(texts), length), self.pad_token_id, dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            kept = self._encode_one(text, length, on_dropped)
            row[: len(kept)] = kept
        return ids

    def _encode_one(self, text: str, length: int, on_dropped: Callable[[Dropped], None] | None) -> list[int]:
        if not isinstance(text, str):
            raise RequestError(f"{self.name}: got a prompt of type {type(text).__name__}, expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"{self.name}: prompt {text[:60]!r} is not valid Unicode: {error.reason}") from None
        encoding = self._backend.encode(text, add_special_tokens=False)
        room = length - self._special
        if len(encoding) > room:
            if on_dropped is not None:
                start = encoding.offsets[room][0]
                on_dropped(Dropped(self.name, len(encoding) + self._special, length, text[start:].strip()))
            encoding.truncate(room)
        ids: list[int] = self._backend.post_process(encoding).ids
        return ids
