"""The op library under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.fake_driver import call_of, compile_fake, run, write_manifest
from tests.kernels.gpu_cases import CASES
from vitrify.engine.cubins import MANIFEST
from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.programs import variants

ROOT = Path(__file__).parents[2]

# Arrays of exactly the size that the kernel may touch; argument: one more token is claimed than there is.
PROGRAM = """
import ctypes, sys
import numpy as np
library, claimed = ctypes.CDLL(sys.argv[1]), int(sys.argv[2])
library.vitrify_cpu_level_name.restype = ctypes.c_char_p
levels = [library.vitrify_cpu_level_name(i) for i in range(8) if library.vitrify_cpu_level_supported(i)]
for level in levels:
    assert library.vitrify_force_cpu_level(level) == 0
    for shape in ((1, 1, 1), (2, 63, 31), (3, 123, 192), (1, 0, 7), (600, 3, 5), (1, 1025, 100)):
        h1, h0, r_ref = (np.ones(shape, np.float32) for _ in range(3))
        r, sums = np.empty(shape, np.float32), np.empty((shape[0], 2), np.float32)
        batch, tokens, width = shape
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (h1, h0, r_ref, r, sums)]
        library.vitrify_residual_diff_f32(*pointers, *map(ctypes.c_int64, (batch, tokens + claimed, width)))
        assert claimed or np.array_equal(sums, np.full_like(sums, tokens * width))
print("clean")
"""

# Weights of exactly the size that is packed, x in two parts, rows and columns beside the tiles' and panels' sizes; rows of x
# and of the weight that the tile unit leaves to vector registers, for their magnitude.
LINEAR = """
import sys
from pathlib import Path
import ml_dtypes
import numpy as np
from vitrify.engine import native_library
from vitrify.engine.native_kernel import NativeKernel
native_library.path = lambda: Path(sys.argv[1])
for level in native_library.cpu_levels():
    native_library.force_cpu_level(level)
    for batch, tokens, in_0, in_1, out in (
        (1, 1, 1, 0, 1), (2, 63, 31, 300, 33), (1, 29, 700, 900, 65), (3, 0, 4, 4, 4), (2, 611, 30, 5, 40)
    ):
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
            x_0, x_1 = (np.ones((batch, tokens, n), np.float32) for n in (in_0, in_1))
            weight, bias = np.ones((out, in_0 + in_1), dtype), np.ones(out, np.float32)
            modulation, residual = np.ones((batch, out + 1), np.float32), np.ones((batch, tokens, out), np.float32)
            y = np.empty_like(residual)
            kernel = NativeKernel("Linear2GatedResidual", [None, None, weight, None, None, None], attributes={"gate_at": 1})
            kernel.run([x_0, x_1, weight, bias, modulation, residual], [y], threads=3)
            assert np.array_equal(y, np.full_like(y, in_0 + in_1 + 2))
            if dtype != np.float16:
                odd_0, odd_1, heavy = x_0.copy(), x_1.copy(), weight.copy()
                odd_0[:, ::5] *= 2.0**-60
                odd_1[:, ::5] *= 2.0**-60
                heavy[::33] *= dtype(2.0**55)
                kernel = NativeKernel("Linear2GatedResidual", [None, None, heavy, None, None, None], attributes={"gate_at": 1})
                kernel.run([odd_0, odd_1, heavy, bias, modulation, residual], [y], threads=3)
                whole = np.concatenate((odd_0, odd_1), axis=-1).astype(np.float64)
                assert np.allclose(y, whole @ heavy.astype(np.float64).T + 2, rtol=1e-6)
            for suffix, rows in (("Bf16", (weight, bias)), ("Int8", (np.ones(weight.shape, np.int8), bias, bias))):
                made = [None, None, rows[0], *[None] * (len(rows) + 1)]
                kernel = NativeKernel("Linear2GatedResidual" + suffix, made, attributes={"gate_at": 1})
                kernel.run([x_0, x_1, *rows, modulation, residual], [y], threads=3)
                assert np.allclose(y, in_0 + in_1 + 2, rtol=1e-6)
            x = np.concatenate((x_0, x_1), axis=-1)
            NativeKernel("LinearGelu", [None, weight, None]).run([x, weight, bias], [y], threads=2)
            z = in_0 + in_1 + 1.0
            assert np.allclose(y, z / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))))
