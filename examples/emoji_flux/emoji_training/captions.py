"""The words a picture is trained with: its name, an alias, its category, in any case, or nothing."""

from __future__ import annotations

import numpy as np

from emoji_training.pictures import Vocables

__all__ = ["CASES", "caption", "spellings"]

EMPTY_SHARE = 0.10
NAME_SHARE = 0.75
CATEGORY_SHARE = 0.15

CASES = (str.lower, str.capitalize, str.title, str.upper)


def caption(words: Vocables, rng: np.random.Generator) -> str:
    """One random caption; empty in 10 % of draws, so that the model also learns what true CFG subtracts."""
    if rng.random() < EMPTY_SHARE:
        return ""
    text = words.name if rng.random() < NAME_SHARE else words.aliases[rng.integers(len(words.aliases))]
    if rng.random() < CATEGORY_SHARE:
        text = f"{text}, {words.categories[rng.integers(len(words.categories))]}"
    return CASES[rng.integers(len(CASES))](text)


def spellings(vocables: list[Vocables]) -> list[str]:
    """What tokenizers are trained on: every name, alias and category in every case."""
    texts = [text for words in vocables for text in (words.name, *words.aliases, *words.categories)]
    return [case(text) for text in texts for case in CASES]
