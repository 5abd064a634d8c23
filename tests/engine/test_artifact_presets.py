"""The presets file beside an artifact: there and back, bound to its artifact, atomic, and trusted in nothing."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.toy_flux import make_artifact
from vitrify.engine.artifact import Artifact, disk
from vitrify.engine.artifact.presets import (
    Calibration,
    Presets,
    Tuned,
    check_writable,
    presets_path,
    read_presets,
    update_presets,
    write_presets,
)
from vitrify.engine.cache_policy import Cache, Guards, Mask, Taylor
from vitrify.engine.errors import ArtifactError

CALIBRATION = Calibration((1.0, 0.875, 1.0625), 12)
TUNED = Tuned(Cache(Mask((True, False, True)), Taylor(1, "output"), Guards(last_steps=1)), 3, {"bound": {"ssim": 0.95}})
PRESETS = Presets(CALIBRATION, TUNED)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "art")


def test_there_and_back(artifact: Artifact) -> None:
    assert read_presets(artifact) == Presets()
    for presets in (PRESETS, Presets(CALIBRATION), Presets(None, TUNED), Presets()):
        path = write_presets(artifact, presets)
        assert path == artifact.root.parent / "art.presets.json"
        assert read_presets(artifact) == presets
    assert sorted(p.name for p in artifact.root.parent.iterdir()) == ["art", "art.presets.json"]


def test_bytes_are_canonical(artifact: Artifact) -> None:
    path = write_presets(artifact, PRESETS)
    first = path.read_bytes()
    assert first == json.dumps(json.loads(first), sort_keys=True, separators=(",", ":")).encode() + b"\n"
    write_presets(artifact, read_presets(artifact))
    assert path.read_bytes() == first


def test_a_moved_artifact_leaves_its_presets(artifact: Artifact) -> None:
    write_presets(artifact, PRESETS)
    there = replace(artifact, root=artifact.root.with_name("elsewhere"))
    shutil.move(artifact.root, there.root)
    assert read_presets(there) == Presets()
    shutil.move(presets_path(artifact.root), presets_path(there.root))
    assert read_presets(there) == PRESETS


def test_through_a_link_they_are_the_artifacts_own(artifact: Artifact, tmp_path: Path) -> None:
    write_presets(artifact, PRESETS)
    link = tmp_path / "deep" / "link"
    link.parent.mkdir()
    link.symlink_to(artifact.root)
    assert read_presets(replace(artifact, root=link)) == PRESETS


def test_another_artifacts_presets(artifact: Artifact) -> None:
    write_presets(artifact, PRESETS)
    with pytest.raises(ArtifactError, match=f"measured on artifact {artifact.id}, but .*art is {'1' * 64}; measure again"):
        read_presets(replace(artifact, id="1" * 64))


def test_updates_of_two_parts_keep_each_other(artifact: Artifact) -> None:
    """The second comes while the first is between reading and writing: it waits, and changes what the first has written."""
    between, second_begun = threading.Event(), threading.Event()

    def calibrated(known: Presets) -> Presets:
        between.set()
        assert second_begun.wait(20)
        return replace(known, calibration=CALIBRATION)

    def tuned(known: Presets) -> Presets:
        seen.append(known)
        return replace(known, tuned=TUNED)

    seen: list[Presets] = []
    first = threading.Thread(target=update_presets, args=(artifact, calibrated))
    second = threading.Thread(target=update_presets, args=(artifact, tuned))
    first.start()
    assert between.wait(20)
    second.start()
    second.join(0.1)
    assert second.is_alive()
    assert seen == []
    second_begun.set()
    first.join(20)
    second.join(20)
    assert seen == [Presets(CALIBRATION)]
    assert read_presets(artifact) == PRESETS
    assert sorted(p.name for p in artifact.root.parent.iterdir()) == ["art", "art.presets.json"]


def test_a_place_that_cannot_be_written_is_known_beforehand(artifact: Artifact) -> None:
    check_writable(artifact)
    assert sorted(p.name for p in artifact.root.parent.iterdir()) == ["art"]
    presets_path(artifact.root).with_name("art.presets.json.lock").mkdir()  # what not even root can open to write
    for refused in (lambda: check_writable(artifact), lambda: update_presets(artifact, lambda known: known)):
        with pytest.raises(ArtifactError, match=r"art\.presets\.json cannot be written: Is a directory; the folder that"):
            refused()


def whole(artifact: Artifact) -> dict[str, Any]:
    write_presets(artifact, PRESETS)
    data: dict[str, Any] = json.loads(presets_path(artifact.root).read_bytes())
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "version is 2, expected 1"),
        (lambda d: d.update(more=1), "the file: got ['artifact', 'calibration', 'more', "),
        (lambda d: d.update(artifact=["0" * 64]), "measured on artifact ['000"),
        (lambda d: d.update(calibration=[1]), "calibration: got list, expected"),
        (lambda d: d["calibration"].update(ratios=[]), "calibration.ratios: expected a list of 1 to 10000 numbers"),
        (lambda d: d["calibration"].update(ratios=[1] * 10_001), "calibration.ratios: expected a list of 1 to 10000 numbers"),
        (lambda d: d["calibration"].update(ratios=[1, -1]), "Magnitude.ratios[1]=-1: expected"),
        (lambda d: d["calibration"].update(requests=True), "requests=True: expected a whole number"),
        (lambda d: d["tuned"].update(steps=0), "steps=0: expected a whole number"),
        (lambda d: d["tuned"].update(record=None), "tuned.record: got a NoneType, expected an object"),
        (lambda d: d["tuned"]["cache"]["decision"].update(kind="system"), "tuned.cache.decision.kind: got 'system'"),
    ],
)
def test_hostile_content(artifact: Artifact, change: Any, message: str) -> None:
    data = whole(artifact)
    change(data)
    presets_path(artifact.root).write_text(json.dumps(data))
    with pytest.raises(ArtifactError) as caught:
        read_presets(artifact)
    assert message in str(caught.value)
    assert str(presets_path(artifact.root)) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "got a list, expected an object"),
        (b'{"version":1,"version":1}', "stands twice"),
        (b'{"version":NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b" " * (2**20 + 1), "larger than 1048576 bytes"),
    ],
)
def test_hostile_bytes(artifact: Artifact, data: bytes, message: str) -> None:
    presets_path(artifact.root).write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        read_presets(artifact)


def test_a_link_or_a_folder_is_no_presets_file(artifact: Artifact, tmp_path: Path) -> None:
    whole(artifact)
    path = presets_path(artifact.root)
    path.rename(tmp_path / "real.json")
    path.symlink_to(tmp_path / "real.json")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_presets(artifact)
    path.unlink()
    path.mkdir()
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_presets(artifact)


def test_a_failed_write_leaves_the_old_file(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole(artifact)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write", "sync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, full)
            with pytest.raises(ArtifactError, match="cannot be written: No space left"):
                write_presets(artifact, Presets())
        assert json.loads(presets_path(artifact.root).read_bytes()) == before
    assert sorted(p.name for p in artifact.root.parent.iterdir()) == ["art", "art.presets.json"]
