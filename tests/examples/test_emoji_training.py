"""The recipe's parts, each against an identity or the library whose layout it must share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from emoji_training import package as package_module
from emoji_training.autoencoder import AutoencoderOptions, train_autoencoder
from emoji_training.captions import caption, spellings
from emoji_training.cli import main
from emoji_training.denoiser import DenoiserOptions, Latents, encode_renditions, split_parameters, train_denoiser
from emoji_training.folder import write_pipeline, write_tokenizers
from emoji_training.loss import evaluate_loss, sample_times
from emoji_training.networks import encode_pictures, fresh_denoiser, load_autoencoder, load_denoiser, load_tokenizers, pack
from emoji_training.package import PackageError, check_package, fetch_package
from emoji_training.pictures import (
    MODEL_FOLDER,
    RENDITIONS,
    Emoji,
    Vocables,
    read_evaluation_set,
    rendition_weights,
    renditions,
    write_evaluation_sheet,
)
from emoji_training.vocabulary import PRINTABLE, train_tokenizers
from recognise import build_gallery, recognition_rate, spread_names

# RMSNorm weights stay float32 under autocast: torch says that it takes the unfused path.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")


@pytest.fixture(scope="module")
def emoji() -> list[Emoji]:
    names, pictures = read_evaluation_set()
    return [
        Emoji(Vocables(name, (f"{name} alias",), ("Objects", "tool")), picture)
        for name, picture in zip(names, pictures, strict=True)
    ]


def quiet(_: str) -> None:
    """A report that nobody reads."""


# ---- pictures


def test_renditions_have_the_stated_shares() -> None:
    assert len(RENDITIONS) == 28
    assert rendition_weights().sum() == pytest.approx(1)
    shares = {size: sum(item.weight for item in RENDITIONS if item.size == size) for size in (64, 56, 48)}
    assert shares == pytest.approx({64: 0.25, 56: 0.35, 48: 0.40})


def test_renditions_are_moved_and_mirrored_copies_on_white(emoji: list[Emoji]) -> None:
    picture = emoji[5].picture
    drawn = renditions(picture)
    copies: dict[int, Any] = {64: picture}
    for image, rendition in zip(drawn, RENDITIONS, strict=True):
        assert rendition.left % 8 == rendition.top % 8 == 0
        inside = np.zeros((64, 64), bool)
        inside[rendition.top : rendition.top + rendition.size, rendition.left : rendition.left + rendition.size] = True
        assert (image[~inside] == 255).all()
        content = image[inside].reshape(rendition.size, rendition.size, 3)
        content = content[:, ::-1] if rendition.mirrored else content
        np.testing.assert_array_equal(content, copies.setdefault(rendition.size, content))


def test_evaluation_sheet_holds_every_sixteenth_emoji(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = [
        Emoji(Vocables(f"emoji {number}", (), ()), rng.integers(256, size=(64, 64, 3), dtype=np.uint8)) for number in range(1046)
    ]
    (tmp_path / "names.txt").write_text("".join(f"{item.name}\n" for item in made))
    write_evaluation_sheet(made, tmp_path / "sheet.png")
    names, pictures = read_evaluation_set(tmp_path / "sheet.png", tmp_path / "names.txt")
    assert names == [f"emoji {16 * number}" for number in range(64)]
    np.testing.assert_array_equal(pictures, np.stack([item.picture for item in made[: 64 * 16 : 16]]))


# ---- words


def test_captions_are_empty_in_a_tenth_and_come_in_every_case() -> None:
    words = Vocables("red apple", ("apple",), ("Food & Drink", "food fruit"))
    rng = np.random.default_rng(1)
    drawn = [caption(words, rng) for _ in range(4000)]
    assert drawn.count("") / len(drawn) == pytest.approx(0.10, abs=0.02)
    named = sum(text.lower().startswith("red apple") for text in drawn)
    assert named / (len(drawn) - drawn.count("")) == pytest.approx(0.75, abs=0.03)
    assert {"red apple", "Red apple", "Red Apple", "RED APPLE", "APPLE, FOOD FRUIT", "red apple, food & drink"} <= set(drawn)


def test_tokenizers_know_all_cases_and_survive_a_folder(emoji: list[Emoji], tmp_path: Path) -> None:
    texts = spellings([item.words for item in emoji])
    trained = train_tokenizers(texts)
    write_tokenizers(tmp_path, trained)
    loaded = load_tokenizers(tmp_path)
    asked = [*texts, *PRINTABLE, "".join(PRINTABLE), ""]
    before, after = trained(asked), loaded(asked)
    assert torch.equal(before.clip, after.clip)
    assert torch.equal(before.t5, after.t5)
    t5: Any = loaded.t5
    clip: Any = loaded.clip
    assert not bool((after.t5 == t5.unk_token_id).any())
    for text in (*texts, *PRINTABLE):
        assert clip(text).input_ids.count(clip.eos_token_id) == 1, text
    assert (clip.bos_token_id, clip.eos_token_id) == (len(clip) - 2, len(clip) - 1)


# ---- latents and loss


def test_packing_and_positions_are_those_of_fluxpipeline() -> None:
    flux: Any = FluxPipeline
    latents = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(latents), flux._pack_latents(latents, 3, 8, 16, 16))
    ids = flux._prepare_latent_image_ids(3, 8, 8, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(fresh_denoiser(load_tokenizers(MODEL_FOLDER)).image_ids, ids, rtol=0, atol=0)


def test_times_have_the_stated_distribution() -> None:
    logits = torch.logit(sample_times(20_000, torch.Generator().manual_seed(2)))
    assert float(logits.mean()) == pytest.approx(0.7, abs=0.03)
    assert float(logits.std()) == pytest.approx(1.0, abs=0.03)


def test_the_loss_is_a_function_of_its_seed() -> None:
    parts = load_denoiser(MODEL_FOLDER), load_autoencoder(MODEL_FOLDER), load_tokenizers(MODEL_FOLDER)
    names, pictures = read_evaluation_set()
    first = evaluate_loss(*parts, 5, 1, names[:8], pictures[:8])
    assert evaluate_loss(*parts, 5, 1, names[:8], pictures[:8]) == first
    assert evaluate_loss(*parts, 6, 1, names[:8], pictures[:8]) != first


def test_drawn_renditions_are_some_of_all(emoji: list[Emoji]) -> None:
    autoencoder = load_autoencoder(MODEL_FOLDER)
    every = encode_renditions(autoencoder, emoji[:1], quiet)
    some = encode_renditions(autoencoder, emoji[:1], quiet, drawn=3, seed=4)
    assert every.values.shape == (1, 28, 64, 32)
    assert some.values.shape == (1, 3, 64, 32)
    distance = (some.values[0, :, None].float() - every.values[0, None].float()).abs().amax(dim=(2, 3)).amin(dim=1)
    assert float(distance.max()) < 0.05


# ---- training


def test_autoencoder_training_sets_scale_and_shift(emoji: list[Emoji]) -> None:
    pictures = np.stack([item.picture for item in emoji[:6]])
    model = train_autoencoder(pictures, AutoencoderOptions(steps=2, batch=2), quiet)
    latents = encode_pictures(model, pictures)
    assert float(latents.mean()) == pytest.approx(0, abs=1e-3)
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


def test_every_parameter_has_one_optimiser() -> None:
    denoiser = fresh_denoiser(load_tokenizers(MODEL_FOLDER))
    matrices, others = split_parameters(denoiser)
    assert sorted(map(id, (*matrices, *others))) == sorted(map(id, denoiser.parameters()))
    assert {matrix.ndim for matrix in matrices} == {2}
    names = {id(parameter): name for name, parameter in denoiser.named_parameters()}
    assert not any("embed" in names[id(matrix)] or "shared" in names[id(matrix)] for matrix in matrices)
    assert any("text_encoder." in names[id(matrix)] for matrix in matrices)
    assert any("text_encoder_2." in names[id(matrix)] for matrix in matrices)
    assert sum(matrix.numel() for matrix in matrices) > 0.85 * sum(parameter.numel() for parameter in denoiser.parameters())


def test_training_is_repeatable_and_its_folder_is_a_pipeline(emoji: list[Emoji], tmp_path: Path) -> None:
    text = load_tokenizers(MODEL_FOLDER)
    values = torch.randn(8, 2, 64, 32, generator=torch.Generator().manual_seed(7)).bfloat16()
    latents = Latents(values, np.full(2, 0.5))
    options = DenoiserOptions(steps=2, batch=4, warm_up=1)
    denoiser, again = (train_denoiser(emoji[:8], latents, text, options, quiet) for _ in range(2))
    other = train_denoiser(emoji[:8], latents, text, DenoiserOptions(steps=2, batch=4, warm_up=1, seed=1), quiet)
    for parameter, same in zip(denoiser.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(parameter, same, rtol=1e-5, atol=1e-6)
    assert not torch.equal(next(iter(denoiser.parameters())), next(iter(other.parameters())))

    write_pipeline(tmp_path, denoiser, load_autoencoder(MODEL_FOLDER), text)
    FluxPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for path in MODEL_FOLDER.rglob("*.json"):
        assert (tmp_path / path.relative_to(MODEL_FOLDER)).is_file()
    for trained, written in zip(denoiser.parameters(), load_denoiser(tmp_path).parameters(), strict=True):
        assert torch.equal(trained.bfloat16().float(), written)


# ---- the npm package


def test_missing_npm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match=r"npm was not found.*--data"):
        fetch_package(tmp_path / "cache")


def test_failing_npm_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such registry')\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="status 1: no such registry"):
        fetch_package(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_file_than_the_known_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is missing"):
        check_package(tmp_path)
    for name in package_module.SHA256:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(PackageError, match=r"has sha256 .*, expected"):
        check_package(tmp_path)


def test_the_program_reports_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is missing" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# ---- recognition


def test_renditions_are_recognised_as_themselves(emoji: list[Emoji]) -> None:
    gallery = build_gallery(emoji[:12])
    for number in (0, 9, 27):
        pictures = np.stack([renditions(item.picture)[number] for item in emoji[:12]])
        names = [item.name.upper() for item in emoji[:12]]
        assert recognition_rate(pictures, names, gallery).first == 1.0
        assert recognition_rate(pictures, [*names[6:], *names[:6]], gallery).first == 0.0


def test_recognition_refuses_what_it_cannot_compare(emoji: list[Emoji]) -> None:
    gallery = build_gallery(emoji[:2])
    pictures = np.stack([item.picture for item in emoji[:2]])
    with pytest.raises(ValueError, match=r"not in the gallery: \['unicorn'\]"):
        recognition_rate(pictures, [emoji[0].name, "unicorn"], gallery)
    with pytest.raises(ValueError, match="float32"):
        recognition_rate(pictures.astype(np.float32), [item.name for item in emoji[:2]], gallery)
    with pytest.raises(ValueError, match="expected uint8"):
        recognition_rate(pictures[:1], [item.name for item in emoji[:2]], gallery)


def test_spread_names_cover_the_set() -> None:
    names = [str(number) for number in range(10)]
    assert spread_names(5, names) == ["0", "2", "4", "6", "8"]
    assert spread_names(10, names) == names
