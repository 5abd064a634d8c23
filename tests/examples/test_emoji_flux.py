"""The shipped folder: what it holds, that it loads unchanged, that it was trained, that it draws what is asked for."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from emoji_training.autoencoder import psnr
from emoji_training.captions import CASES
from emoji_training.folder import draw, load_pipeline
from emoji_training.loss import evaluate_folder, evaluate_loss
from emoji_training.networks import fresh_denoiser, load_autoencoder, load_denoiser, load_tokenizers
from emoji_training.package import fetch_package
from emoji_training.pictures import EVALUATION_SHEET, MODEL_FOLDER, NAMES, Emoji, Vocables, read_emoji, read_evaluation_set
from recognise import build_gallery, load_gallery, recognition_rate, spread_names

WEIGHTS = {
    "text_encoder": ("model.safetensors", 0.46),
    "text_encoder_2": ("model.safetensors", 1.30),
    "transformer": ("diffusion_pytorch_model.safetensors", 7.36),
    "vae": ("diffusion_pytorch_model.safetensors", 1.71),
}
# The one name with a character (’) that the shipped CLIP vocabulary lacks.
UNKNOWN_TO_CLIP = {"rescue worker’s helmet"}
SHIPPED_LOSS_BOUND = 0.41
UNTRAINED_LOSS = 2.0
SHORT_LOSS_BOUND = 0.90


@pytest.fixture(scope="module")
def names() -> list[str]:
    return NAMES.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("component", sorted(WEIGHTS))
def test_weights_are_bfloat16_and_of_the_stated_size(component: str) -> None:
    file, millions = WEIGHTS[component]
    with (MODEL_FOLDER / component / file).open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    count = sum(int(np.prod(tensor["shape"])) for tensor in header.values())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_folder_stays_small() -> None:
    size = sum(path.stat().st_size for path in MODEL_FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert size < 24e6


def test_diffusers_loads_the_folder_unchanged() -> None:
    pipeline: Any = FluxPipeline.from_pretrained(MODEL_FOLDER, dtype=torch.bfloat16)
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert set(modules) == set(WEIGHTS)
    for module in modules.values():
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert pipeline.vae_scale_factor == 4
    assert not pipeline.transformer.config.guidance_embeds


def test_names_are_unique_and_in_lower_case(names: list[str]) -> None:
    assert len(names) == len(set(names)) == 1046
    assert all(name == name.lower().strip() for name in names)


@pytest.mark.parametrize("case", CASES)
def test_names_in_any_case_are_made_of_known_tokens(case: Any, names: list[str]) -> None:
    text = load_tokenizers(MODEL_FOLDER)
    clip: Any = text.clip
    t5: Any = text.t5
    for name in names:
        prompt = case(name)
        assert t5.unk_token_id not in t5(prompt).input_ids, prompt
        if name in UNKNOWN_TO_CLIP:
            continue
        # CLIP's unknown token is also its end token: it may stand at the end alone, and the pieces must spell the prompt.
        ids = clip(prompt).input_ids
        assert ids.count(clip.eos_token_id) == 1, prompt
        spelt = clip.decode(ids, skip_special_tokens=True).replace(" ", "")
        assert spelt == unicodedata.normalize("NFC", prompt).lower().replace(" ", ""), prompt


def test_case_changes_the_t5_tokens_and_not_the_clip_tokens() -> None:
    text = load_tokenizers(MODEL_FOLDER)
    lower, upper = text(["red apple"]), text(["RED APPLE"])
    assert torch.equal(lower.clip, upper.clip)
    assert not torch.equal(lower.t5, upper.t5)


def test_shipped_weights_know_fresh_noise_and_untrained_ones_do_not() -> None:
    autoencoder, text = load_autoencoder(MODEL_FOLDER), load_tokenizers(MODEL_FOLDER)
    shipped = evaluate_folder(MODEL_FOLDER, seed=11, draws=2)
    torch.manual_seed(11)
    untrained = evaluate_loss(fresh_denoiser(text), autoencoder, text, seed=11, draws=2)
    assert shipped <= SHIPPED_LOSS_BOUND
    assert untrained >= UNTRAINED_LOSS


def test_the_loss_hangs_on_the_words() -> None:
    """Each picture under the name of the next one: the trained loss must rise, or the text would not be used."""
    names, pictures = read_evaluation_set()
    parts = load_denoiser(MODEL_FOLDER), load_autoencoder(MODEL_FOLDER), load_tokenizers(MODEL_FOLDER)
    right = evaluate_loss(*parts, 3, 1, names, pictures)
    swapped = evaluate_loss(*parts, 3, 1, [*names[1:], names[0]], pictures)
    assert swapped > right + 0.1


def test_names_draw_their_pictures() -> None:
    """Eight prompts in mixed case, judged against the evaluation set's 64 emoji."""
    names, pictures = read_evaluation_set()
    gallery = build_gallery([Emoji(Vocables(name, (), ()), picture) for name, picture in zip(names, pictures, strict=True)])
    asked = [
        "red apple",
        "Softball",
        "four leaf clover",
        "SUN WITH FACE",
        "beating heart",
        "umbrella with rain drops",
        "Bed",
        "cat",
    ]
    drawn = draw(load_pipeline(MODEL_FOLDER), asked, range(len(asked)), steps=8)
    assert recognition_rate(drawn, asked, gallery).among_five >= 0.75
    strangers = [*asked[1:], asked[0]]
    assert recognition_rate(drawn, strangers, gallery).among_five <= 0.5


@pytest.mark.slow
def test_package_gives_the_shipped_names_and_pictures(names: list[str]) -> None:
    emoji = read_emoji(fetch_package())
    assert [item.name for item in emoji] == names
    by_name = {item.name: item.picture for item in emoji}
    for name, picture in zip(*read_evaluation_set(EVALUATION_SHEET), strict=True):
        np.testing.assert_array_equal(picture, by_name[name])


@pytest.mark.slow
def test_autoencoder_restores_the_set() -> None:
    pictures = np.stack([item.picture for item in read_emoji(fetch_package())])
    assert psnr(load_autoencoder(MODEL_FOLDER), pictures) == pytest.approx(33.8, abs=0.2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_drawn_pictures_are_recognised_among_the_whole_set() -> None:
    gallery = load_gallery()
    asked = spread_names(128, gallery.names)
    rate = recognition_rate(draw(load_pipeline(MODEL_FOLDER), asked, range(len(asked))), asked, gallery)
    assert rate.first >= 0.58
    assert rate.among_five >= 0.75


def test_readme_states_the_bound_of_the_short_run() -> None:
    assert f"bound: below **{SHORT_LOSS_BOUND:.2f}**" in (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_short_training_from_scratch_learns(tmp_path: Path) -> None:
    """At most ten minutes: the loss on fresh noise falls under the bound that the example's README states."""
    command = [sys.executable, str(MODEL_FOLDER / "train.py"), "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert evaluate_folder(tmp_path, seed=21) <= SHORT_LOSS_BOUND
    FluxPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
