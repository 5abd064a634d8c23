"""Peers and jobs in real processes: answers, failures, noise on standard output, memory as the system counts it."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bench.fake_peers import TINY
from vitrify.bench.cache import built, code_digest
from vitrify.bench.inputs import draw_inputs
from vitrify.bench.jobs import job_environment, run_job
from vitrify.bench.peers.client import PeerProcess
from vitrify.bench.peers.registry import PeerSpec
from vitrify.bench.peers.worker import make_peer, serve
from vitrify.bench.prepare import Prepared
from vitrify.bench.process_memory import memory_bytes, watch
from vitrify.engine.errors import BackendError

PEER = """
import os, sys
import numpy as np
from vitrify.bench.peers.peer import Peer

class Loud(Peer):
    def __init__(self, *, factor, **given):
        super().__init__(**given)
        self.factor = factor
    def open(self):
        print("a library talks")
        os.write(1, b"so does C code\\n")
    def give(self, inputs):
        self.inputs = inputs
    def predict(self, step):
        if step == 9:
            raise ValueError("no step nine")
        if step == 8:
            sys.stderr.write("last words\\n")
            sys.stderr.flush()
            os._exit(3)
        return self.inputs.latents * self.factor
    def counts(self):
        return {"calls": 7}
    def calls(self):
        def call(index):
            self.clock.add("half", index / 2)
        return {"step": call}
