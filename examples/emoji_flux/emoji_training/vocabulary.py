"""Both tokenizers, trained on the set's own words."""

from __future__ import annotations

import json
import string
from typing import Any

from tokenizers import trainers
from transformers import CLIPTokenizer, T5Tokenizer

from emoji_training.networks import CLIP_LENGTH, TextEncoder

__all__ = ["PRINTABLE", "train_tokenizers"]

PRINTABLE = sorted(set(string.printable) - set(string.whitespace))
WORD_END = "</w>"
CLIP_MERGED_SIZE = 2400
T5_SIZE = 4000
T5_SPECIALS = ("<pad>", "</s>", "<unk>")
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
# How far each printable character that never occurred is put below the least likely trained piece.
RARE_STEP = 1e-4


def train_tokenizers(texts: list[str]) -> TextEncoder:
    """A CLIP BPE and a T5 Unigram tokenizer for `texts`; every printable ASCII character is known to both.

    transformers drops a T5 tokenizer's normalizer on loading, so `texts` must hold all the cases that prompts may have.
    """
    return TextEncoder(_train_clip(texts), _train_t5(texts))


def _train_clip(texts: list[str]) -> Any:
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_MERGED_SIZE, initial_alphabet=PRINTABLE, end_of_word_suffix=WORD_END, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    known = set(pieces)
    pieces += [piece for piece in (*PRINTABLE, *(char + WORD_END for char in PRINTABLE)) if piece not in known]
    # FLUX's CLIP has its two special tokens last; the pooled output is read at the end-of-text token.
    pieces += CLIP_SPECIALS
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def _train_t5(texts: list[str]) -> Any:
    backend = T5Tokenizer(extra_ids=0).backend_tokenizer
    # Leave room for the characters that never occur and are appended below.
    room = T5_SIZE - len(set(PRINTABLE) - set("".join(texts)))
    trainer = trainers.UnigramTrainer(
        vocab_size=room, special_tokens=list(T5_SPECIALS), unk_token=T5_SPECIALS[2], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    vocab = [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
    known = {piece for piece, _ in vocab}
    lowest = min(score for _, score in vocab)
    missing = [char for char in PRINTABLE if char not in known]
    vocab += [(char, lowest - RARE_STEP * (number + 1)) for number, char in enumerate(missing)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
