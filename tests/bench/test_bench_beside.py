"""A base beside ours: which installation it is, by whom its peers are made and run, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.bench.fake_peers import TINY, FakePeer
from vitrify.bench import beside
from vitrify.bench import run as run_module
from vitrify.bench.beside import Base, check_same_cases, installed
from vitrify.bench.machine import this_machine
from vitrify.bench.measure import Pace
from vitrify.bench.peers.registry import PeerSpec
from vitrify.bench.prepare import GivenModel, Prepared
from vitrify.bench.run import Plan, prepare_cases, run_cases
from vitrify.engine.errors import BackendError, RequestError

OURS = GivenModel(Path("new.vitrify"), Path("source"))
OLDER = GivenModel(Path("old.vitrify"), Path("source"))


class FakeProcess(FakePeer):
    """Started under a name, for what was prepared, by an interpreter."""

    started: ClassVar[list[tuple[str, Path, str]]] = []

    def __init__(self, spec: PeerSpec, prepared: Prepared, scratch: Path, *, threads: int, python: str) -> None:  # noqa: ARG002
        super().__init__(seconds=(0.2 if python == "older" else 0.1,))
        self.started.append((spec.name, prepared.artifact, python))

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked to be prepared: (cache, builds, given, interpreter). An artifact lies where it was asked for."""
    asked: list[tuple[Any, ...]] = []

    def prepare(_one: Any, cache: Path, _sample: Path, **given: Any) -> Prepared:
        python = given.get("python", sys.executable)
        asked.append((cache, tuple(given["builds"]), given["given"], python))
        artifact = cache / "artifact"
        artifact.mkdir(parents=True, exist_ok=True)
        (artifact / "weights.safetensors").write_bytes(b"w" * (7 if python == "older" else 5))
        return Prepared(cache, artifact)

    FakeProcess.started = []
    monkeypatch.setattr(run_module, "prepare", prepare)
    monkeypatch.setattr(run_module, "PeerProcess", FakeProcess)
    monkeypatch.setattr(run_module, "absence", lambda _spec: None)
    return asked


def plan(cache: Path, *peers: str) -> Plan:
    return Plan(peers, (), Pace(2), loop_runs=0, threads=1, cache=cache, sample=cache, limits=False)


def test_the_base_is_prepared_and_run_by_its_own_interpreter(tmp_path: Path, prepared: list[tuple[Any, ...]]) -> None:
    base = Base("older", OLDER)
    ours, of_base = run_cases([TINY], plan(tmp_path, "vitrify-bf16", "eager-bf16"), given=OURS, base=base)
    assert prepared == [
        (tmp_path, ("vitrify-bf16", "plain"), OURS, sys.executable),
        (tmp_path / "base", ("vitrify-bf16",), OLDER, "older"),
    ]
    here, there = tmp_path / "artifact", tmp_path / "base" / "artifact"
    assert FakeProcess.started == [
        ("vitrify", here, sys.executable),
        ("base vitrify", there, "older"),
        ("vitrify-bf16", here, sys.executable),
        ("base vitrify-bf16", there, "older"),
        ("plain-ort", here, sys.executable),
        ("eager-fp32", here, sys.executable),
        ("eager-bf16", here, sys.executable),
    ]
    assert of_base is not None
    (now,), (old,) = ours.cases, of_base.cases
    assert now.peers["vitrify"].over(old.peers["vitrify"]).median == pytest.approx(0.5)
    assert now.peers["vitrify-bf16"].over(old.peers["vitrify-bf16"]).median == pytest.approx(0.5)
    weights = "artifact bytes, weights"
    assert (now.counts["vitrify"][weights], old.counts["vitrify"][weights]) == (5, 7)


def test_a_base_without_an_artifact_of_its_own_runs_ours(tmp_path: Path, prepared: list[tuple[Any, ...]]) -> None:
    prepare_cases([TINY], plan(tmp_path), given=OURS, base=Base("older"))
    assert prepared[1] == (tmp_path / "base", (), OURS, "older")


def test_without_a_base_there_is_no_second_result(tmp_path: Path, prepared: list[tuple[Any, ...]]) -> None:
    assert run_cases([TINY], plan(tmp_path))[1] is None
    assert len(prepared) == 1


def test_what_the_base_cannot_prepare_is_said_to_be_the_base_s(
    tmp_path: Path, prepared: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run_module.prepare

    def prepare(*given: Any, **options: Any) -> Prepared:
        if options.get("python") == "older":
            raise BackendError("KeyError: 'vitrify-int8'")
        return right(*given, **options)

    monkeypatch.setattr(run_module, "prepare", prepare)
    with pytest.raises(BackendError, match=r"the base could not prepare vitrify-int8 by older.*KeyError"):
        run_cases([TINY], plan(tmp_path, "vitrify-int8"), base=Base("older"))
    assert len(prepared) == 1


def test_an_installation_is_known_by_its_code() -> None:
    found = installed()
    assert found.folder == Path(beside.__file__).parents[1] / "engine"
    assert found == installed(sys.executable)
    assert {"numpy", "torch"} <= found.machine.packages.keys()


def stub(folder: Path, said: str) -> str:
    """An interpreter that answers `said` to whatever it is asked."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\necho '{said}'\n")
    python.chmod(0o755)
    return str(python)


def test_an_installation_that_describes_its_machine_in_another_way_is_refused(tmp_path: Path) -> None:
    said = json.dumps({"machine": {"cpu": "a processor"}, "digest": "", "folder": ""})
    with pytest.raises(BackendError, match="must have vitrify with the extras cpu and export, but: machine: missing fields"):
        installed(stub(tmp_path, said))


def test_an_installation_that_lacks_an_engine_or_the_compiler_is_refused(tmp_path: Path) -> None:
    machine = replace(this_machine(), packages={"numpy": "2.4"}).to_json()
    python = stub(tmp_path, json.dumps({"machine": machine, "digest": "", "folder": ""}))
    with pytest.raises(BackendError, match=r"extras cpu and export, but lacks diffusers, onnx, torch, onnxruntime"):
        installed(python)
    with pytest.raises(BackendError, match=r"extra cpu, but lacks onnxruntime"):
        installed(python, compiles=False)


def test_artifacts_of_other_sizes_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {Path("new"): TINY, Path("old"): replace(TINY, rows=5), Path("same"): TINY}
    monkeypatch.setattr(beside, "artifact_cases", lambda folder, _prompts: (cases[folder], cases[folder]))
    check_same_cases(Path("new"), Path("same"))
    with pytest.raises(RequestError, match="old: another case than that of new: rows: 5 there, 3 here"):
        check_same_cases(Path("new"), Path("old"))
