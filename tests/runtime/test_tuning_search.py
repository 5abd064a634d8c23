"""`vitrify tune` on the toy: the search against trying everything, costs against counted runs, and the command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.runtime.toy_flux import Toy, make_toy
from vitrify.engine.artifact.presets import Calibration, Presets, presets_path, read_presets, write_presets
from vitrify.engine.cache_policy import Cache, FirstBlock, Guards, Hold, Interval, Magnitude, Mask, Taylor
from vitrify.engine.errors import ArtifactError, RequestError, SpecError
from vitrify.runtime.output import NotFiniteError
from vitrify.runtime.tuning import cli, tune
from vitrify.runtime.tuning.candidates import known_beforehand, measured
from vitrify.runtime.tuning.cost import computed_steps, request_seconds, segment_seconds
from vitrify.runtime.tuning.quality import Quality
from vitrify.runtime.tuning.requests import Requests
from vitrify.runtime.tuning.search import Bound, Search

STEPS = 10
SECONDS = {"embed": 0.5, "first": 1.0, "rest": 8.0, "finish": 0.5}
PROMPTS = ["red apple", "big cat", "house", "small green tree", "dog"]
TABLE = Calibration((1.0, 1.1, 0.9, 1.0, 1.05, 0.99, 1.0, 1.0, 0.97, 1.2), 1)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path / "art", defaults={"num_inference_steps": STEPS})


def quality_of(toy: Toy, cache: Cache, seed: int = 3, prompts: Sequence[str] = PROMPTS) -> tuple[Quality, float]:
    """Straight through the pipeline: quality over `prompts`, mean computed steps."""
    drawn = [toy.pipe(p, seed=seed + i, cache=cache, output_type="np") for i, p in enumerate(prompts)]
    plain = [toy.pipe(p, seed=seed + i, output_type="np").images for i, p in enumerate(prompts)]
    computed = float(np.mean([len(lane) for d in drawn for lane in d.cache.computed]))
    return Quality.of(np.concatenate([d.images for d in drawn]), np.concatenate(plain)), computed


def test_the_search_finds_what_trying_everything_finds(toy: Toy) -> None:
    requests = Requests(toy.pipe, PROMPTS, STEPS, 3)
    everything = [(cache, *quality_of(toy, cache)) for cache, _ in known_beforehand(STEPS, TABLE)]
    for metric, least in (("psnr", 36.0), ("ssim", 0.997)):
        bound = Bound(metric, least)
        search = Search(requests, None, bound, SECONDS)
        found = search._first(c for c, _ in sorted(known_beforehand(STEPS, TABLE), key=lambda k: search._cost(k[0], [len(k[1])])))
        costs = [request_seconds(c, [round(n)], STEPS, SECONDS) for c, q, n in everything if q.low(metric) >= least]
        assert 0 < len(costs) < len(everything) - 20  # or the bound says little
        assert found is not None
        assert found.cost == pytest.approx(min(costs))
        quality, computed = quality_of(toy, found.cache)
        assert (found.quality.low(metric), found.computed) == (pytest.approx(quality.low(metric)), computed)
        best = Search(requests, None, bound, SECONDS).best(TABLE)
        assert best is not None
        assert best.cost <= found.cost
        assert quality_of(toy, best.cache)[0].low(metric) >= least


def test_what_fails_the_check_is_not_chosen(toy: Toy) -> None:
    """The cheapest that keeps the bound on the prompts searched loses it on those that check: the next one that keeps both."""
    others, seed, bound = ["house", "red cat"], 60, Bound("psnr", 30.4)
    requests, check = Requests(toy.pipe, PROMPTS, STEPS, 3), Requests(toy.pipe, others, STEPS, seed)
    ordered = sorted(known_beforehand(STEPS, TABLE), key=lambda k: request_seconds(k[0], [len(k[1])], STEPS, SECONDS))
    caches = [cache for cache, _ in ordered]
    on_searched = [bound.holds(quality_of(toy, cache)[0]) for cache in caches]
    on_both = [
        held and quality_of(toy, cache, seed, others)[0].psnr.min() >= bound.least
        for cache, held in zip(caches, on_searched, strict=True)
    ]
    assert on_searched.index(True) < on_both.index(True)  # or the check has nothing to refuse
    said: list[str] = []
    found = Search(requests, check, bound, SECONDS, said.append)._first(caches)
    assert found is not None
    assert found.cache == caches[on_both.index(True)]
    assert found.checked is not None
    assert found.checked.quality.low("psnr") == pytest.approx(quality_of(toy, found.cache, seed, others)[0].low("psnr"))
    assert "but not on the prompts that check" in said[0]
    assert "but not" not in said[-1]
    best = Search(requests, check, bound, SECONDS).best(TABLE)
    assert best is not None
    assert best.cost <= found.cost
    assert quality_of(toy, best.cache, seed, others)[0].psnr.min() >= bound.least


def test_a_measured_decision_wins_where_it_is_cheaper(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing known beforehand is tried, the best first-block setting is that of trying each."""
    monkeypatch.setattr("vitrify.runtime.tuning.search.known_beforehand", lambda *_: [])
    requests, bound = Requests(toy.pipe, PROMPTS, STEPS, 3), Bound("ssim", 0.9)
    found = Search(requests, None, bound, SECONDS).best(None)
    costs = []
    for cache in measured():
        quality, computed = quality_of(toy, cache)
        if quality.low("ssim") >= 0.9 and computed < STEPS:
            costs.append(
                computed * 10 + (STEPS - computed) * (1.5 if cache.predictor and cache.predictor.of == "output" else 2.0)
            )
    assert found is not None
    assert found.cost == pytest.approx(min(costs))


