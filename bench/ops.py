"""`vitrify bench ops`: each op's native kernel beside ONNX Runtime's own ops, and both beside what the machine can do at most."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitrify.bench.jobs import run_job
from vitrify.bench.measure import Summary, interleave, ratios, summarise, timed
from vitrify.bench.op_cases import op_case
from vitrify.bench.op_graph import op_inputs, op_model
from vitrify.bench.register_peaks import peak_meter
from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import ParityError
from vitrify.kernels import registry

__all__ = ["OpResult", "measure_ops"]

_VISIT_S = 0.1
_PEAK_S = 0.05
_OURS, _THEIRS, _PEAK = "vitrify", "onnxruntime", "peak"
_UNITS = {
    "avx2": ("avx2", "avx2", "avx2"),
    "avx512": ("avx512f", "avx512f", "avx512f"),
    "avx512_vnni": ("avx512f", "avx512f", "avx512_vnni"),
    "avx512_bf16": ("avx512f", "avx512_bf16", "avx512_vnni"),
    "amx": ("amx_bf16", "amx_bf16", "amx_int8"),
}
"""Level → the units of its kernels in float32, bfloat16 and int8, as `register_peaks` names them. Of others no peak is given."""
_PARTS = {"Linear": 3, "FusedAttention": 6}
"""Products of bfloat16 parts that the tile unit takes for one of float32: weights are stored in bfloat16 here, keys are not."""

Peak = Callable[[str], float]


@dataclass(frozen=True)
class OpResult:
    """ours, theirs: seconds a call. ratio: ours / theirs, round by round. flops: of a call.

    peak_flops: what the level's unit does on registers alone, in the same rounds, the best of them; None where it cannot be said.
    error: ‖ours − theirs‖₂ / ‖theirs‖₂.
    """

    name: str
    op: str
    level: str
    flops: float
    error: float
    ours: Summary
    theirs: Summary
    ratio: Summary
    peak_flops: float | None

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


def _measure(name: str, *, rounds: int, peak: Peak | None) -> OpResult:
    case = op_case(name)
    inputs = op_inputs(case)
    model = op_model(case, inputs)
    feed = {key: array for key, array in inputs.items() if key not in case.constants}
    calls: dict[str, Callable[[int], object]] = {
        _OURS: _session(model, feed, library=True),
        _THEIRS: _session(model, feed, library=False),
    }
    tolerance = 2 * registry.contract(case.op).tolerances[DType.FLOAT32]
    error = _error(calls[_OURS](0), calls[_THEIRS](0))
    if not error <= tolerance:
        raise ParityError(f"{name}: {case.op} and its body differ by {error:.1e}, allowed {tolerance:.0e}; no times are given")
    once = {key: min(timed(call, 2).seconds) for key, call in calls.items()}

    peaks: list[float] = []

    def visit(peer: str, _: int) -> float:
        if peer == _PEAK:
            peaks.append(peak(case.op) if peak is not None else 0.0)
            return peaks[-1]
        calls[peer](0)  # Wakes the pool; does not count.
        return float(np.median(timed(calls[peer], max(2, int(_VISIT_S / once[peer]))).seconds))

    found = interleave((*calls, _PEAK), rounds, visit)
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
        peak_flops=max(peaks) if peak is not None else None,
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


def _peak(threads: int) -> Peak | None:
    units = _UNITS.get(native_library.cpu_level())
    if units is None or shutil.which("c++") is None:
        return None
    meter = peak_meter()

    def peak(op: str) -> float:
        unit = units[1] if op.endswith("Bf16") else units[2] if op.endswith("Int8") else units[0]
        return meter(unit, threads, _PEAK_S) / _products(op, unit)

    return peak


def _products(op: str, unit: str) -> int:
    """How many of the unit's products one of `op`'s is."""
    if unit != "amx_bf16" or op.endswith("Bf16"):
        return 1
    return next((count for kind, count in _PARTS.items() if op.startswith(kind)), 1)


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
    peak = _peak(given["threads"])
    try:
        results = [_measure(name, rounds=given["rounds"], peak=peak).to_json() for name in given["names"]]
    except ParityError as error:
        print(json.dumps({"wrong": str(error)}))
        return
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
