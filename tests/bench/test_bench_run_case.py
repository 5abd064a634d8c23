"""A case with fake peers: who is wrong gets no number, and the numbers are the stated arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.fake_peers import TINY, TINY_PICTURES, FakePeer, draw, linear_model
from vitrify.bench.beside import apart
from vitrify.bench.inputs import CaseInputs, draw_inputs
from vitrify.bench.measure import Pace
from vitrify.bench.picture_inputs import PictureInputs, draw_picture_inputs
from vitrify.bench.pictures import from_png
from vitrify.bench.results import CaseResult
from vitrify.bench.run_case import measure_case
from vitrify.engine.errors import ParityError

PARTS = {"transformer/embed": 0.25, "transformer/rest": 0.5}


def wrong_model(inputs: CaseInputs, step: int) -> Any:
    return linear_model(inputs, step) * np.float32(1.001)


def late_wrong_model(inputs: CaseInputs, step: int) -> Any:
    return linear_model(inputs, min(step, 2))


def nan_model(inputs: CaseInputs, step: int) -> Any:
    return linear_model(inputs, step) * np.float32("nan")


def measured(peers: dict[str, FakePeer], scratch: Path, *, rounds: int = 2) -> CaseResult:
    tolerances = {name: 1e-2 if name == "loose" else 1e-4 for name in peers}
    return measure_case(TINY, peers, tolerances, scratch, pace=Pace(rounds), settle=lambda: None)


def test_right_peers_are_measured(tmp_path: Path) -> None:
    ours = FakePeer(seconds=(0.1,), condition_s=0.08, parts=PARTS)
    other = FakePeer(seconds=(0.2,))
    result = measured({"vitrify": ours, "eager-fp32": FakePeer(seconds=(0.6,)), "plain-ort": other}, tmp_path)
    assert result.wrong == ()
    assert result.peers["vitrify"].time.median == pytest.approx(0.1 + 0.08 / TINY.steps)
    assert result.peers["plain-ort"].time.median == pytest.approx(0.2)
    assert result.peers["vitrify"].over(result.peers["plain-ort"]).median == pytest.approx(0.12 / 0.2)


def test_parts_and_the_time_outside_them_make_the_step(tmp_path: Path) -> None:
    ours = FakePeer(seconds=(0.1,), condition_s=0.08, parts=PARTS)
    found = measured({"vitrify": ours, "eager-fp32": FakePeer()}, tmp_path).peers["vitrify"]
    assert {name: part.median for name, part in found.parts.items()} == pytest.approx(
        {"condition, per step": 0.02, "transformer/embed": 0.025, "transformer/rest": 0.05, "outside plan.run()": 0.025}
    )
    assert sum(part.median for part in found.parts.values()) == pytest.approx(found.time.median)


def test_visits_begin_with_a_step_that_does_not_count(tmp_path: Path) -> None:
    # Calibration takes 3 steps, then visits of 1 + 1: every first one is slow.
    ours = FakePeer(seconds=(1.0, 1.0, 1.0, 50.0, 1.0, 50.0, 1.0))
    assert measured({"vitrify": ours, "eager-fp32": FakePeer()}, tmp_path, rounds=1).peers["vitrify"].time.median == 1.0


def test_a_wrong_peer_gets_no_number(tmp_path: Path) -> None:
    wrong = FakePeer(wrong_model)
    peers = {"vitrify": FakePeer(), "eager-fp32": FakePeer(), "plain-ort": wrong, "loose": FakePeer(wrong_model)}
    result = measured(peers, tmp_path)
    assert result.wrong == ("plain-ort",)
    assert result.checks["plain-ort"].relative == pytest.approx(1e-3, rel=0.01)
    assert set(result.peers) == {"vitrify", "eager-fp32", "loose"}
    assert "step" not in wrong.asked


@pytest.mark.parametrize("model", [wrong_model, late_wrong_model, nan_model, lambda i, s: linear_model(i, s)[:1]])
def test_if_ours_is_wrong_nobody_gets_a_number(tmp_path: Path, model: Any) -> None:
    peers = {"vitrify": FakePeer(model), "eager-fp32": FakePeer()}
    result = measured(peers, tmp_path)
    assert not result.checks["vitrify"].passed
    assert not result.peers
    assert not any("step" in peer.asked for peer in peers.values())


def test_one_far_element_is_wrong_even_if_the_norm_is_small(tmp_path: Path) -> None:
    def spiked(inputs: CaseInputs, step: int) -> Any:
        result = linear_model(inputs, step)
        result[0, 0, 0] += np.float32(0.003 * np.sqrt((result**2).mean()))
        return result

    check = measured({"vitrify": FakePeer(spiked), "eager-fp32": FakePeer()}, tmp_path).checks["vitrify"]
    assert check.worst > 20 * 1e-4
    assert not check.passed


def test_a_reference_of_nan_passes_nothing(tmp_path: Path) -> None:
    def later_nan(inputs: CaseInputs, step: int) -> Any:
        return nan_model(inputs, step) if step else linear_model(inputs, step)

    result = measured({"vitrify": FakePeer(), "eager-fp32": FakePeer(later_nan)}, tmp_path)
    assert not any(check.passed for check in result.checks.values())


@pytest.mark.parametrize("name", ["timesteps", "pooled_projections", "encoder_hidden_states", "guidance", "img_ids", "txt_ids"])
def test_a_check_that_could_not_fail_is_refused(tmp_path: Path, name: str) -> None:
    fixed = getattr(draw_inputs(TINY, 11), name)

    def deaf(inputs: CaseInputs, step: int) -> Any:
        return linear_model(replace(inputs, **{name: fixed}), step)

    with pytest.raises(ParityError, match=f"another {name} moves"):
        measured({"vitrify": FakePeer(), "eager-fp32": FakePeer(deaf)}, tmp_path)


def test_inputs_survive_the_file(tmp_path: Path) -> None:
    for case in (TINY, replace(TINY, shape=replace(TINY.shape, guidance=False))):
        inputs = draw_inputs(case, 3)
        inputs.save(tmp_path / "inputs.npz")
        loaded = CaseInputs.load(tmp_path / "inputs.npz")
        assert (loaded.guidance is None) == (not case.shape.guidance)
        for name in ("latents", "encoder_hidden_states", "pooled_projections", "timesteps", "img_ids", "txt_ids"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(inputs, name))


def test_every_input_is_changed_alone() -> None:
    inputs = draw_inputs(TINY, 3)
    changes = inputs.changes(4)
    assert set(changes) == {
        "latents",
        "encoder_hidden_states",
        "pooled_projections",
        "timesteps",
        "img_ids",
        "txt_ids",
        "guidance",
    }
    for name, changed in changes.items():
        differing = [other for other in changes if not np.array_equal(getattr(changed, other), getattr(inputs, other))]
        assert differing == [name]


def test_counts_are_taken_from_the_right_alone(tmp_path: Path) -> None:
    peers = {
        "vitrify": FakePeer(counted={"engine calls": 4}),
        "eager-fp32": FakePeer(),
        "plain-ort": FakePeer(wrong_model, counted={"x": 1}),
    }
    assert measured(peers, tmp_path).counts == {"vitrify": {"engine calls": 4}}


def test_only_those_asked_for_are_timed_but_all_are_checked(tmp_path: Path) -> None:
    peers = {"vitrify": FakePeer(), "eager-fp32": FakePeer(), "plain-ort": FakePeer()}
    tolerances = dict.fromkeys(peers, 1e-4)
    asked = ("vitrify", "plain-ort")
    result = measure_case(TINY, peers, tolerances, tmp_path, pace=Pace(2), timed_peers=asked, settle=lambda: None)
    assert set(result.peers) == set(asked)
    assert set(result.checks) == set(peers)
    assert "step" not in peers["eager-fp32"].asked


def with_base(**base: Any) -> dict[str, FakePeer]:
    ours = {name: FakePeer(seconds=(0.1,), condition_s=0.08) for name in ("vitrify", "base vitrify")}
    ours["base vitrify"] = FakePeer(**{"seconds": (0.2,), "condition_s": 0.08, "counted": {"calls": 3}, **base})
    return {**ours, "eager-fp32": FakePeer(), "plain-ort": FakePeer(seconds=(0.4,))}


def test_a_base_is_measured_in_the_same_rounds_and_stands_apart(tmp_path: Path) -> None:
    ours, base = apart(measured(with_base(), tmp_path))
    others = ["eager-fp32", "plain-ort"]
    assert list(ours.checks) == list(base.checks) == list(ours.peers) == list(base.peers) == ["vitrify", *others]
    assert base.peers["vitrify"].time.median == pytest.approx(0.2 + 0.08 / TINY.steps)
    assert ours.peers["vitrify"].over(base.peers["vitrify"]).median == pytest.approx(0.12 / 0.22)
    assert all(ours.peers[name] == base.peers[name] for name in others)
    assert (ours.counts, base.counts) == ({}, {"vitrify": {"calls": 3}})


def test_a_base_that_is_wrong_has_no_number_and_ours_keeps_its_own(tmp_path: Path) -> None:
    ours, base = apart(measured(with_base(model=wrong_model), tmp_path))
    assert base.wrong == ("vitrify",)
    assert base.peers == {}
    assert ours.wrong == ()
    assert "vitrify" in ours.peers


def test_rounds_go_on_until_ours_is_known_beside_its_base(tmp_path: Path) -> None:
    def rounds(uneven: str) -> int:
        peers = with_base()
        # Calls of two lengths in turns, four a round: 3 to find out how many fill a visit, then 2 visits of 1 + 1.
        peers[uneven].seconds = [0.1, 0.1, 0.1, *(0.1 * (1 + round_ % 2) for round_ in range(10) for _ in range(4))]
        found = measure_case(
            TINY, peers, dict.fromkeys(peers, 1e-4), tmp_path, pace=Pace(2, spread=0.01, most=8), settle=lambda: None
        )
        return len(found.peers["vitrify"].rounds)

    assert rounds("vitrify") == rounds("base vitrify") == 8
    assert rounds("plain-ort") == 2


def test_pictures_are_checked_kept_and_timed_prompt_by_prompt(tmp_path: Path) -> None:
    def paler(inputs: PictureInputs, index: int) -> Any:
        return draw(inputs, index) // 2

    ours, reference = FakePeer(draw, seconds=(0.1,)), FakePeer(draw, seconds=(0.3,))
    peers = {"vitrify": ours, "vitrify+loose": FakePeer(paler), "eager-fp32": reference}
    tolerances = {"vitrify": 1e-3, "vitrify+loose": 0.6, "eager-fp32": 1e-3}
    result = measure_case(TINY_PICTURES, peers, tolerances, tmp_path, pace=Pace(3), settle=lambda: None)
    assert result.wrong == ()
    assert result.checks["vitrify+loose"].relative == pytest.approx(0.5, abs=0.01)
    assert result.peers["vitrify"].over(result.peers["eager-fp32"]).median == pytest.approx(1 / 3)
    inputs = draw_picture_inputs(TINY_PICTURES, 11)
    for index, png in enumerate(result.pictures["vitrify"]):
        np.testing.assert_array_equal(from_png(png), draw(inputs, index))
    # Two visits a round, each a call to warm up and then a measured one, all peers at the same prompt.
    assert ours.indices == reference.indices == [0] * 4 + [1] * 4 + [0] * 4
    assert result.sensitivity.keys() == {"prompts", "latents", "num_inference_steps"}


def test_picture_inputs_survive_the_file(tmp_path: Path) -> None:
    for defaults in ({}, {"negative_prompt": "", "true_cfg_scale": 2.0}):
        inputs = draw_picture_inputs(replace(TINY_PICTURES, defaults=defaults), 3)
        inputs.save(tmp_path / "inputs.npz")
        loaded = PictureInputs.load(tmp_path / "inputs.npz")
        np.testing.assert_array_equal(loaded.latents, inputs.latents)
        assert replace(loaded, latents=inputs.latents) == inputs
