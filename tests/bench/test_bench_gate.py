"""What `compare` is for, in real processes on the sample: ten unchanged runs pass; a slower op, a lost cache hit and a changed
picture each fail, ten times of ten. Leave the machine alone meanwhile; `-k` with some of the numbers takes a slice of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vitrify.bench.beside import apart
from vitrify.bench.cases import CASES, Case
from vitrify.bench.compare import Verdict, compare
from vitrify.bench.document import Document
from vitrify.bench.jobs import available_cpus
from vitrify.bench.machine import this_machine
from vitrify.bench.measure import Pace
from vitrify.bench.peers.client import PeerProcess
from vitrify.bench.peers.registry import ANCHORS, OURS, REFERENCE, PeerSpec, base_of, cached_peer, peer_specs
from vitrify.bench.prepare import Prepared, prepare
from vitrify.bench.results import RunResult
from vitrify.bench.run_case import measure_case

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
TIMES = 10
THREADS = available_cpus()
STEP_PACE = Pace(20, spread=0.02, most=150)
PICTURE_PACE = Pace(6, spread=0.02, most=16)
# Where a count or a picture is to fail, whatever the time.
SHORT = Pace(2, spread=1.0, most=2)

# Twelve steps of which seven are computed, and the same with one hit less.
MASK, MASK_WITHOUT_A_HIT = "mask:110101010101", "mask:110101110101"

# Peers that are ours with one thing changed, as a commit might.
CHANGED = """
import time
import numpy as np
from vitrify.bench.peers.our_pictures import OurPictures
from vitrify.bench.peers.ours import Ours

class SlowOp(Ours):
    # Spins inside the step until it has taken a tenth longer than it would have.
    def _step(self, index):
        start = time.perf_counter()
        super()._step(index)
        end = time.perf_counter()
        while time.perf_counter() - end < 0.1 * (end - start):
            pass

class OtherPicture(OurPictures):
    # Three levels in a corner of 8 x 8 pixels.
    def _drawn(self, index):
        picture = super()._drawn(index).copy()
        corner = picture[:8, :8]
        corner += np.where(corner < 128, 3, -3).astype(np.int8).view(np.uint8)
        return picture
"""

STEP = replace(CASES["sample"], name="step", model="sample")
PICTURES = replace(CASES["sample-pictures"], name="pictures", steps=12, prompts=("red apple", "rocket"))


class Bench:
    """Runs of one case with the peers that a gate needs; the anchor and the reference keep their processes."""

    def __init__(self, case: Case, prepared: Prepared, scratch: Path, kept: Mapping[str, PeerProcess]) -> None:
        self._case = case
        self._prepared = prepared
        self._scratch = scratch
        self._kept = kept

    def run(self, base: Sequence[PeerSpec], new: Sequence[PeerSpec], pace: Pace) -> list[Verdict]:
        """What fails in a run of `new` beside `base`, all opened anew."""
        pairs = zip(new, (replace(spec, name=base_of(spec.name)) for spec in base), strict=True)
        ours = {spec.name: spec for pair in pairs for spec in pair}
        with contextlib.ExitStack() as stack:
            peers = {}
            for name, spec in ours.items():
                peers[name] = stack.enter_context(PeerProcess(spec, self._prepared, self._scratch, threads=THREADS))
                peers[name].open()
            found = measure_case(
                self._case,
                {**peers, **self._kept},
                {**{name: spec.tolerance for name, spec in ours.items()}, **dict.fromkeys(self._kept, 1e-4)},
                self._scratch,
                pace=pace,
                timed_peers=(*peers, ANCHORS[self._case.kind]),
            )
        assert found.wrong == ()
        after, before = (RunResult(THREADS, {}, (one,)) for one in apart(found))
        verdicts = compare(
            Document.of_today(this_machine(), before, "one run", is_base=True),
            Document.of_today(this_machine(), after, "one run"),
        )
        return [verdict for verdict in verdicts if not verdict.passed]


@contextlib.contextmanager
def opened(case: Case, folder: Path) -> Iterator[Bench]:
    cache = Path(os.environ.get("VITRIFY_BENCH_CACHE", folder / "cache"))
    specs = {name: spec for name, spec in peer_specs(case.kind, ()).items() if name != OURS}
    builds = [build for spec in specs.values() for build in spec.builds]
    prepared = prepare(case, cache.resolve(), ROOT / "examples" / "emoji_flux", builds=builds, threads=THREADS)
    with contextlib.ExitStack() as stack:
        kept = {}
        for name in (ANCHORS[case.kind], REFERENCE):
            kept[name] = kept.get(name) or stack.enter_context(PeerProcess(specs[name], prepared, folder, threads=THREADS))
        for client in kept.values():
            client.open()
        yield Bench(case, prepared, folder, kept)


@pytest.fixture
def changed_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "changed_peers.py").write_text(CHANGED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def step_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with opened(STEP, tmp_path_factory.mktemp("step")) as bench:
        yield bench


@pytest.fixture(scope="module")
def picture_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with opened(PICTURES, tmp_path_factory.mktemp("pictures")) as bench:
        yield bench


@pytest.mark.usefixtures("changed_peers")
@pytest.mark.parametrize("number", range(TIMES))
def test_a_step_a_tenth_slower_fails_and_the_same_step_passes(step_bench: Bench, number: int) -> None:  # noqa: ARG001
    ours = peer_specs("step", ())[OURS]
    assert step_bench.run([ours], [ours], STEP_PACE) == []
    found = step_bench.run([ours], [replace(ours, factory="changed_peers:SlowOp")], STEP_PACE)
    assert [verdict.gate for verdict in found] == ["time"]


@pytest.mark.usefixtures("changed_peers")
@pytest.mark.parametrize("number", range(TIMES))
def test_a_lost_cache_hit_and_a_changed_picture_fail_and_the_same_pictures_pass(
    picture_bench: Bench,
    number: int,  # noqa: ARG001
) -> None:
    ours = peer_specs("picture", ())[OURS]
    cached = cached_peer(MASK)
    recomputing = replace(cached_peer(MASK_WITHOUT_A_HIT), name=cached.name)
    redrawn = replace(ours, factory="changed_peers:OtherPicture", tolerance=0.1)
    assert picture_bench.run([ours, cached], [ours, cached], PICTURE_PACE) == []
    lost = picture_bench.run([ours, cached], [ours, recomputing], SHORT)
    assert f"{cached.name}: computed steps" in {verdict.what for verdict in lost if verdict.gate == "count"}
    other = picture_bench.run([ours, cached], [redrawn, cached], SHORT)
    assert {verdict.what for verdict in other if verdict.gate == "picture"} == {
        f"{OURS}, picture {index + 1}" for index in range(len(PICTURES.prompts))
    }
