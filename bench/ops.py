"""`vitrify bench ops`: each op's native kernel beside ONNX Runtime's own ops, and both beside what the machine can do at most."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitrify.bench.jobs import run_job
from vitrify.bench.measure import Summary, interleave, ratios, summarise, timed
from vitrify.bench.op_cases import op_case
from vitrify.bench.op_graph import op_inputs, op_model
from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ParityError
from vitrify.kernels import registry

__all__ = ["OpResult", "measure_ops"]

_VISIT_S = 0.1
_PEAK_ROUNDS = 400_000
_OURS, _THEIRS, _PEAK = "vitrify", "onnxruntime", "peak"


@dataclass(frozen=True)
class OpResult:
    """ours, theirs: seconds a call. ratio: ours / theirs, round by round. flops: of a call.

    peak_flops: multiply-adds on registers alone, in the same rounds, the best of them. error: ‖ours − theirs‖₂ / ‖theirs‖₂.
    """

    name: str
    op: str
    level: str
    flops: float
    error: float
    ours: Summary
    theirs: Summary
    ratio: Summary
    peak_flops: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OpResult:
        summaries = {name: Summary(**data[name]) for name in ("ours", "theirs", "ratio")}
        return cls(**{**data, **summaries})


def measure_ops(names: Sequence[str], *, rounds: int, threads: int, level: str | None = None) -> list[OpResult]:
    """Time the named cases in a process of their own, all on one pool of `threads`.

    level: the instruction set of our kernels, None: the best here. ONNX Runtime chooses its own.
    Raises ParityError when a kernel and its body disagree by more than twice the op's tolerance, BackendError as `run_job`.
    """
    arguments = {"names": list(names), "rounds": rounds, "threads": threads, "level": level}
    answer = run_job("vitrify.bench.ops", arguments, threads=threads)
    if "wrong" in answer:
        raise ParityError(answer["wrong"])
    return [OpResult.from_json(one) for one in answer["results"]]


def _measure(name: str, *, rounds: int, threads: int) -> OpResult:
    case = op_case(name)
    inputs = op_inputs(case)
    model = op_model(case, inputs)
    feed = {key: array for key, array in inputs.items() if key not in case.constants}
    calls: dict[str, Callable[[int], object]] = {
        _OURS: _session(model, feed, library=True),
        _THEIRS: _session(model, feed, library=False),
        _PEAK: lambda _: _multiply_add(threads),
    }
    tolerance = 2 * registry.contract(case.op).tolerances[DType.FLOAT32]
    error = _error(calls[_OURS](0), calls[_THEIRS](0))
    if not error <= tolerance:
        raise ParityError(f"{name}: {case.op} and its body differ by {error:.1e}, allowed {tolerance:.0e}; no times are given")
    once = {key: min(timed(call, 2).seconds) for key, call in calls.items()}

    def visit(peer: str) -> float:
        calls[peer](0)  # Wakes the pool; does not count.
        return float(np.median(timed(calls[peer], max(2, int(_VISIT_S / once[peer]))).seconds))

    found = interleave(tuple(calls), rounds, visit)
    seconds = {peer: [float(np.mean(visits)) for visits in found[peer]] for peer in calls}
    return OpResult(
        name=name,
        op=case.op,
        level=native_library.cpu_level(),
        flops=case.flops,
        error=error,
        ours=summarise(seconds[_OURS]),
        theirs=summarise(seconds[_THEIRS]),
        ratio=summarise(ratios(seconds[_OURS], seconds[_THEIRS])),
        peak_flops=_multiply_add(threads) / min(min(visits) for visits in found[_PEAK]),
    )


def _session(model: bytes, feed: Mapping[str, Any], *, library: bool) -> Callable[[int], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    if library:
        options.register_custom_ops_library(str(native_library.path()))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
        binding.bind_ortvalue_output(output.name, value)

    def call(_: int) -> Any:
        session.run_with_iobinding(binding)
        return binding

    return call


def _multiply_add(threads: int) -> float:
    """Floating-point operations done."""
    others = [threading.Thread(target=native_library.multiply_add_loop, args=(_PEAK_ROUNDS,)) for _ in range(threads - 1)]
    for other in others:
        other.start()
    done = native_library.multiply_add_loop(_PEAK_ROUNDS)
    for other in others:
        other.join()
    return threads * done


def _error(ours: Any, theirs: Any) -> float:
    """Of two bindings that have run, over all outputs the largest."""
    return max(
        float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))
        for a, b in zip(ours.copy_outputs_to_cpu(), theirs.copy_outputs_to_cpu(), strict=True)
    )


def main() -> None:
    """The job that `measure_ops` runs."""
    import onnxruntime

    given = json.loads(sys.argv[1])
    onnxruntime.set_global_thread_pool_sizes(given["threads"], 1)
    native_library.force_cpu_level(given["level"])
    try:
        results = [_measure(name, rounds=given["rounds"], threads=given["threads"]).to_json() for name in given["names"]]
    except ParityError as error:
        print(json.dumps({"wrong": str(error)}))
        return
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
