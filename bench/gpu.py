"""`vitrify bench gpu`: our compiled kernels beside PyTorch's on the GPU of this machine, and both beside what it can do at most.

Needs a GPU, PyTorch that knows it, and a build of the kernels (`vitrify kernels build`). Times are of CUDA graphs: each replay
goes through several sets of inputs, so that nothing is found in the L2 cache that a step would not find there.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrify.bench.gpu_cases import GPU_CASES, GpuCase
from vitrify.bench.gpu_peers import PEERS
from vitrify.bench.measure import Summary, interleave, ratios, summarise
from vitrify.engine import cubins
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError, ParityError
from vitrify.engine.gpu_launcher import GpuLauncher
from vitrify.kernels import registry
from vitrify.kernels.aot.description import ACTIVATION, Pointer
from vitrify.kernels.aot.programs import programs
from vitrify.kernels.aot.resolve import scratch_elements

__all__ = ["GpuReport", "GpuResult", "measure_gpu", "table", "write"]

_OURS = "vitrify"
_TORCH = {DType.FLOAT32: torch.float32, DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16}
_L2_TIMES = 3
_VISIT_S = 0.02
_PEAK_SIZE = 8192
_COPY_BYTES = 1 << 30

Call = Callable[[], object]


@dataclass(frozen=True)
class GpuResult:
    """seconds: peer → of one call, `vitrify` ours. ratio: ours / the fastest peer, round by round; None without one.

    moved_bytes: each tensor read or written once. error: ‖ours − float64‖₂ / ‖float64‖₂, the largest of the outputs.
    """

    name: str
    op: str
    dtype: str
    flops: float
    moved_bytes: int
    error: float
    seconds: dict[str, Summary]
    fastest: str
    ratio: Summary | None


@dataclass(frozen=True)
class GpuReport:
    """card, driver, torch, compiler: of the run. matrix_flops: dtype → of an 8192³ product by PyTorch per second. copy_bytes:
    read and written per second by one read and one write of a GiB of numbers."""

    card: str
    driver: str
    torch: str
    compiler: str
    matrix_flops: dict[str, float]
    copy_bytes: float
    results: tuple[GpuResult, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_gpu(
    folder: Path | None = None,
    cases: Sequence[GpuCase] = GPU_CASES,
    *,
    rounds: int = 8,
    say: Callable[[str], None] = lambda _: None,
) -> GpuReport:
    """Check and time `cases` with the kernels of `folder` (None: of this installation).

    Raises ParityError where a kernel is further from float64 than its op's tolerance, BackendError without GPU or build.
    """
    if not torch.cuda.is_available():
        raise BackendError(f"PyTorch {torch.__version__} sees no CUDA GPU here; this measurement needs one")
    where = folder or cubins.folder()
    launcher, compiler = GpuLauncher(where), cubins.read_manifest(where).compiler
    torch.backends.cuda.matmul.allow_tf32 = False
    peaks = {dtype.value: _matrix_flops(dtype) for dtype in _TORCH}
    copied = _copy_bytes()
    found = []
    for case in cases:
        found.append(_measure(launcher, case, rounds))
        say(_line(found[-1], peaks, copied))
    return GpuReport(torch.cuda.get_device_name(), _driver(), torch.__version__, compiler, peaks, copied, tuple(found))


def table(report: GpuReport) -> str:
    """A line per case: ours, the fastest peer, their ratio, and the share of the machine's own measured limit."""
    peaks = ", ".join(f"{name} {flops / 1e12:.0f} TFLOP/s" for name, flops in report.matrix_flops.items())
    head = (
        f"{report.card}, driver {report.driver}, torch {report.torch}, {report.compiler}",
        f"8192³ products by PyTorch: {peaks}; copy {report.copy_bytes / 1e12:.2f} TB/s read and written",
    )
    return "\n".join((*head, *(_line(row, report.matrix_flops, report.copy_bytes) for row in report.results)))


def _line(row: GpuResult, peaks: dict[str, float], copied: float) -> str:
    ours = row.seconds[_OURS].median
    if row.flops:
        share = f"{row.flops / ours / 1e12:6.0f} TFLOP/s {row.flops / ours / peaks[row.dtype]:5.0%} of a product"
    else:
        share = f"{row.moved_bytes / ours / 1e12:6.2f} TB/s    {row.moved_bytes / ours / copied:5.0%} of a copy   "
    others = ", ".join(f"{name} {s.median * 1e6:.0f}" for name, s in row.seconds.items() if name != _OURS)
    ratio = f"{row.ratio.median:.2f} ×" if row.ratio is not None else "   –  "
    return f"{row.name:<62} {ours * 1e6:8.1f} µs {share} {ratio}  error {row.error:.0e}  [{others}]"


