"""The machine's own limits: what a plain square matrix product reaches, and what registers alone allow."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable

from vitrify.bench.jobs import run_job
from vitrify.bench.measure import timed

__all__ = ["measure_limits"]

_SIZE = 2048
_REPEATS = 10


def measure_limits(threads: int) -> dict[str, float]:
    """Operations per second, each measured in a process of its own.

    `matrix product, DTYPE` is the fastest of some 2048³ products, by PyTorch or ONNX Runtime (bfloat16 by PyTorch).
    `registers, DTYPE, UNIT` is what the processor's units do without memory; left out where there is no C++ compiler.
    """
    found: dict[str, float] = {}
    for library in ("torch", "onnxruntime"):
        answer = run_job("vitrify.bench.limits", {"library": library, "threads": threads}, threads=threads)
        for dtype, flops in answer.items():
            name = f"matrix product, {dtype}"
            found[name] = max(found.get(name, 0.0), float(flops))
    if shutil.which("c++") is not None:
        peaks = run_job("vitrify.bench.register_peaks", {"threads": threads}, threads=threads)
        found |= {f"registers, {unit}": float(peak) for unit, peak in peaks.items()}
    return found


def _fastest(call: Callable[[], object]) -> float:
    return 2 * _SIZE**3 / min(timed(lambda _: call(), _REPEATS).seconds)


def _torch(threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name in ("float32", "bfloat16"):
        left, right = (torch.randn(_SIZE, _SIZE).to(getattr(torch, name)) for _ in range(2))
        found[name] = _fastest(functools.partial(torch.mm, left, right))
    return found


def _onnxruntime(threads: int) -> dict[str, float]:
    import numpy as np
    import onnx
    import onnxruntime

    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((_SIZE, _SIZE), dtype=np.float32) for _ in range(2))
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [_SIZE, _SIZE]) for name in ("x", "y")]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "product", value[:1], value[1:], [onnx.numpy_helper.from_array(right, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {"float32": _fastest(lambda: session.run(None, {"x": left}))}


def main() -> None:
    """The job that `measure_limits` runs."""
    given = json.loads(sys.argv[1])
    measure = _torch if given["library"] == "torch" else _onnxruntime
    print(json.dumps(measure(given["threads"])))


if __name__ == "__main__":
    main()
