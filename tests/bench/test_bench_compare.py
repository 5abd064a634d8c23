"""The gate: what makes `compare` fail, each thing alone, and that nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vitrify.bench.cli import bench
from vitrify.bench.compare import Margins, Verdict, compare
from vitrify.bench.document import Document, write_document
from vitrify.bench.machine import Machine
from vitrify.bench.pictures import to_png
from vitrify.bench.results import CaseResult, Check, PeerResult, RunResult
from vitrify.engine.errors import SpecError, VitrifyError

MACHINE = Machine("a processor", ("avx2",), 2, 1 << 34, "Linux x86_64", "3.11.7", {"torch": "2.13.0"})
PICTURE = np.random.default_rng(5).integers(40, 200, (16, 16, 3), np.uint8)


def rounds(seconds: float, seed: int, noise: float = 0.005) -> tuple[float, ...]:
    drawn = np.random.default_rng(seed).normal(1.0, noise, 12)
    return tuple(float(seconds * one) for one in drawn)


def measured(seed: int) -> Document:
    """The same two cases with noise of its own."""
    step = CaseResult(
        name="step",
        kind="step",
        summary="",
        parameters=1,
        flops=1,
        dims={"batch": 2},
        sensitivity={},
        checks={"vitrify": Check(1e-6, 1e-5, 1e-4), "plain-ort": Check(1e-6, 1e-5, 1e-4), "other": Check(0.5, 1.0, 1e-2)},
        peers={"vitrify": PeerResult(rounds(0.004, seed)), "plain-ort": PeerResult(rounds(0.006, seed + 100))},
        counts={"vitrify": {"engine calls": 4, "artifact bytes": 1000}},
    )
    pictures = replace(
        step,
        name="pictures",
        kind="picture",
        checks={name: Check(1e-3, 1e-2, 2e-3) for name in ("vitrify", "vitrify+cache", "eager-fp32")},
        peers={
            "vitrify": PeerResult(rounds(0.1, seed + 1)),
            "vitrify+cache": PeerResult(rounds(0.07, seed + 2)),
            "eager-fp32": PeerResult(rounds(0.3, seed + 3)),
        },
        counts={"vitrify+cache": {"computed steps": 60, "cache bytes": 4096}},
        pictures={"vitrify": (to_png(PICTURE),), "vitrify+cache": (to_png(PICTURE + 9),), "eager-fp32": (to_png(PICTURE),)},
    )
    return Document("2026-01-02", MACHINE, RunResult(2, {}, (step, pictures)), f"run {seed}")


BASE = measured(0)


def changed(found: Document, case: int, change: Callable[[CaseResult], CaseResult]) -> Document:
    cases = list(found.run.cases)
    cases[case] = change(cases[case])
    return replace(found, run=replace(found.run, cases=tuple(cases)))


def failures(new: Document, base: Document = BASE, **options: bool) -> list[Verdict]:
    return [one for one in compare(base, new, **options) if not one.passed]


def times(of: float, *names: str) -> Callable[[CaseResult], CaseResult]:
    """Those peers' rounds, `of` times as long."""

    def change(case: CaseResult) -> CaseResult:
        longer = {name: PeerResult(tuple(of * one for one in case.peers[name].rounds)) for name in names}
        return replace(case, peers={**case.peers, **longer})

    return change


def failures_beside(new: Document, base: Document = BASE) -> list[Verdict]:
    """Of documents of one run."""
    return failures(replace(new, run_id=base.run_id), replace(base, is_base=True))


@pytest.mark.parametrize("seed", range(10, 30))
def test_noise_alone_passes(seed: int) -> None:
    assert failures(measured(seed)) == []


@pytest.mark.parametrize("seed", range(10, 30))
def test_ten_per_cent_slower_fails(seed: int) -> None:
    (found,) = failures(changed(measured(seed), 0, times(1.1, "vitrify")))
    assert (found.gate, found.what) == ("time", "vitrify ÷ plain-ort")


def test_whole_pictures_have_a_margin_of_their_own() -> None:
    def slower(by: float) -> list[Verdict]:
        return failures(changed(measured(10), 1, times(by, "vitrify+cache")))

    assert slower(1.07) == []
    assert [(one.gate, one.what) for one in slower(1.15)] == [("time", "vitrify+cache ÷ eager-fp32")]


def test_a_slower_machine_is_no_regression() -> None:
    assert failures(changed(measured(10), 0, times(3, "vitrify", "plain-ort"))) == []