"""


@pytest.fixture
def loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PeerSpec:
    (tmp_path / "loud_peer.py").write_text(PEER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return PeerSpec("loud", "for tests", "loud_peer:Loud", "fp32", 1e-4, {"factor": 2})


def test_a_peer_answers_through_its_process(tmp_path: Path, loud: PeerSpec) -> None:
    inputs = draw_inputs(TINY, 1)
    inputs.save(tmp_path / "inputs.npz")
    with PeerProcess(loud, Prepared(tmp_path, tmp_path), tmp_path, threads=1) as peer:
        peer.open()
        peer.give(tmp_path / "inputs.npz")
        np.testing.assert_array_equal(peer.predict(0), inputs.latents * 2)
        timing = peer.time("step", 3)
        assert timing.parts == {"half": (0.0, 0.5, 1.0)}
        assert len(timing.seconds) == 3
        assert peer.time("step", 2, 4).parts == {"half": (2.0, 2.0)}
        assert peer.counts() == {"calls": 7}
        with pytest.raises(BackendError, match="no step nine"):
            peer.predict(9)
        # A failed question leaves the peer alive; a dead peer is reported with its last words.
        assert peer.time("step", 1).seconds
        with pytest.raises(BackendError, match="last words"):
            peer.predict(8)
        with pytest.raises(BackendError, match="died"):
            peer.time("step", 1)


def test_a_peer_that_cannot_start_is_reported(tmp_path: Path) -> None:
    spec = PeerSpec("ghost", "for tests", "no_such_module_here:Peer", "fp32", 1e-4, {})
    with (
        PeerProcess(spec, Prepared(tmp_path, tmp_path), tmp_path, threads=1) as peer,
        pytest.raises(BackendError, match="no_such_module_here"),
    ):
        peer.open()


def test_the_worker_ends_at_quit_and_answers_every_line_before(tmp_path: Path) -> None:
    arguments = {"source": str(tmp_path), "artifact": str(tmp_path), "builds": {}, "threads": 1}
    peer = make_peer("vitrify.bench.peers.plain_ort:PlainOrt", arguments)
    answers = io.StringIO()
    requests = [{"op": "open"}, {"op": "unknown"}, {"op": "quit"}, {"op": "open"}]
    serve(peer, io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(lines) == 2
    assert "not prepared" in lines[0]["error"]
    assert "unknown" in lines[1]["error"]


def test_unknown_options_of_a_peer_are_refused(tmp_path: Path) -> None:
    arguments = {"source": str(tmp_path), "artifact": str(tmp_path), "builds": {}, "threads": 1, "speed": 11}
    with pytest.raises(TypeError, match="speed"):
        make_peer("vitrify.bench.peers.plain_ort:PlainOrt", arguments)


def test_jobs_answer_with_json_or_with_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small_job.py").write_text(
        "import json, sys\n"
        "given = json.loads(sys.argv[1])\n"
        "print('chatter')\n"
        "if given['number'] < 0: sys.exit('negative')\n"
        "print(json.dumps({'twice': 2 * given['number']}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_job("small_job", {"number": 4}, threads=1) == {"twice": 8}
    with pytest.raises(BackendError, match=r"exit code 1: negative"):
        run_job("small_job", {"number": -1}, threads=1)


def test_the_environment_holds_every_pool_to_the_threads() -> None:
    environment = job_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"


def test_memory_of_a_process_and_its_children_is_seen() -> None:
    # The child holds 60 MiB, its parent 30; each says when.
    child = "import sys, time; b = bytearray(60 << 20); sys.stderr.write('child\\n'); sys.stderr.flush(); time.sleep(0.5)"
    parent = (
        f"import subprocess, sys; b = bytearray(30 << 20); subprocess.run([sys.executable, '-c', {child!r}]); "
        "sys.stderr.write('after\\n'); sys.exit(7)"
    )
    watched = watch([sys.executable, "-c", parent], environment=os.environ)
    assert watched.exit_code == 7
    assert 90 << 20 < watched.peak_anonymous_bytes < 200 << 20
    assert watched.peak_mapped_bytes > 0
    assert [phase.name for phase in watched.phases[:2]] == ["start", "child"]
    assert watched.phases[1].seconds >= 0.4
    assert watched.phases[1].peak_anonymous_bytes > 90 << 20
    assert watched.said.splitlines() == ["child", "after"]
    assert watched.seconds >= sum(phase.seconds for phase in watched.phases) - 0.1


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert memory_bytes(2**22 - 3) == (0, 0)
    assert memory_bytes(os.getpid())[0] > 10 << 20


def test_the_cache_builds_once_and_drops_the_old(tmp_path: Path) -> None:
    builds: list[str] = []

    def build(folder: Path) -> None:
        builds.append(folder.name)
        folder.mkdir()
        (folder / "made").write_text(str(len(builds)))

    cache = tmp_path / "cache"
    first = built(cache, "thing", {"key": 1}, build)
    other = built(cache, "thing-b", {"key": 1}, build)
    assert built(cache, "thing", {"key": 1}, build) == first
    assert len(builds) == 2
    second = built(cache, "thing", {"key": 2}, build)
    assert (second / "made").read_text() == "3"
    assert not first.exists()
    assert other.exists()


def test_a_failed_build_leaves_nothing_to_be_found(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        raise OSError("full")

    def build(folder: Path) -> None:
        folder.mkdir()

    with pytest.raises(OSError, match="full"):
        built(tmp_path, "thing", {}, fail)
    assert built(tmp_path, "thing", {}, build).is_dir()
    assert len(list(tmp_path.iterdir())) == 1


def test_what_another_process_is_building_is_left_alone(tmp_path: Path) -> None:
    digest = "0123456789abcdef"
    living, dead = tmp_path / f"thing-{digest}.{os.getppid()}", tmp_path / f"thing-{digest}.{2**22 - 3}"
    living.mkdir()
    dead.mkdir()
    built(tmp_path, "thing", {}, lambda folder: folder.mkdir())
    assert living.exists()
    assert not dead.exists()


def test_the_quicker_of_two_builds_stays(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        folder.mkdir()
        place = folder.with_suffix("")
        place.mkdir()
        (place / "first").touch()

    place = built(tmp_path, "thing", {}, build)
    assert (place / "first").exists()
    assert list(tmp_path.iterdir()) == [place]


def test_code_digests_tell_packages_apart() -> None:
    assert code_digest("vitrify.engine") == code_digest("vitrify.engine")
    assert code_digest("vitrify.engine") != code_digest("vitrify.bench")
    assert code_digest("vitrify.bench.measure") != code_digest("vitrify.bench.cases")
