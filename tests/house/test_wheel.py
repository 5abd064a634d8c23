"""The built wheel, in a fresh environment: everything is in it, and it runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.kernels.fake_driver import call_of, compile_fake, expected, run, surroundings
from vitrify.engine.cubins import read_manifest
from vitrify.engine.dtypes import DType

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "kernels", "export", "runtime", "bench")
KERNELS = ("residual_diff", "residual_diff_total")
"""What ResidualDiff launches; a whole build takes minutes."""


def say(*command: object, **environment: str) -> str:
    """What a command prints, run away from the checkout."""
    done = subprocess.run([str(word) for word in command], env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cubins")
    chosen = [word for name in KERNELS for word in ("--kernel", name)]
    say(Path(sys.executable).parent / "vitrify", "kernels", "build", "--quiet", "--arch", "sm_80", *chosen, "--out", folder)
    return folder


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`make wheel`, but for where the GPU kernels lie."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *options]
    return subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(cubins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = build(folder, f"--config-settings=cmake.define.VITRIFY_CUBINS={cubins}")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("vitrify-*.whl")
    return file


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel in it, and the third-party packages of this one."""
    venv = tmp_path_factory.mktemp("fresh")
    say(sys.executable, "-m", "venv", venv)
    say(venv / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    # This puts a folder on the path; the hook of the editable install that lies in it is not run.
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "third_party.pth").write_text(sysconfig.get_path("purelib"))
    return venv / "bin"


def test_the_wheel_holds_everything_and_runs(wheel: Path, fresh: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {f"vitrify/{file.relative_to(ROOT)}" for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    data = {"vitrify/__init__.py", "vitrify/py.typed", "vitrify/engine/native/libvitrify_ops.so", "vitrify/engine/FORMAT.md"}
    assert sources | data <= names
    # The bench compiles one source itself, where it measures.
    assert [name for name in names if name.endswith((".cpp", ".h", ".pyc"))] == ["vitrify/bench/register_peaks.cpp"]
    program = "import vitrify.runtime, vitrify.engine.native_library as n; print(vitrify.runtime.__file__, n.path(), *n.ops())"
    said = say(fresh / "python", "-c", program)
    assert said.count(str(fresh.parent)) == 2
    assert "ResidualDiff" in said


def test_the_wheel_holds_the_gpu_kernels(cubins: Path, wheel: Path, fresh: Path, tmp_path: Path) -> None:
    """What was built and no more; `inspect` lists it, and the library finds it beside itself and launches it."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/cubins/" in name}
    assert held == {file.name: file.read_bytes() for file in cubins.iterdir() if file.is_file()}
    assert {"manifest.json", "residual_diff-bfloat16.sm_80.cubin", "residual_diff-bfloat16.sm_80.ptx"} <= set(held)
    table = say(fresh / "vitrify", "kernels", "inspect", "--verify")
    assert [line for line in table.splitlines() if line.startswith("residual_diff-bfloat16") and "A100" in line]

    # A driver that only writes down what it is asked.
    fake, log, takes = compile_fake(tmp_path), tmp_path / "log", tmp_path / "takes"
    images = {
        image.entry: image
        for k in read_manifest(cubins).kernels.values()
        for v in k.variants.values()
        for image in v.images.values()
    }
    takes.write_text("".join(f"{entry} {' '.join(f'{at}:{size}' for at, size in i.parameters)}\n" for entry, i in images.items()))
    program = "import vitrify.engine.native_library as n; print(n.path(), repr(n.gpu_status()))"
    file, status = say(fresh / "python", "-c", program, **surroundings(fake, log, takes)).split()
    assert status == "''"
    call = call_of("ResidualDiff", DType.BFLOAT16)
    _answers, asked = run(fake, Path(file).parent / "cubins", [call], tmp_path, Path(file), FAKE_CUDA_PARAMETERS=str(takes))
    launches = [row for row in asked if row["call"] == "launch"]
    assert launches == [{**row, "shared": images[row["entry"]].shared_bytes} for row in expected(call)]


def test_a_build_of_gpu_kernels_that_did_not_end_is_not_packed(tmp_path: Path) -> None:
    done = build(tmp_path, f"--config-settings=cmake.define.VITRIFY_CUBINS={tmp_path}")
    assert done.returncode != 0
    assert "holds no manifest.json; run: vitrify kernels build --out" in done.stdout + done.stderr