def test_in_one_run_ours_is_held_against_its_base_and_not_by_the_anchor() -> None:
    base = changed(BASE, 0, times(1.4, "plain-ort"))
    assert [one.what for one in failures(measured(10), base)] == ["vitrify ÷ plain-ort"]
    assert failures_beside(measured(10), base) == []
    (found,) = failures_beside(changed(measured(10), 0, times(1.1, "vitrify")))
    assert (found.gate, found.what) == ("time", "vitrify")
    assert found.base == f"{BASE.run.cases[0].peers['vitrify'].time.median * 1e3:.3f} ms"
    (found,) = failures_beside(changed(measured(10), 1, times(1.15, "vitrify+cache")))
    assert (found.case, found.what) == ("pictures", "vitrify+cache")


def test_in_one_run_rounds_are_paired() -> None:
    # Half of the rounds the machine is ten times as slow, for both.
    busy = [10.0 if index % 2 else 1.0 for index in range(12)]

    def uneven(case: CaseResult) -> CaseResult:
        ours = PeerResult(tuple(a * b for a, b in zip(case.peers["vitrify"].rounds, busy, strict=True)))
        return replace(case, peers={**case.peers, "vitrify": ours})

    base, new = changed(BASE, 0, uneven), changed(measured(10), 0, uneven)
    assert failures_beside(new, base) == []
    assert "too uncertain" in failures(new, base)[0].change


def test_documents_of_one_run_must_have_its_rounds() -> None:
    def fewer(case: CaseResult) -> CaseResult:
        return replace(case, peers={name: PeerResult(peer.rounds[:5]) for name, peer in case.peers.items()})

    with pytest.raises(SpecError, match="12 rounds in BASE and 5 in NEW"):
        failures_beside(changed(measured(10), 0, fewer))


@pytest.mark.parametrize(("base", "new"), [(False, False), (True, True), (False, True)])
def test_documents_of_one_run_must_be_the_base_and_what_is_beside_it(base: bool, new: bool) -> None:
    with pytest.raises(SpecError, match="of one run"):
        compare(replace(BASE, is_base=base), replace(measured(10), run_id=BASE.run_id, is_base=new))


def test_what_a_run_beside_its_base_lacks_fails() -> None:
    def without(case: CaseResult) -> CaseResult:
        return replace(case, peers={"plain-ort": case.peers["plain-ort"]})

    assert [(one.gate, one.what) for one in failures_beside(changed(measured(10), 0, without))] == [("time", "vitrify")]


def test_a_time_too_uncertain_is_no_number() -> None:
    def noisy(case: CaseResult) -> CaseResult:
        return replace(case, peers={**case.peers, "vitrify": PeerResult(rounds(0.004, 1, noise=0.3))})

    (found,) = failures(changed(measured(10), 0, noisy))
    assert "too uncertain" in found.change


def test_a_dropped_cache_hit_fails() -> None:
    def recomputed(case: CaseResult) -> CaseResult:
        return replace(case, counts={"vitrify+cache": {**case.counts["vitrify+cache"], "computed steps": 61}})

    (found,) = failures(changed(measured(10), 1, recomputed))
    assert (found.gate, found.what, found.change) == ("count", "vitrify+cache: computed steps", "+1")


def test_fewer_of_what_is_counted_passes_and_more_of_nothing_fails() -> None:
    def fewer(case: CaseResult) -> CaseResult:
        return replace(case, counts={"vitrify": {"engine calls": 3, "artifact bytes": 1000}})

    def other(case: CaseResult) -> CaseResult:
        return replace(case, counts={"vitrify": {**case.counts["vitrify"], "engine calls, new": 1}})

    assert failures(changed(measured(10), 0, fewer)) == []
    assert [one.change for one in failures(changed(measured(10), 0, other))] == ["new"]


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.where(np.arange(16)[:, None, None] == 3, PICTURE + 3, PICTURE), "3 levels apart"),
        (PICTURE + 1, "1.000 on average"),
        (PICTURE[:8], "another size"),
    ],
)
def test_a_changed_picture_fails(picture: np.ndarray, said: str) -> None:
    def redrawn(case: CaseResult) -> CaseResult:
        return replace(case, pictures={**case.pictures, "vitrify": (to_png(picture.astype(np.uint8)),)})

    (found,) = failures(changed(measured(10), 1, redrawn))
    assert found.gate == "picture"
    assert said in found.change


def test_a_picture_whose_few_values_round_the_other_way_passes() -> None:
    picture = PICTURE.copy()
    picture[3, 4] += 1
    redrawn = changed(measured(10), 1, lambda case: replace(case, pictures={**case.pictures, "vitrify": (to_png(picture),)}))
    assert failures(redrawn) == []


