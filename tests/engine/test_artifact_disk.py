"""Every byte of an export passes `disk.write`: no other way of writing stands in the rooms that export."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The one place that writes, and the lock file, into which nothing is written.
ALLOWED = {"engine/artifact/disk.py", "engine/artifact/lock.py"}
WRITERS = {
    "write_text",
    "tofile",
    "touch",
    "savez",
    "savetxt",
    "save_file",
    "save_model",
    "symlink_to",
    "hardlink_to",
    "save_pretrained",
}
MODULES = {
    "shutil": None,
    "tempfile": None,
    "os": {"open", "write", "pwrite", "fdopen", "mkdir", "makedirs", "truncate", "link", "symlink"},
}
DUMPS = {"json", "pickle", "onnx", "ir", "np", "torch", "yaml"}


def bypasses(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every call that could put bytes on disk by itself."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node.func)
        owner, _, name = text.rpartition(".")
        modes = [*node.args[:2], *(k.value for k in node.keywords if k.arg == "mode")]
        writing = any(
            isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wax+") and len(m.value) <= 3
            for m in modes
        )
        if (
            (name == "open" and writing)
            or name in WRITERS
            or (name == "write_bytes" and len(node.args) == 1)
            or (name in ("save", "dump") and owner in DUMPS)
            or (owner in MODULES and (MODULES[owner] is None or name in (MODULES[owner] or ())))
        ):
            yield node.lineno, text


@pytest.mark.parametrize("room", ["engine", "export"])
def test_nothing_bypasses_the_one_function_that_writes(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / room).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in ALLOWED
        for line, text in bypasses(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "open(p, 'w')",
        "path.open('xb')",
        "path.open(mode='a')",
        "path.write_text('x')",
        "path.write_bytes(b'x')",
        "os.open(p, os.O_RDWR)",
        "np.save(p, a)",
        "onnx.save(m, p)",
        "json.dump(x, f)",
        "shutil.copyfile(a, b)",
        "tempfile.mkdtemp()",
    ],
)
def test_the_search_sees_what_it_is_for(line: str) -> None:
    assert [text for _, text in bypasses(line)] == [line.partition("(")[0]]


@pytest.mark.parametrize(
    "line", ["open(p)", "path.open('rb')", "writer.write_bytes('a/b', data)", "Artifact.open(root)", "json.dumps(x)"]
)
def test_the_search_leaves_reading_and_the_writer_alone(line: str) -> None:
    assert list(bypasses(line)) == []
