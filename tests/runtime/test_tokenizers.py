"""Ids equal to those of transformers, called as FluxPipeline calls it, on awkward strings."""

from __future__ import annotations

import json
import random
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

from vitrify.engine.errors import ArtifactError, RequestError
from vitrify.runtime.tokenizers import Dropped, Tokenizer

SAMPLE = Path(__file__).parents[2] / "examples" / "emoji_flux"

WRITTEN = [
    "", " ", "   ", "\n", "\t\r\n", "a", "A", "red apple", "RED APPLE", "Red Apple", "red  apple", " red apple ",
    "red\napple", "red\tapple", "red\u00a0apple", "red\u3000apple", "red\u200bapple", "red\u2028apple",
    "\ufeffred apple", "red\x00apple", "\x01\x02\x03", "\x7f", "\x1b[31mred", "🍎", "🍎🍎🍎", "👨‍👩‍👧‍👦", "🏳️‍🌈",
    "👍🏽", "red 🍎 apple", "🇩🇪🇫🇷", "❤️", "♥", "\u2764", "café", "cafe\u0301", "Å", "A\u030a", "Å\u0301\u0302\u0303",
    "ﬁne", "①②③", "Ⅻ", "ｆｕｌｌｗｉｄｔｈ", "ß", "ẞ", "İstanbul", "ıI", "ǅ", "Σίσυφος", "ſ", "שלום עולם",
    "مرحبا بالعالم", "\u202eabc\u202c", "abc שלום 123", "你好，世界", "こんにちは", "カタカナ", "한국어", "ไทย",
    "हिन्दी", "தமிழ்", "русский", "Ελληνικά", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𝟘𝟙", "\U0001f9ff", "\U0010ffff", "\ue000", "\ufffd",
    "\ufffe", "z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢", "¯\\_(ツ)_/¯", "<|endoftext|>", "<|startoftext|>", "</s>", "<pad>",
    "<unk>", "a<|endoftext|>b", "a <|endoftext|> b", "<|endoftext|><|endoftext|>", "</s></s>", "red</s>apple",
    "red </s> apple", "<PAD>", "<|ENDOFTEXT|>", "<|endoftext|", "< / s >", "<extra_id_0>", "<s>", "▁", "▁red",
    "red▁apple", "</w>", "apple</w>", "it's", "we're, they'll I'd you've I'm don't", "'s", "IT'S", "''''",
    "\"quoted\"", "a.b.c", "...", "!!!", "a,b;c:d", "1234567890", "3.14159", "1e-5", "1,000", "a-b_c",
    "snake_case_word", "camelCaseWord", "http://example.com/?q=a&b=c#d", "user@example.com", "C:\\path\\file",
    "/usr/bin", "{'a': [1, 2]}", "<b>bold</b>", "&amp; &lt;", "\\n", "%s %d", "$100", "€5", "100%", "#tag", "@name",
    "a+b=c", "x²", "½", "√2", "∀x∈ℝ", "→", "™®©", "— – -", "“curly” ‘quotes’", "…", "a" * 5, "a" * 100, "ab " * 50,
    "red apple " * 40, "🍎" * 40, "</s> " * 30, "<|endoftext|>" * 40, " " * 100, "\n" * 50, "." * 100, "x" * 5000,
    "word " * 2000, "red apple" + " " * 60 + "cat",
    "cat face, pizza, rocket, tiger face, Hamburger, soccer ball, blue heart, penguin, red apple",
    "a b c d e f g h i j k l m", "a b c d e f g h i j k l m n", "a b c d e f g h i j k l m n o",
    "a b c d e f g h i j k l m n o p", "supercalifragilisticexpialidocious",
    "Pneumonoultramicroscopicsilicovolcanoconiosis", "the quick brown fox jumps over the lazy dog",
]  # fmt: skip


