"""The program `vitrify`: commands by entry point, one line per error, exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

from vitrify.engine import cli, errors

_GROUP = "vitrify.commands"


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name: f"tests.house.sample_commands:{name}" for name in ("greet", "fail", "lazy", "broken", "not_a_command")}
    names["uninstalled"] = "tests.house.no_such_module:command"
    entries = [EntryPoint(name, value, _GROUP) for name, value in names.items()]
    monkeypatch.setattr(cli, "entry_points", lambda *, group: entries if group == _GROUP else [])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "greet", "world") == (0, "hello world\n", "")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("OSError", 1),
        ("VitrifyError", 1),
        ("ArtifactError", 3),
        ("SpecError", 4),
        ("RequestError", 5),
        ("BackendError", 6),
        ("CompileError", 7),
        ("ParityError", 8),
        ("RequestCancelled", 9),
        ("KeyboardInterrupt", 130),
    ],
)
def test_an_error_is_one_line_and_its_own_code(capsys: pytest.CaptureFixture[str], kind: str, code: int) -> None:
    got, out, err = run(capsys, "fail", kind)
    assert (got, out) == (code, "")
    assert err.strip().startswith("vitrify: ")
    assert len(err.strip().splitlines()) == 1


def test_every_error_class_has_a_code_of_its_own() -> None:
    classes = {getattr(errors, name) for name in errors.__all__}
    assert set(cli.EXIT_CODES) == classes
    assert len(set(cli.EXIT_CODES.values())) == len(classes)


@pytest.mark.parametrize(("kind", "error"), [("ArtifactError", errors.ArtifactError), ("OSError", OSError)])
def test_debug_raises(kind: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        cli.main(["--debug", "fail", kind])


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["broken"])


def test_a_missing_extra_is_named_with_the_command_that_brings_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, _out, err = run(capsys, "lazy")
    assert code == 6
    assert err == "vitrify: vitrify lazy needs torch, which is not installed; run: pip install 'vitrify[export]'\n"


def test_a_command_whose_module_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, _out, err = run(capsys, "uninstalled")
    assert code == 6
    assert "needs the module 'tests.house.no_such_module', which is not installed" in err


def test_an_entry_point_that_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, _out, err = run(capsys, "not_a_command")
    assert code == 6
    assert "is a int, expected a click command" in err


@pytest.mark.parametrize("words", [("nonsense",), ("greet",), ("--nonsense",)])
def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert "Usage: vitrify" in err


def test_help_lists_commands_without_loading_them(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = run(capsys, "--help")
    assert code == 0
    assert {"greet", "uninstalled"} <= set(out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, "vitrify 0.1.0\n", "")


def test_every_installed_command_has_a_summary() -> None:
    assert {entry.name for entry in entry_points(group=_GROUP)} == set(cli._SUMMARIES)


def test_the_programs_help_imports_no_room() -> None:
    program = (
        "import sys; from vitrify.engine.cli import main; code = main(['--help'])\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('numpy', 'torch', 'onnx', 'onnxruntime')]\n"
        "rooms = [m for m in sys.modules if m.startswith(('vitrify.runtime', 'vitrify.export', 'vitrify.bench'))]\n"
        "print('loaded:', heavy, rooms, code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: [] [] 0"
