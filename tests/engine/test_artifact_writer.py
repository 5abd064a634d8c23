"""Writing an artifact: all or nothing, whatever fails and whenever the writer dies."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.artifact_samples import STEP, WEIGHTS, build, fill, sample_manifest, weights_bytes
from vitrify.engine.artifact import Artifact, ArtifactWriter, disk
from vitrify.engine.artifact import writer as writer_module
from vitrify.engine.errors import ArtifactError

DISK_CALLS = ("create", "write", "sync", "sync_folder", "make_folder", "rename")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`; the sample's source file aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "source.safetensors"
    }


class Failing:
    """Stands in for one function of `disk`: the n-th call fails (or does what `act` does), every other is the real one."""

    def __init__(self, real: Callable[..., Any], nth: int, act: Callable[[], None]) -> None:
        self.real, self.left, self.act, self.calls = real, nth, act, 0

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        self.calls += 1
        if self.left == 0:
            self.act()
        return self.real(*args)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], object]) -> int:
    with monkeypatch.context() as patch:
        counter = Failing(getattr(disk, name), -1, full_disk)
        patch.setattr(disk, name, counter)
        work()
    return counter.calls


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process; what ended it, as `os.waitstatus_to_exitcode` says."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_two_artifacts_of_one_content_are_byte_for_byte_the_same(tmp_path: Path) -> None:
    for folder in ("one", "two/deeper"):
        (tmp_path / folder).mkdir(parents=True)
        build(tmp_path / folder / "art")
    assert snapshot(tmp_path / "one" / "art") == snapshot(tmp_path / "two" / "deeper" / "art")


def test_nothing_is_visible_before_commit_and_nothing_but_the_artifact_after(tmp_path: Path) -> None:
    out = tmp_path / "art"
    with ArtifactWriter(out) as writer:
        fill(writer)
        assert not out.exists()
        artifact_id = writer.commit(sample_manifest())
        assert Artifact.open(out).id == artifact_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "source.safetensors"]
    assert (out / "manifest.sha256").read_text() == artifact_id + "\n"


def test_modes_follow_the_umask_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(weights_bytes())
    source.chmod(0o400)
    before = os.umask(0o027)
    try:
        build(tmp_path / "art")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "art", *(tmp_path / "art").rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o750}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o640}


def test_copy_file_is_exact_in_chunks_and_shows_each_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "CHUNK_BYTES", 7)
    source, seen = tmp_path / "source", bytearray()
    for size in (0, 1, 6, 7, 8, 50):
        data = bytes(range(size))
        source.write_bytes(data)
        seen.clear()
        with ArtifactWriter(tmp_path / "art") as writer:
            entry = writer.copy_file("a/b/c", source, on_chunk=seen.extend)
            assert (entry.sha256, entry.size) == (hashlib.sha256(data).hexdigest(), size)
            assert (writer.folder / "a" / "b" / "c").read_bytes() == data == bytes(seen)


def test_what_on_chunk_raises_passes_through_and_nothing_is_left(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)

    def refuse(chunk: memoryview) -> None:
        raise KeyError(len(chunk))

    with pytest.raises(KeyError, match="100"), ArtifactWriter(tmp_path / "art") as writer:
        writer.copy_file("x", source, on_chunk=refuse)
    assert snapshot(tmp_path) == {"source": b"x" * 100}


def test_a_missing_source_and_one_that_shrinks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)
    monkeypatch.setattr(writer_module, "CHUNK_BYTES", 10)
    with ArtifactWriter(tmp_path / "art") as writer:
        with pytest.raises(ArtifactError, match="none: cannot be read: No such file"):
            writer.copy_file("x", tmp_path / "none")
        with pytest.raises(ArtifactError, match="changed while it was read: got 20 bytes, expected 100"):
            writer.copy_file("x", source, on_chunk=lambda _: os.truncate(source, 20))


def test_an_interrupted_stream_does_not_count(tmp_path: Path) -> None:
    def interrupted(writer: ArtifactWriter) -> None:
        with writer.open_stream(STEP) as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with ArtifactWriter(tmp_path / "art") as writer:
        with pytest.raises(ZeroDivisionError):
            interrupted(writer)
        fill(writer)
        writer.commit(sample_manifest())
    Artifact.open(tmp_path / "art")


@pytest.mark.parametrize("name", DISK_CALLS)
@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_at_any_call_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, force: bool
) -> None:
    out, twin = tmp_path / "new" / "art", tmp_path / "twin" / "art"
    if force:
        build(out)
        build(twin)
    calls = count_calls(monkeypatch, name, lambda: build(twin, force=force))
    assert calls >= 1
    before = snapshot(tmp_path)
    for nth in range(1, calls + 1):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, Failing(getattr(disk, name), nth, full_disk))
            with pytest.raises(
                ArtifactError, match=r"(?s)cannot be written: No space left.*nothing was written to .*art; free"
            ) as caught:
                build(out, force=force)
        assert str(out) in str(caught.value)
        if not force:
            # The sample's own source file keeps a new parent folder from being removed.
            (out.parent / "source.safetensors").unlink(missing_ok=True)
            if out.parent.is_dir():
                out.parent.rmdir()
        assert snapshot(tmp_path) == before
    build(out, force=force)
    Artifact.open(out, verify="full")


def test_each_rename_of_a_replacement_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "art")
    before = snapshot(tmp_path)
    for name, nth in (("rename", 1), ("rename", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, Failing(getattr(disk, name), nth, full_disk))
            with pytest.raises(ArtifactError, match="nothing was written"):
                build(tmp_path / "art", force=True)
        assert snapshot(tmp_path) == before


def test_a_short_write_is_continued() -> None:
    class Stuttering:
        """A handle whose writes take at most three bytes, then none at all."""

        def __init__(self, room: int) -> None:
            self.data, self.room = b"", room

        def write(self, data: memoryview) -> int:
            taken = bytes(data[: min(3, self.room)])
            self.data, self.room = self.data + taken, self.room - len(taken)
            return len(taken)

    handle: Any = Stuttering(100)
    disk.write(handle, b"0123456789")
    assert handle.data == b"0123456789"
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.write(Stuttering(5), b"0123456789")  # type: ignore[arg-type]


def test_any_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    def raising(error: type[BaseException]) -> None:
        with ArtifactWriter(tmp_path / "new" / "deep" / "art") as writer:
            writer.write_bytes("a/b", b"x")
            raise error

    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            raising(error)
        assert list(tmp_path.iterdir()) == []
    with ArtifactWriter(tmp_path / "new" / "deep" / "art") as writer:
        writer.write_bytes("a/b", b"x")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_force_replaces_artifacts_only(tmp_path: Path) -> None:
    art = tmp_path / "art"
    first = build(art)
    with pytest.raises(ArtifactError, match="already there; pass --force"):
        build(art)
    (art / "more").mkdir()
    assert build(art, force=True) == first
    Artifact.open(art)
    for precious in (tmp_path / "documents", tmp_path / "file"):
        if precious.name == "file":
            precious.write_bytes(b"kept")
        else:
            precious.mkdir()
            (precious / "thesis.txt").write_bytes(b"kept")
        before = snapshot(tmp_path)
        with pytest.raises(ArtifactError, match="no artifact, so --force will not delete it"):
            build(precious, force=True)
        assert snapshot(tmp_path) == before


def test_force_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    build(tmp_path / "real" / "art")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "art")
    build(tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    Artifact.open(tmp_path / "link", verify="full")


def test_force_replaces_a_read_only_artifact(tmp_path: Path) -> None:
    build(tmp_path / "art")
    for path in [tmp_path / "art", *(tmp_path / "art").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    build(tmp_path / "art", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "source.safetensors"]


def test_a_second_writer_fails_at_once_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "art") as writer:
        fill(writer)
        for force in (False, True):
            with pytest.raises(ArtifactError, match=r"art\.lock: another export to the same place is running"):
                build(tmp_path / "art", force=force)
        code = in_child(lambda: build(tmp_path / "art"))
        assert code == 1
        build(tmp_path / "art2")
        writer.commit(sample_manifest())
    Artifact.open(tmp_path / "art", verify="full")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "art2", "source.safetensors"]


def test_a_lock_file_without_a_holder_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "art.lock").write_text("4711")
    build(tmp_path / "art")
    assert not (tmp_path / "art.lock").exists()


@pytest.mark.parametrize("name", ["create", "write", "sync", "make_folder", "sync_folder", "rename"])
def test_a_killed_writer_leaves_no_artifact_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "count").mkdir()
    calls = count_calls(monkeypatch, name, lambda: build(tmp_path / "count" / "art"))
    # The last folder synced is the parent, once the rename has made the artifact whole.
    last = calls - 1 if name == "sync_folder" else calls
    for nth in sorted({1, (last + 1) // 2, last} - {0}):
        out = tmp_path / f"{nth}" / "art"
        out.parent.mkdir()

        def killed(out: Path = out, nth: int = nth) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(disk, name, Failing(getattr(disk, name), nth, die))
                build(out)

        assert in_child(killed) == -signal.SIGKILL
        assert not out.exists()
        build(out)
        Artifact.open(out, verify="full")
        assert sorted(p.name for p in out.parent.iterdir()) == ["art", "source.safetensors"]


def differently(out: Path) -> str:
    with ArtifactWriter(out, force=True) as writer:
        fill(writer)
        writer.write_bytes("source/LICENSE", b"new")
        return writer.commit(sample_manifest())


@pytest.mark.parametrize(
    ("call", "nth", "survivor"),
    [("rename", 1, "old"), ("rename", 2, "aside"), ("sync_folder", -1, "new"), ("remove_tree", -1, "new")],
)
def test_a_writer_killed_between_the_steps_of_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, survivor: str
) -> None:
    old_id = build(tmp_path / "art")
    build(tmp_path / "count" / "art")
    calls = count_calls(monkeypatch, call, lambda: differently(tmp_path / "count" / "art"))
    new_id = Artifact.open(tmp_path / "count" / "art").id
    assert new_id != old_id

    def killed() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(disk, call, Failing(getattr(disk, call), nth if nth > 0 else calls, die))
            differently(tmp_path / "art")

    assert in_child(killed) == -signal.SIGKILL
    if survivor == "aside":
        with pytest.raises(ArtifactError, match=r"left the previous artifact in .*art\.vitrify-old.*export again, or rename"):
            Artifact.open(tmp_path / "art")
        # The next writer puts the old one back before it does anything else, here: refuse to replace it unasked.
        with pytest.raises(ArtifactError, match="already there"):
            build(tmp_path / "art")
        assert Artifact.open(tmp_path / "art", verify="full").id == old_id
    else:
        assert Artifact.open(tmp_path / "art", verify="full").id == (old_id if survivor == "old" else new_id)
    assert differently(tmp_path / "art") == new_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "count", "source.safetensors"]


def test_a_replaced_artifact_that_cannot_be_deleted_is_reported_and_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path / "art")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        # Call 1 is the repair's, on the partial folder of a dead writer; call 2 deletes the artifact replaced.
        patch.setattr(disk, "remove_tree", Failing(disk.remove_tree, 2, full_disk))
        new_id = differently(tmp_path / "art")
    assert "art.vitrify-old: the replaced artifact could not be deleted" in caplog.text
    assert Artifact.open(tmp_path / "art").id == new_id
    assert (tmp_path / "art.vitrify-old").is_dir()
    build(tmp_path / "art", force=True)
    assert not (tmp_path / "art.vitrify-old").exists()


def test_a_dead_writers_folder_is_removed_without_following_its_links(tmp_path: Path) -> None:
    partial = tmp_path / "art.vitrify-partial"
    (partial / "deep").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"kept")
    (partial / "deep" / "link").symlink_to(tmp_path / "precious")
    (partial / "deep").chmod(0o555)
    build(tmp_path / "art")
    assert not partial.exists()
    assert (tmp_path / "precious" / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("path", ["", "/x", "../x", "a/../x", "a//b", "manifest.json", "manifest.sha256", WEIGHTS])
def test_a_file_is_written_once_and_inside(tmp_path: Path, path: str) -> None:
    with ArtifactWriter(tmp_path / "art") as writer:
        writer.write_bytes(WEIGHTS, b"x")
        with pytest.raises(ArtifactError, match=r"expected a relative POSIX path|written twice"):
            writer.write_bytes(path, b"x")


def test_a_file_where_a_folder_is_needed_is_an_artifact_error(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "art") as writer:
        writer.write_bytes("a", b"x")
        with pytest.raises(ArtifactError, match="cannot be written"):
            writer.write_bytes("a/b", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be written"):
        build(tmp_path / "file" / "art")


def test_a_writer_outside_its_block_or_after_commit_refuses(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "art")
    with pytest.raises(ArtifactError, match="not open"):
        writer.write_bytes("x", b"")
    with writer:
        fill(writer)
        with pytest.raises(ArtifactError, match="entered already"):
            writer.__enter__()
        writer.commit(sample_manifest())
        with pytest.raises(ArtifactError, match="already committed"):
            writer.write_bytes("x", b"")
        with pytest.raises(ArtifactError, match="already committed"):
            writer.commit(sample_manifest())
    Artifact.open(tmp_path / "art")


def test_a_manifest_that_already_lists_files_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "one")
    manifest = Artifact.open(tmp_path / "one").manifest
    with ArtifactWriter(tmp_path / "two") as writer:
        fill(writer)
        with pytest.raises(ArtifactError, match="already lists files"):
            writer.commit(manifest)


def test_the_artifact_package_needs_neither_onnx_nor_torch() -> None:
    program = (
        "import sys, vitrify.engine.artifact\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'safetensors', 'triton', 'google.protobuf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