print("clean")
"""

# Weights of exactly the size that is packed, images of several tiles, channels and pixels beside the tiles' sizes; x and
# weights that the tile unit leaves to vector registers, for their magnitude. Of ones, a sum is the number of taps in the image.
CONV = """
import sys
from pathlib import Path
import ml_dtypes
import numpy as np
from vitrify.engine import native_library
from vitrify.engine.native_kernel import NativeKernel
native_library.path = lambda: Path(sys.argv[1])
for level in native_library.cpu_levels():
    native_library.force_cpu_level(level)
    for batch, channels, out, height, width, k in (
        (1, 1, 1, 1, 1, 3), (2, 33, 17, 5, 3, 3), (1, 31, 50, 40, 90, 3), (3, 4, 4, 0, 4, 3), (1, 64, 13, 9, 33, 1)
    ):
        x, residual = np.ones((batch, channels, height, width), np.float32), np.ones((batch, out, height, width), np.float32)
        bias, norm = np.ones(out, np.float32), np.zeros(channels, np.float32)
        rows, columns = (np.minimum.reduce([np.full(n, k), np.arange(n) + 2, n - np.arange(n) + 1, np.full(n, n)]) if k > 1
                         else np.ones(n) for n in (height, width))
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
            for weight_scale, x_scale in ((1.0, 1.0), (1.0, 2.0**-60)):
                weight = np.full((out, channels, k, k), weight_scale, dtype)
                y = np.empty_like(residual)
                for op in ("Conv2dResidual", "Conv2dResidualBf16"):
                    made = NativeKernel(op, [None, weight, None, None])
                    made.run([x * np.float32(x_scale), weight, bias, residual], [y], threads=3)
                    taps = channels * x_scale * rows[:, None] * columns
                    assert np.allclose(y, taps + 2, rtol=1e-6), (level, op, dtype)
            heavy = weight.astype(np.float32) * np.float32(2.0**60)
            NativeKernel("Conv2d", [None, heavy, None]).run([x, heavy, bias], [y], threads=3)
            assert np.allclose(y, channels * 2.0**60 * rows[:, None] * columns, rtol=1e-5)
            made = NativeKernel("GroupNormSiluConv2d", [None, None, None, weight, None], attributes={"groups": 1, "epsilon": 1.0})
            made.run([x, norm, norm, weight, bias], [y], threads=3)
            assert np.array_equal(y, np.ones_like(y))
            twice = np.empty((batch, out, 2 * height, 2 * width), np.float32)
            NativeKernel("UpsampleConv2d", [None, weight, None]).run([x, weight, bias], [twice], threads=3)
            assert batch == 3 or np.isclose(twice[0, 0, 0, 0], channels * (4 if k > 1 else 1) + 1)
print("clean")
"""

# The ops that compute row by row: columns at the very end of the modulation table, widths beside the registers' sizes.
ROWS = """
import sys
from pathlib import Path
import numpy as np
from vitrify.engine import native_library
from vitrify.engine.native_kernel import NativeKernel
native_library.path = lambda: Path(sys.argv[1])

def run(op, inputs, outputs, **attributes):
    NativeKernel(op, [None] * len(inputs), attributes=attributes).run(inputs, outputs, threads=3)

