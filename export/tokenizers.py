"""Tokenizers as diffusers really loads them, serialised for the runtime."""

from __future__ import annotations

import warnings

import transformers

from vitrify.engine.artifact import TokenizerSpec
from vitrify.engine.errors import CompileError
from vitrify.export.source import ComponentSource

__all__ = ["serialised_tokenizer"]


def serialised_tokenizer(source: ComponentSource, max_length: int) -> tuple[TokenizerSpec, bytes]:
    """A source's tokenizer, loaded as the class its pipeline names, as its spec and the bytes of its backend.

    transformers drops parts of a saved tokenizer.json when it loads one; what it then uses is what is written.
    Raises CompileError when it cannot be loaded, has no serialisable backend or takes fewer than `max_length` tokens.
    """
    name, class_name = source.name, source.class_name
    loader = getattr(transformers, class_name, None)
    if loader is None:
        raise CompileError(f"{name}: transformers has no tokenizer class {class_name!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = loader.from_pretrained(str(source.folder), local_files_only=True)
    except Exception as error:
        raise CompileError(f"{name} ({class_name}) cannot be loaded: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompileError(f"{name}: {class_name} has no serialisable backend; save it as a fast tokenizer (tokenizer.json)")
    if tokenizer.model_max_length < max_length:
        raise CompileError(f"{name}: takes {tokenizer.model_max_length} tokens at most, {max_length} were asked for")
    if tokenizer.pad_token is None:
        raise CompileError(f"{name}: {class_name} has no padding token")
    spec = TokenizerSpec(
        name=name,
        class_name=class_name,
        path=f"{name}/tokenizer.json",
        max_length=max_length,
        pad_token_id=int(tokenizer.pad_token_id),
        pad_token=str(tokenizer.pad_token),
    )
    return spec, backend.to_str().encode()