def _measure(launcher: GpuLauncher, case: GpuCase, rounds: int) -> GpuResult:
    sets = [_tensors(case, seed=0)]
    moved = _moved_bytes(case, sets[0])
    again = 1 + _L2_TIMES * torch.cuda.get_device_properties(0).L2_cache_size // max(moved, 1)
    sets += [{name: tensor.clone() for name, tensor in sets[0].items()} for _ in range(min(int(again), 16))]
    ours = [_call(launcher, case, tensors) for tensors in sets]
    error = _checked(case, ours[0], sets[0])
    calls: dict[str, list[Call]] = {_OURS: ours}
    offered = [PEERS[case.op](_inputs(case, tensors), case.attributes) for tensors in sets] if case.op in PEERS else []
    for name in offered[0] if offered else ():
        if _runs(offered[0][name]):
            calls[name] = [peers[name] for peers in offered]
    graphs = {name: _captured(peers) for name, peers in calls.items()}
    replays = {name: max(1, int(_VISIT_S / max(_timed(graph, 2), 1e-6))) for name, graph in graphs.items()}

    def visit(peer: str, _: int) -> float:
        return _timed(graphs[peer], replays[peer]) / len(sets)

    turns = interleave(tuple(graphs), rounds, visit, settle=torch.cuda.synchronize)
    seconds = {peer: [float(np.mean(visits)) for visits in turns[peer]] for peer in graphs}
    summaries = {peer: summarise(values) for peer, values in seconds.items()}
    peers = [peer for peer in graphs if peer != _OURS]
    fastest = min(peers, key=lambda peer: summaries[peer].median) if peers else ""
    ratio = summarise(ratios(seconds[_OURS], seconds[fastest])) if fastest else None
    return GpuResult(case.name, case.op, case.dtype.value, case.flops, moved, error, summaries, fastest, ratio)


def _tensors(case: GpuCase, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of random numbers, outputs and scratch full of NaN, on the GPU, by name."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    contract, program = registry.contract(case.op), programs()[case.op]
    dtypes = _dtypes(case)
    made: dict[str, torch.Tensor] = {}
    for tensor in contract.inputs:
        shape = tensor.resolve(case.dims)
        values = torch.randn(shape, generator=generator, device="cuda")
        if tensor.name == "weight":
            values /= shape[1] ** 0.5
        elif "norm" in tensor.name:
            values = 1 + 0.2 * values
        elif tensor.name == "cos":
            angles = values
            values = angles.cos()
        elif tensor.name == "sin":
            values = angles.sin()
        made[tensor.name] = values.to(dtypes[tensor.name])
    for tensor in contract.outputs:
        made[tensor.name] = torch.full(tensor.resolve(case.dims), torch.nan, dtype=dtypes[tensor.name], device="cuda")
    scratch = scratch_elements(program, case.dims, case.attributes)
    made |= {name: torch.full((count,), torch.nan, dtype=dtypes[name], device="cuda") for name, count in scratch.items()}
    return made


def _dtypes(case: GpuCase) -> dict[str, torch.dtype]:
    program = programs()[case.op]
    found = {s.name: case.dtype if s.dtype == ACTIVATION else DType(s.dtype) for s in program.scratch}
    for launch in program.launches:
        for parameter in launch.kernel.parameters:
            if isinstance(parameter, Pointer):
                found[launch.arguments.get(parameter.name, parameter.name)] = parameter.resolve(case.dtype)
    return {name: _TORCH[dtype] for name, dtype in found.items()}


def _inputs(case: GpuCase, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {tensor.name: tensors[tensor.name] for tensor in registry.contract(case.op).inputs}


def _moved_bytes(case: GpuCase, tensors: dict[str, torch.Tensor]) -> int:
    contract = registry.contract(case.op)
    moved = (tensors[t.name] for t in (*contract.inputs, *contract.outputs) if t.name != "modulation")
    return sum(tensor.numel() * tensor.element_size() for tensor in moved)


def _call(launcher: GpuLauncher, case: GpuCase, tensors: dict[str, torch.Tensor]) -> Call:
    version = registry.contract(case.op).version
    at = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    run = launcher.prepare(case.op, version, case.dtype.value, {**case.dims, **case.attributes}, at)
    return lambda: run(torch.cuda.current_stream().cuda_stream)


def _checked(case: GpuCase, call: Call, tensors: dict[str, torch.Tensor]) -> float:
    """The largest error of an output after `call`."""
    call()
    contract = registry.contract(case.op)
    given = (tensor.double() for tensor in _inputs(case, tensors).values())
    wanted = registry.reference(case.op)(*given, **case.attributes)
    errors = []
    for tensor, expected in zip(contract.outputs, wanted, strict=True):
        actual = tensors[tensor.name].double()
        errors.append(float((actual - expected).norm() / expected.norm()))
    tolerance, error = contract.tolerances[case.dtype], max(errors)
    if not error <= tolerance:
        raise ParityError(
            f"{case.name}: {case.op} differs from float64 by {error:.1e}, allowed {tolerance:.0e}; no times are given"
        )
    return error


def _runs(call: Call) -> bool:
    """Whether this peer takes the case at all: PyTorch raises where a backend does not."""
    try:
        call()
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _timed(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Seconds of one replay."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / replays


def _matrix_flops(dtype: DType) -> float:
    left, right = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device="cuda").to(_TORCH[dtype]) for _ in range(2))
    graph = _captured([lambda: left @ right])
    return 2 * _PEAK_SIZE**3 / min(_timed(graph, 3) for _ in range(5))


def _copy_bytes() -> float:
    source, target = (torch.randn(_COPY_BYTES // 4, device="cuda") for _ in range(2))
    # By a kernel: a copy_ inside a graph was seen to move less than our own kernels do.
    graph = _captured([lambda: torch.neg(source, out=target)])
    return 2 * _COPY_BYTES / min(_timed(graph, 5) for _ in range(5))


def _driver() -> str:
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("  ")[1].strip() + f" (CUDA {version.value})"
    except (OSError, IndexError):
        return f"CUDA {version.value}"


def write(report: GpuReport, file: Path) -> None:
    """The report as JSON."""
    file.write_text(json.dumps(report.to_json(), indent=2) + "\n")