def generated() -> Iterator[str]:
    """Random mixtures: letters of many scripts, marks, spaces, controls, special tokens; the same in every run."""
    draw = random.Random(20)
    assigned = [chr(c) for c in range(0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    words = [
        "red",
        "apple",
        "Cat",
        "</s>",
        "<pad>",
        "<|endoftext|>",
        "<|startoftext|>",
        "🍎",
        " ",
        "  ",
        "\n",
        "\u0301",
        "'s",
        "42",
    ]
    for _ in range(120):
        pieces = [draw.choice(words) if draw.random() < 0.5 else draw.choice(assigned) for _ in range(draw.randrange(1, 40))]
        yield draw.choice(["", " "]).join(pieces)


STRINGS = list(dict.fromkeys([*WRITTEN, *generated()]))


@dataclass(frozen=True)
class Spec:
    name: str
    max_length: int
    pad_token_id: int


def serialised(reference: Any) -> str:
    """What export writes."""
    text: str = reference.backend_tokenizer.to_str()
    return text


@pytest.fixture(scope="module", params=["tokenizer", "tokenizer_2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    name = request.param
    reference = (CLIPTokenizer if name == "tokenizer" else T5Tokenizer).from_pretrained(SAMPLE / name)
    path = tmp_path_factory.mktemp(name) / "tokenizer.json"
    path.write_text(serialised(reference), encoding="utf-8")
    return Tokenizer.open(path, Spec(name, reference.model_max_length, reference.pad_token_id)), reference  # type: ignore[arg-type]


def test_there_are_enough_strings() -> None:
    assert len(STRINGS) >= 200


@pytest.mark.parametrize("max_length", [3, 16, 32, 77, 512])
def test_ids_equal_those_of_transformers(pair: tuple[Tokenizer, Any], max_length: int) -> None:
    ours, theirs = pair
    expected = theirs(STRINGS, padding="max_length", max_length=max_length, truncation=True, return_tensors="np").input_ids
    got = ours.encode(STRINGS, max_length)
    assert got.dtype == np.int64
    different = [text for text, a, b in zip(STRINGS, got, expected, strict=True) if not np.array_equal(a, b)]
    assert different == []


def test_model_max_length_is_the_default(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    expected = theirs(
        STRINGS, padding="max_length", max_length=theirs.model_max_length, truncation=True, return_tensors="np"
    ).input_ids
    np.testing.assert_array_equal(ours.encode(STRINGS), expected)


def test_strings_are_told_apart(pair: tuple[Tokenizer, Any]) -> None:
    """The comparison can fail: most strings have ids of their own."""
    assert len({row.tobytes() for row in pair[0].encode(STRINGS, 77)}) > len(STRINGS) / 2


def test_dropped_text_is_the_end_of_the_prompt(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer = pair[0]
    prompt = "red apple, Green Apple, blue heart, cat face, tiger face, pizza slice"
    full = tokenizer.encode([prompt], 77)[0]
    used = int((full != tokenizer.pad_token_id).sum()) + (tokenizer.name == "tokenizer")  # CLIP's end token is its pad token
    dropped: list[Dropped] = []
    tokenizer.encode([prompt], used, dropped.append)
    assert dropped == []
    ids = tokenizer.encode([prompt], used - 3, dropped.append)[0]
    assert len(dropped) == 1
    report = dropped[0]
    assert (report.tokens, report.max_length) == (used, used - 3)
    assert prompt.endswith(report.text)
    assert 0 < len(report.text) < len(prompt)
    kept = tokenizer.encode([prompt[: len(prompt) - len(report.text)]], 77)[0]
    spaces = 1 if tokenizer.name == "tokenizer_2" else 0  # the space before the dropped word may be a token of its own
    assert np.array_equal(kept[: used - 4 - spaces], ids[: used - 4 - spaces])
    assert kept[used - 3] == tokenizer.pad_token_id
    assert repr(report.text) in str(report)
    assert f"{used} tokens, {used - 3} fit" in str(report)


def test_padding_in_the_file_is_ignored(pair: tuple[Tokenizer, Any]) -> None:
    """The sample's files carry the lengths they were saved with."""
    assert json.loads(serialised(pair[1]))["padding"] is not None
    assert pair[0].encode(["a"], 40).shape == (1, 40)


def test_no_texts(pair: tuple[Tokenizer, Any]) -> None:
    assert pair[0].encode([], 16).shape == (0, 16)


def test_threads_share_a_tokenizer(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer = pair[0]
    expected = {n: tokenizer.encode(STRINGS[:60], n) for n in (5, 16, 77)}
    wrong: list[int] = []

    def work(length: int) -> None:
        for _ in range(5):
            if not np.array_equal(tokenizer.encode(STRINGS[:60], length), expected[length]):
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(n,)) for n in (5, 16, 77)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("text", [None, 3, b"red", ["red"], "lone \ud800 surrogate"])
def test_what_is_not_a_text(pair: tuple[Tokenizer, Any], text: Any) -> None:
    with pytest.raises(RequestError, match=pair[0].name):
        pair[0].encode([text])


@pytest.mark.parametrize("max_length", [0, 1, -4])
def test_no_room_for_special_tokens(pair: tuple[Tokenizer, Any], max_length: int) -> None:
    with pytest.raises(RequestError, match=f"max_length={max_length}"):
        pair[0].encode(["a"], max_length)


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"version": "9"}', "[" * 2000])
def test_damaged_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Tokenizer.open(path, Spec("tokenizer", 16, 0))  # type: ignore[arg-type]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent"):
        Tokenizer.open(tmp_path / "absent.json", Spec("tokenizer", 16, 0))  # type: ignore[arg-type]


def test_padding_on_the_left_is_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(SAMPLE / "tokenizer" / "tokenizer.json"))
    backend.enable_padding(direction="left", length=8)
    path = tmp_path / "tokenizer.json"
    path.write_text(backend.to_str())
    with pytest.raises(ArtifactError, match="padding on the left"):
        Tokenizer.open(path, Spec("tokenizer", 16, 0))  # type: ignore[arg-type]
