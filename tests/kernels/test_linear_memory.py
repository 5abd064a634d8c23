"""What stays resident of a weight: one packed copy, nothing of the checkpoint's bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.kernels.op_models import one_op_model
from vitrify.engine import native_library

OUT, IN = 4096, 4096

PROGRAM = """
import gc, json, sys
import numpy as np, onnxruntime
from vitrify.engine import native_library

def resident():
    lines = (line.split() for line in open("/proc/self/status"))
    return {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("RssAnon:", "RssFile:")}

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
options.register_custom_ops_library(str(native_library.path()))
onnxruntime.InferenceSession(sys.argv[2], options)  # What every session costs.
gc.collect()
before = resident()
session = onnxruntime.InferenceSession(sys.argv[1], options)
gc.collect()
after = resident()
x = np.eye(int(sys.argv[3]), dtype=np.float32)[None, :2]
y = session.run(None, {"x": x})[0]
print(json.dumps({"grown": {key: after[key] - before[key] for key in after}, "y": y[0, :, :3].tolist()}))
"""


def save(path: Path, op: str, weight: np.ndarray) -> None:
    model = one_op_model(op, constants={"weight": weight}, with_body=False)
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and only Linux takes pages back")
@pytest.mark.parametrize("op", ["LinearNoBias", "LinearNoBiasBf16"])
def test_a_weight_stays_once_as_it_was_packed(op: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((OUT, IN), dtype=np.float32).astype(ml_dtypes.bfloat16)
    save(tmp_path / "model.onnx", op, weight)
    save(tmp_path / "small.onnx", op, weight[:8, :8])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model.onnx"), str(tmp_path / "small.onnx"), str(IN)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert np.array_equal(found["y"], weight[:3, :2].astype(np.float32).T)
    level = native_library.cpu_level()  # on the tile unit a stored bfloat16 is its own first part, in float32 products too
    halved = level == "amx" or (op.endswith("Bf16") and level == "avx512_bf16")
    packed = (2 if halved else 4) * OUT * IN
    assert packed <= found["grown"]["RssAnon:"] < 1.05 * packed
    assert found["grown"]["RssFile:"] < 0.05 * packed