def test_other_peers_pictures_and_times_may_change() -> None:
    def other(case: CaseResult) -> CaseResult:
        return replace(case, pictures={**case.pictures, "eager-fp32": (to_png(PICTURE // 2),)})

    assert failures(changed(measured(10), 1, other)) == []


@pytest.mark.parametrize("field", ["peers", "checks", "counts", "pictures"])
@pytest.mark.parametrize("name", ["vitrify+cache", "eager-fp32"])
def test_what_is_missing_fails(field: str, name: str) -> None:
    def without(case: CaseResult) -> CaseResult:
        return replace(case, **{field: {key: value for key, value in getattr(case, field).items() if key != name}})

    ours = name.startswith("vitrify")
    found = failures(changed(measured(10), 1, without))
    assert bool(found) == (ours or field in ("peers", "checks"))
    assert all(one.new == "none" or "no time of" in one.change for one in found)


def test_a_missing_case_fails() -> None:
    new = measured(10)
    (found,) = failures(replace(new, run=replace(new.run, cases=new.run.cases[:1])))
    assert (found.case, found.gate, found.change) == ("pictures", "run", "missing")


def test_a_peer_that_is_absent_says_why() -> None:
    def absent(case: CaseResult) -> CaseResult:
        kept = {name: value for name, value in case.checks.items() if name != "plain-ort"}
        peers = {name: value for name, value in case.peers.items() if name != "plain-ort"}
        return replace(case, checks=kept, peers=peers, absent={"plain-ort": "it is not installed"})

    found = failures(changed(measured(10), 0, absent))
    assert {one.gate for one in found} == {"check", "time"}
    assert "it is not installed" in {one.change for one in found}


def test_a_failed_check_and_a_grown_error_fail() -> None:
    def worse(relative: float) -> Callable[[CaseResult], CaseResult]:
        return lambda case: replace(case, checks={**case.checks, "vitrify": Check(relative, relative, 1e-4)})

    assert [one.gate for one in failures(changed(measured(10), 0, worse(2e-4)))] == ["check"]
    assert [one.gate for one in failures(changed(measured(10), 0, worse(5e-6)))] == ["error"]
    assert failures(changed(measured(10), 0, worse(1.5e-6))) == []


def test_a_peer_wrong_in_both_is_nobodys_fault() -> None:
    assert not any(one.what == "other" for one in compare(BASE, measured(10)))


def test_another_machine_or_another_size_is_not_compared_unless_asked() -> None:
    other = replace(measured(10), machine=replace(MACHINE, cpu="another"))
    assert [one.what for one in failures(other)] == ["processor"]
    assert failures(other, across_machines=True) == []
    threads = replace(measured(10), run=replace(measured(10).run, threads=4))
    assert [one.what for one in failures(threads, across_machines=True)] == ["threads"]
    size = changed(measured(10), 0, lambda case: replace(case, dims={"batch": 4}))
    assert [(one.what, one.change) for one in failures(size)] == [("batch", "another case")]


def test_the_margin_is_what_was_asked_for() -> None:
    new = changed(measured(10), 0, times(1.1, "vitrify"))
    assert all(one.passed for one in compare(BASE, new, Margins(time=0.2)))


def test_the_command_shows_what_failed_and_ends_with_an_error(tmp_path: Path) -> None:
    base, new = tmp_path / "base.json", tmp_path / "new.json"
    write_document(base, BASE)
    write_document(new, measured(10))
    passed = CliRunner().invoke(bench, ["compare", str(base), str(new), "--all"], catch_exceptions=False)
    assert passed.exit_code == 0
    assert "0 failed" in passed.output
    assert "computed steps" in passed.output
    count = {"vitrify": {"engine calls": 5, "artifact bytes": 1000}}
    write_document(new, changed(measured(10), 0, lambda case: replace(case, counts=count)))
    failed = CliRunner().invoke(bench, ["compare", str(base), str(new)])
    assert isinstance(failed.exception, VitrifyError)
    assert "1 of" in str(failed.exception)
    assert "engine calls" in failed.output
    assert "computed steps" not in failed.output
    absent = CliRunner().invoke(bench, ["compare", str(base), str(tmp_path / "absent.json")])
    assert isinstance(absent.exception, SpecError)


def test_report_writes_the_page_of_an_earlier_run(tmp_path: Path) -> None:
    write_document(tmp_path / "run.json", BASE)
    result = CliRunner().invoke(
        bench, ["report", str(tmp_path / "run.json"), "--html", str(tmp_path / "run.html")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "vitrify+cache" in result.output
    assert "<svg" in (tmp_path / "run.html").read_text()