@pytest.mark.parametrize("what", ["latents", "pictures"])
def test_a_setting_that_overflows_is_not_chosen(toy: Toy, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Not even if the other prompts would carry it; an uncached request that overflows ends the search."""
    requests, bound = Requests(toy.pipe, PROMPTS, STEPS, 3), Bound("psnr", 1.0)
    caches = [cache for cache, _ in known_beforehand(STEPS, None)][:2]
    chosen = Search(requests, None, bound, SECONDS)._first(caches)
    assert chosen is not None
    assert chosen.cache == caches[0]  # so that it is the overflow that decides
    broken, prepared, denoised, decode = [caches[0]], toy.pipe.prepare_inputs, toy.pipe._denoised, toy.pipe.decode
    running: list[Cache | None] = []

    def spoilt() -> Any:
        return np.float32("nan") if running[-1] in broken else np.float32(1)

    def prepare(context: Any) -> Any:
        request = prepared(context)
        running.append(request.cache if request.text.record["prompt"] == ["house"] else Cache())
        return request

    def overflowing(*args: Any) -> Any:
        latents = denoised(*args)
        if not np.isfinite(spoilt()):
            raise NotFiniteError("latents are not finite")
        return latents

    monkeypatch.setattr(toy.pipe, "prepare_inputs", prepare)
    if what == "latents":
        monkeypatch.setattr(toy.pipe, "_denoised", overflowing)
    else:
        monkeypatch.setattr(toy.pipe, "decode", lambda latents, size: decode(latents, size) * spoilt())
    found = Search(requests, None, bound, SECONDS)._first(caches)
    assert found is not None
    assert found.cache == caches[1]
    with pytest.raises(NotFiniteError, match="are not finite"):
        Search(requests, None, bound, SECONDS).over_all(caches[0])
    broken[0] = None
    with pytest.raises(NotFiniteError, match="are not finite"):
        Search(requests, None, bound, SECONDS)._first(caches)


@pytest.mark.parametrize("total", [1, 2, 20, 21, 22, 64])
def test_a_bound_is_lost_only_when_nothing_can_keep_it(total: int) -> None:
    rng, bound, strict = np.random.default_rng(total), Bound("ssim", 0.5), Bound("ssim", 0.5, every=True)
    lost = 0
    for _ in range(300):
        seen = rng.uniform(0, 1, rng.integers(1, total + 1)) ** rng.choice([0.2, 1.0])
        best = np.concatenate([seen, np.ones(total - len(seen))])
        if bound.lost(list(seen), total):
            lost += 1
            assert not bound.holds(Quality(best, best))
        assert strict.lost(list(seen), total) == bool((seen < 0.5).any()) == (not strict.holds(Quality(best, best)))
        if len(seen) == total and total > 2 and sum(seen < 0.5) > 0.2 * total:
            assert bound.lost(list(seen), total)
    assert lost


CACHES = [
    Cache(Interval(3, 2), Taylor(1, "output")),
    Cache(Interval(4, 1), None, Guards(last_steps=2, max_consecutive_skips=2)),
    Cache(Mask((True, False, True, False, False, True, False, False, True, False)), Hold("residual")),
    Cache(Magnitude(TABLE.ratios, 0.2, 2, 0.1), Taylor(1, "residual")),
    Cache(Interval(2, 1), Hold("output"), Guards(max_skips=2, warmup_steps=3)),
    Cache(FirstBlock(0.3), Hold("residual"), Guards(warmup_steps=2, max_consecutive_skips=3)),
    Cache(FirstBlock(0.3), Taylor(1, "output")),
]


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_cost_is_what_runs(toy: Toy, cache: Cache) -> None:
    toy.backend.runs.clear()
    report = toy.pipe("cat", seed=1, cache=cache).cache
    known = computed_steps(cache, STEPS)
    assert known == (None if cache.probes else report.computed[0])
    assert 0 < len(report.computed[0]) < STEPS
    runs = Counter(Path(path).stem for path, _ in toy.backend.runs if path.startswith("transformer/"))
    expected = sum(SECONDS.get(segment, 0.0) * count for segment, count in runs.items())
    assert request_seconds(cache, [len(report.computed[0])], STEPS, SECONDS) == pytest.approx(expected)


def test_segments_are_timed_over_all_lanes(toy: Toy) -> None:
    found = segment_seconds(Requests(toy.pipe, PROMPTS, STEPS, 0))
    assert list(found) == ["embed", "first", "rest", "finish"]
    assert all(0 < value < 1 for value in found.values())


def run(
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    *words: str,
    wall: float = 0.5,
    command: Any = cli.tune,
    catch_exceptions: bool = False,
) -> Any:
    pipe = make_toy(toy.artifact.root, defaults=toy.artifact.manifest.defaults).pipe
    monkeypatch.setattr(cli, "load", lambda *_, **__: pipe)
    monkeypatch.setattr(tune, "segment_seconds", lambda _: SECONDS)
    monkeypatch.setattr(tune, "wall_ratio", lambda *_: wall)
    return CliRunner().invoke(command, ["ART", *words], catch_exceptions=catch_exceptions)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, "cat", "tree", "big red house"]))
    return str(file)


def test_the_command_writes_what_tuned_runs(toy: Toy, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_presets(toy.artifact, Presets(TABLE))
    result = run(toy, monkeypatch, "--prompts", prompts, "--min-psnr", "36", "--seed", "3")
    assert result.exit_code == 0
    presets = read_presets(toy.artifact)
    assert presets.calibration == TABLE
    assert presets.tuned is not None
    drawn = toy.pipe("cat", seed=1, cache="tuned")
    assert drawn.cache.cache == presets.tuned.cache
    record = presets.tuned.record
    assert f"tuned: {presets.tuned.cache}" in result.stdout
    assert f"{presets_path(toy.artifact.root)}: 10 steps" in result.stdout
    # Every fourth is held out, every second of the others checks; each is drawn from a seed of its own.
    searched, checked, held_out = ["red apple", "house", "cat"], ["big cat", "dog", "tree"], ["small green tree", "big red house"]
    for part, texts, seed in (("searched", searched, 3), ("checked", checked, 6), ("held_out", held_out, 9)):
        found = [
            Quality.of(
                toy.pipe(text, seed=seed + i, cache="tuned", output_type="np").images,
                toy.pipe(text, seed=seed + i, output_type="np").images,
            )
            for i, text in enumerate(texts)
        ]
        quality = Quality.joined(found)
        assert record[part]["requests"] == len(texts)
        assert record[part]["psnr_p5"] == pytest.approx(quality.low("psnr"), abs=1e-4)
        assert record[part]["psnr_worst"] == pytest.approx(quality.psnr.min(), abs=1e-4)
        assert record[part]["ssim_mean"] == pytest.approx(quality.mean("ssim"), abs=1e-4)
    assert record["searched"]["psnr_p5"] >= 36
    assert record["checked"]["psnr_worst"] >= 36
    assert record["holds_on_held_out"] is (record["held_out"]["psnr_p5"] >= 36)
    assert ("holds on the prompts searched and checked, not on those held out" in result.stderr) is not record[
        "holds_on_held_out"
    ]
    assert record["bound"] == {"metric": "psnr", "least_p5": 36.0}


def test_what_calibrate_writes_meanwhile_stays(toy: Toy, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = cli.tuned

    def meanwhile(*args: Any) -> Any:
        write_presets(toy.artifact, Presets(TABLE))
        return ends(*args)

    monkeypatch.setattr(cli, "tuned", meanwhile)
    assert run(toy, monkeypatch, "--prompts", prompts, "--min-ssim", "0.5").exit_code == 0
    assert read_presets(toy.artifact).calibration == TABLE
    assert read_presets(toy.artifact).tuned is not None


def test_a_place_that_cannot_be_written_is_known_before_measuring(
    toy: Toy, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = presets_path(toy.artifact.root).with_name("art.presets.json.lock")
    lock.mkdir()
    monkeypatch.setattr(cli, "tuned", lambda *_: pytest.fail("it measured"))
    monkeypatch.setattr(cli, "calibrated", lambda *_: pytest.fail("it measured"))
    for command, words in ((cli.tune, ("--min-ssim", "0.5")), (cli.calibrate, ())):
        with pytest.raises(ArtifactError, match="cannot be written: Is a directory"):
            run(toy, monkeypatch, "--prompts", prompts, *words, command=command)


def test_the_outcome_is_said_though_it_cannot_be_written(toy: Toy, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise ArtifactError("no space left")

    monkeypatch.setattr(cli, "update_presets", full)
    for command, words, said in ((cli.tune, ("--min-ssim", "0.5"), "tuned: "), (cli.calibrate, (), "1.0000 ")):
        result = run(toy, monkeypatch, "--prompts", prompts, *words, command=command, catch_exceptions=True)
        assert isinstance(result.exception, ArtifactError)
        assert result.stdout.startswith(said)


def test_other_prompts_may_check_and_be_held_out(toy: Toy, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out, check = tmp_path / "others.txt", tmp_path / "check.txt"
    held_out.write_text("green house\ndog\n")
    words = ("--prompts", prompts, "--held-out", str(held_out), "--min-ssim", "0.5")

    def counted(*more: str) -> list[int]:
        assert run(toy, monkeypatch, *words, *more).exit_code == 0
        tuned = read_presets(toy.artifact).tuned
        assert tuned is not None
        return [tuned.record[part]["requests"] for part in ("searched", "checked", "held_out")]

    assert counted() == [4, 3, 2]  # "dog" is not searched on
    check.write_text("dog\nbig cat\ngreen cat\n")
    assert counted("--check", str(check)) == [6, 2, 2]  # nor is "big cat" now; "dog" is held out and does not check


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ((), RequestError, "give --min-ssim or --min-psnr, one of them"),
        (("--min-ssim", "0.9", "--min-psnr", "30"), RequestError, "give --min-ssim or --min-psnr, one of them"),
        (("--min-ssim", "1.5"), SpecError, "the least ssim is 1.5, expected a number above 0 and at most 1"),
        (("--min-psnr", "0"), SpecError, "the least psnr is 0.0, expected a number above 0 and at most 60"),
        (("--min-psnr", "nan"), SpecError, "the least psnr is nan"),
        (
            ("--min-ssim", "1"),
            RequestError,
            r"no setting of \d+ keeps ssim 1 \(5th percentile of 3 prompts, every one of 3 that check",
        ),
    ],
)
def test_what_cannot_be_tuned(
    toy: Toy, prompts: str, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(toy, monkeypatch, "--prompts", prompts, *options)
    assert not presets_path(toy.artifact.root).exists()


def test_too_few_prompts(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("cat\ndog\ntree\n")
    with pytest.raises(RequestError, match="3 prompts leave 2 to search on, 1 to check on and 0 held out; give four or more"):
        run(toy, monkeypatch, "--prompts", str(file), "--min-ssim", "0.9")
    with pytest.raises(RequestError, match="3 prompts leave 0 to search on, 0 to check on and 3 held out"):
        run(toy, monkeypatch, "--prompts", str(file), "--held-out", str(file), "--min-ssim", "0.9")


def test_slower_by_the_clock_is_not_written(toy: Toy, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"its loop takes 1\.250 of an uncached one's time by the clock"):
        run(toy, monkeypatch, "--prompts", prompts, "--min-ssim", "0.5", wall=1.25)
    assert not presets_path(toy.artifact.root).exists()


def test_the_clock_ratio(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cached loop over the mean of the uncached ones before and after it; the median of those."""
    requests, cache = Requests(toy.pipe, PROMPTS[:3], STEPS, 0), Cache(Interval(3, 3))
    times = iter([4.0, 1.0, 4.0, 2.0, 3.0, 4.0, 1.0, 1.0, 3.0])
    asked: list[Any] = []

    class Timed:
        def __init__(self) -> None:
            self.seconds = next(times)

    monkeypatch.setattr(requests, "draw", lambda index, which=None: (asked.append((index, which)), Timed())[1])
    assert tune.wall_ratio(requests, cache) == pytest.approx(0.5)
    assert asked == [(i, which) for i in range(3) for which in (None, cache, None)]


def test_the_record_is_json(toy: Toy, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(toy, monkeypatch, "--prompts", prompts, "--min-ssim", "0.5")
    data = json.loads(presets_path(toy.artifact.root).read_bytes())
    assert data["tuned"]["record"]["wall_ratio"] == 0.5
    assert 0 < data["tuned"]["record"]["cost_ratio"] < 1
