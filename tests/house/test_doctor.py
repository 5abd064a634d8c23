"""`vitrify doctor` on this installation and on broken ones."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from vitrify.engine import doctor, native_library


def report(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(doctor.doctor, words)
    return result.exit_code, result.output


def test_this_installation_is_sound() -> None:
    code, text = report()
    assert code == 0
    assert f"vitrify             {metadata.version('vitrify')}" in text
    assert "problem" not in text


def test_json_says_the_same() -> None:
    code, text = report("--json")
    found = json.loads(text)
    assert code == 0
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["native_ops"] == native_library.ops()
    assert found["cpu_level"] in found["cpu_levels"]
    assert set(found["extras"]) == {"bench-peers", "export", "kernels", "study", "tensorrt-rtx"}
    assert found["problems"] == []


def without(monkeypatch: pytest.MonkeyPatch, *missing: str, added: dict[str, str] | None = None) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return (added or {}).get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_no_onnxruntime_names_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    code, text = report()
    assert code == 6
    assert "pip install 'vitrify[cpu]'" in text
    assert "pip install 'vitrify[cuda]'" in text


def test_two_onnxruntimes_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, added={"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    code, text = report()
    assert code == 6
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in text


def test_a_missing_base_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tokenizers")
    code, text = report()
    assert code == 6
    assert "tokenizers is missing" in text


def test_a_missing_extra_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    code, text = report()
    assert code == 0
    assert "torch (missing)" in text
    assert "pip install 'vitrify[export]'" in text


def test_without_the_library_it_says_what_runs_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "path", lambda: None)
    code, text = report()
    assert code == 0
    assert "none: the ops run as their bodies of standard ops" in text


def test_a_library_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libvitrify_ops.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native_library, "path", lambda: broken)
    code, text = report()
    assert code == 6
    assert "does not load" in text
    assert "reinstall vitrify on this machine" in text