for level in native_library.cpu_levels():
    native_library.force_cpu_level(level)
    for shape in ((1, 1, 1), (2, 63, 31), (1, 333, 130), (3, 0, 4), (1, 1025, 62)):
        batch, tokens, width = shape
        x, y, other = (np.ones(shape, np.float32) for _ in range(3))
        modulation = np.ones((batch, 2 * width), np.float32)
        for op, expected in (("AdaLayerNorm", 1), ("AdaRMSNorm", 2)):
            run(op, [x, modulation], [y], factor_at=0, shift_at=width, epsilon=1e-12)
            assert np.allclose(y, expected)
        run("GatedResidual", [x, other, modulation], [y], gate_at=width)
        assert np.array_equal(y, np.full(shape, 2, np.float32))
        scalars = [np.ones(order, np.float32) for order in (1, 2)]
        outputs = [np.empty(shape, np.float32) for _ in range(3)]
        run("TaylorUpdate1", [x, other, scalars[0]], outputs[:2])
        run("TaylorUpdate2", [x, other, x, scalars[1]], outputs)
        assert np.array_equal(outputs[2], -x)
        run("TaylorPredict1", [x, other, scalars[0]], [y])
        run("TaylorPredict2", [x, other, x, scalars[1]], [y])
        assert np.array_equal(y, 3 * x)
        if width % 2 == 0:
            table = np.ones((tokens, width // 2), np.float32)
            run("QkNormRope", [x, np.ones(width, np.float32), table, 0 * table], [y], num_heads=1, epsilon=1e-12)
            assert np.allclose(y, 1)
print("clean")
"""

# Attention: tokens, keys and head dims beside the sizes of tiles, registers and blocks. Equal values give their mean.
ATTENTION = """
import sys
from pathlib import Path
import numpy as np
from vitrify.engine import native_library
from vitrify.engine.native_kernel import NativeKernel
native_library.path = lambda: Path(sys.argv[1])

def ones(*shape):
    return np.ones(shape, np.float32)

def run(op, inputs, outputs, **attributes):
    for name in (op, op + "Bf16"):
        NativeKernel(name, [None] * len(inputs), attributes={"scale": 0.5, **attributes}).run(inputs, outputs, threads=3)
        for y in outputs:
            assert np.allclose(y, 1)
            y[:] = np.nan

for level in native_library.cpu_levels():
    native_library.force_cpu_level(level)
    for tokens, keys, heads, dim in ((1, 1, 1, 1), (63, 123, 2, 31), (97, 193, 1, 33), (13, 400, 3, 64), (5, 17, 1, 512)):
        q, k = ones(2, tokens, heads * dim), ones(2, keys, heads * dim)
        for causal in (0, 1):
            run("FusedAttention", [q, k, k], [np.empty_like(q)], num_heads=heads, causal=causal)
        run("FusedAttentionBias", [q, k, k, ones(1, heads, tokens, keys)], [np.empty_like(q)], num_heads=heads)
    for first, second, heads, dim in ((1, 0, 1, 2), (16, 64, 2, 32), (0, 97, 1, 34), (123, 70, 1, 128)):
        parts = [ones(2, tokens, heads * dim) for tokens in (first, second) for _ in "qkv"]
        tables = [ones(first + second, dim // 2), 0 * ones(first + second, dim // 2)]
        outputs = [np.empty_like(parts[0]), np.empty_like(parts[3])]
        run("FusedAttention2NormRotary", [*parts, *[ones(dim)] * 4, *tables], outputs, num_heads=heads, epsilon=1e-6)
        whole = [ones(2, first + second, heads * dim)] * 3
        outputs = [np.empty_like(whole[0])]
        run("FusedAttentionNormRotary", [*whole, *[ones(dim)] * 2, *tables], outputs, num_heads=heads, epsilon=1e-6)
print("clean")
"""

# The same through ONNX Runtime: registration, shape inference, a run on two threads.
SESSION = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options)
feed = {name: np.ones((2, 1025, 64), np.float32) for name in ("h1", "h0", "r_ref")}
assert np.array_equal(session.run(["sums"], feed)[0], np.full((2, 2), 1025 * 64, np.float32))
session = onnxruntime.InferenceSession(sys.argv[3], options)
x, bias = np.ones((2, 333, 300), np.float32), np.ones(70, np.float32)
assert np.array_equal(session.run(None, {"x": x, "bias": bias})[0], np.full((2, 333, 70), 301, np.float32))
print("clean")
"""


def _tool(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is needed; make setup installs it"
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("sanitized")
    configure = ["-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    options = ["-DVITRIFY_SANITIZE=address;undefined", "-DCMAKE_BUILD_TYPE=Release"]
    for command in ([*configure, *options], ["--build", str(build)]):
        subprocess.run([_tool("cmake"), *command], check=True, capture_output=True)
    return build / "libvitrify_ops.so"


def _surroundings() -> dict[str, str]:
    """AddressSanitizer first of all libraries, and the one it must find when it starts to hear of exceptions.

    The interpreter itself leaks by design; memory errors are what is looked for.
    """
    preloaded = [
        subprocess.run(["c++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    return {"LD_PRELOAD": " ".join(preloaded), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **_surroundings()}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_kernels_touch_only_their_arrays(library: Path) -> None:
    done = _run(PROGRAM, str(library), "0")
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-2000:]


@pytest.mark.slow
def test_linear_kernels_touch_only_their_arrays(library: Path) -> None:
    done = _run(LINEAR, str(library))
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-2000:]


@pytest.mark.slow
def test_convolutions_touch_only_their_arrays(library: Path) -> None:
    done = _run(CONV, str(library))
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-2000:]


@pytest.mark.slow
def test_row_kernels_touch_only_their_arrays(library: Path) -> None:
    done = _run(ROWS, str(library))
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-2000:]


@pytest.mark.slow
def test_attention_kernels_touch_only_their_arrays(library: Path) -> None:
    done = _run(ATTENTION, str(library))
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-2000:]


@pytest.mark.slow
def test_an_overrun_would_be_seen(library: Path) -> None:
    done = _run(PROGRAM, str(library), "1")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.slow
def test_a_session_is_clean(library: Path, tmp_path: Path) -> None:
    from tests.kernels.op_models import one_op_model

    models = [one_op_model("ResidualDiff", with_body=False)]
    models.append(one_op_model("Linear", constants={"weight": np.ones((70, 300), ml_dtypes.bfloat16)}, with_body=False))
    files = [tmp_path / f"{number}.onnx" for number in range(len(models))]
    for file, model in zip(files, models, strict=True):
        file.write_bytes(model.SerializeToString())
    done = _run(SESSION, str(library), *map(str, files))
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-2000:]


@pytest.mark.slow
def test_the_launcher_touches_only_its_own(library: Path, tmp_path: Path) -> None:
    """Every op's launches, and manifests cut off at many places."""
    environment = _surroundings()
    fake, folder = compile_fake(tmp_path), tmp_path / "cubins"
    folder.mkdir()
    write_manifest(folder, variants())
    calls = [call_of(op, DType.BFLOAT16) for op in CASES]
    answers, asked = run(fake, folder, calls, tmp_path, library, **environment)
    assert all(isinstance(answer, dict) for answer in answers), answers
    assert {row["call"] for row in asked} == {"load", "attribute", "launch"}
    whole = (folder / MANIFEST).read_bytes()
    for part in range(1, 20):
        (folder / MANIFEST).write_bytes(whole[: len(whole) * part // 20])
        answers, _asked = run(fake, folder, [], tmp_path, library, **environment)
        assert "no JSON at byte" in answers[0]
