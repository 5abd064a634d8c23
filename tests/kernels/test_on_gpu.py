"""The compiled kernels on a GPU, through the launcher, against float64. Needs a GPU, and torch that knows it for its memory.

Tested is what this installation was built with (`vitrify kernels build`); without a build, what is compiled here for this GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.kernels.gpu_cases import CASES, Case
from tests.kernels.gpu_reference import TORCH, check, inputs, outputs, tensor_dtypes
from vitrify.engine import cubins
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.engine.gpu_launcher import GpuLauncher
from vitrify.kernels import registry
from vitrify.kernels.aot.build import build
from vitrify.kernels.aot.description import as_float32
from vitrify.kernels.aot.programs import programs, variants
from vitrify.kernels.aot.resolve import resolve, scratch_elements
from vitrify.kernels.aot.targets import ARCH_NAMES
from vitrify.kernels.aot.tiles import built

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU here"),
]

EPSILON = CASES["QkNormRope"].attributes["epsilon"]
Tensors = dict[str, torch.Tensor]


def heads(count: int, head_dim: int, **more: float) -> dict[str, int | float]:
    return {"num_heads": count, "scale": as_float32(head_dim**-0.5), **more}


def awkward() -> list[tuple[str, DType, Case]]:
    """Sizes beside CASES: those in use and their neighbours, full tiles, cut-off ones and none at all, every head width."""
    found: list[tuple[str, DType, Case]] = []
    halves = (DType.FLOAT16, DType.BFLOAT16)
    for dtype in (*halves, DType.FLOAT32):
        for head_dim in (32, 64, 96, 128, 512):
            for tokens, keys in ((1, 1), (1, 1025), (63, 123), (128, 256), (300, 333)):
                if dtype == DType.FLOAT32 and head_dim == 512:
                    continue
                dims = {"batch": 2, "tokens": tokens, "keys": keys, "width": 3 * head_dim}
                found.append(("FusedAttention", dtype, Case(dims, heads(3, head_dim, causal=0))))
        for head_dim in (32, 64):
            for tokens in (1, 77, 300):
                dims = {"batch": 2, "tokens": tokens, "keys": tokens, "width": 2 * head_dim}
                found.append(("FusedAttention", dtype, Case(dims, heads(2, head_dim, causal=1))))
                biased = Case({**dims, "heads": 2}, {"num_heads": 2, "scale": 1.0})
                found.append(("FusedAttentionBias", dtype, biased))
        for head_dim in (32, 128):
            tables = {"head_dim": head_dim, "half": head_dim // 2}
            for tokens in (1, 63, 1025):
                dims = {"batch": 2, "tokens": tokens, "width": 3 * head_dim, **tables}
                found.append(("QkNormRope", dtype, Case(dims, {"num_heads": 3, "epsilon": EPSILON})))
                found.append(("FusedAttentionNormRotary", dtype, Case(dims, heads(3, head_dim, epsilon=EPSILON))))
            for tokens_0, tokens_1 in ((1, 1), (63, 1), (1, 1025), (512, 1024), (128, 193)):
                dims = {"batch": 2, "tokens_0": tokens_0, "tokens_1": tokens_1, "width": 3 * head_dim, **tables}
                found.append(("FusedAttention2NormRotary", dtype, Case(dims, heads(3, head_dim, epsilon=EPSILON))))
        for tokens in (1, 63, 1025):
            for size, out in ((16, 16), (192, 208), (1024, 3072)):
                dims = {"batch": 2, "tokens": tokens, "in": size, "out": out}
                found += [(op, dtype, Case(dims, {})) for op in ("Linear", "LinearNoBias", "LinearGelu")]
                gated = {**dims, "columns": 3 * out}
                found.append(("LinearGatedResidual", dtype, Case(gated, {"gate_at": 2 * out})))
            two = {"batch": 2, "tokens": tokens, "in_0": 192, "in_1": 784, "out": 320, "columns": 960}
            found.append(("Linear2GatedResidual", dtype, Case(two, {"gate_at": 320})))
            for width in (16, 304, 1024, 3072):
                dims = {"batch": 2, "tokens": tokens, "width": width, "columns": 3 * width}
                ada = {"factor_at": width, "shift_at": 2 * width, "epsilon": EPSILON}
                found += [(op, dtype, Case(dims, ada)) for op in ("AdaLayerNorm", "AdaRMSNorm")]
                found.append(("GatedResidual", dtype, Case(dims, {"gate_at": width})))
            dims = {"batch": 2, "tokens": tokens, "width": 208}
            found += [(op, dtype, Case(dims, {})) for op in CASES if op.startswith(("Taylor", "ResidualDiff"))]
    return found


def name_of(value: object) -> str:
    if isinstance(value, Case):
        return "-".join(f"{name}{size}" for name, size in {**value.dims, **value.attributes}.items() if isinstance(size, int))
    return value.value if isinstance(value, DType) else str(value)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> GpuLauncher:
    if (cubins.folder() / cubins.MANIFEST).is_file():
        return GpuLauncher(cubins.folder())
    found = "sm_{}{}".format(*torch.cuda.get_device_capability())
    arch = found if found in ARCH_NAMES else "sm_80"
    folder: Path = tmp_path_factory.mktemp("cubins")
    build(folder, [v for v in variants() if built(v, arch)], [arch])
    return GpuLauncher(folder)


def on_gpu(op: str, dtype: DType, case: Case) -> tuple[Tensors, Tensors, Tensors]:
    """Inputs on the CPU; all tensors on the GPU, outputs and scratch full of NaN; the outputs among them."""
    dtypes = tensor_dtypes(op, dtype)
    given, written = inputs(op, dtype, case.dims), outputs(op, dtype, case.dims)
    scratch = {
        name: torch.full((count,), torch.nan, dtype=TORCH[dtypes[name]])
        for name, count in scratch_elements(programs()[op], case.dims, case.attributes).items()
    }
    there = {name: tensor.contiguous().cuda() for name, tensor in {**given, **written, **scratch}.items()}
    return given, there, {name: there[name] for name in written}


def launch(kernels: GpuLauncher, op: str, dtype: DType, case: Case, tensors: Mapping[str, int]) -> None:
    """On the current stream, to its end."""
    call = kernels.prepare(op, registry.contract(op).version, dtype.value, {**case.dims, **case.attributes}, tensors)
    call(torch.cuda.current_stream().cuda_stream)
    torch.cuda.current_stream().synchronize()


def addresses(tensors: Tensors) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def run_and_check(kernels: GpuLauncher, op: str, dtype: DType, case: Case) -> Tensors:
    given, there, written = on_gpu(op, dtype, case)
    launch(kernels, op, dtype, case, addresses(there))
    got = {name: tensor.cpu() for name, tensor in written.items()}
    check(op, dtype, given, case.attributes, got, f"{op} {dtype.value} {name_of(case)} on GPU")
    return got


@pytest.mark.parametrize("dtype", TORCH, ids=name_of)
@pytest.mark.parametrize("op", sorted(CASES))
def test_every_op_against_float64(kernels: GpuLauncher, op: str, dtype: DType) -> None:
    run_and_check(kernels, op, dtype, CASES[op])


@pytest.mark.parametrize(("op", "dtype", "case"), awkward(), ids=name_of)
def test_awkward_sizes_against_float64(kernels: GpuLauncher, op: str, dtype: DType, case: Case) -> None:
    run_and_check(kernels, op, dtype, case)


@pytest.mark.parametrize("op", sorted(CASES))
def test_nothing_is_written_beside_the_outputs(kernels: GpuLauncher, op: str) -> None:
    """Outputs and scratch lie between guards; and two runs give the same bits."""
    case, dtype = CASES[op], DType.BFLOAT16
    given, there, written = on_gpu(op, dtype, case)
    guard, fenced = 4096, {}
    for name in there:
        if name not in given:
            flat = torch.full((there[name].numel() + 2 * guard,), 7.0, dtype=there[name].dtype, device="cuda")
            fenced[name] = flat
    at = {name: flat.data_ptr() + guard * flat.element_size() for name, flat in fenced.items()}
    launch(kernels, op, dtype, case, {**addresses(there), **at})
    first = {name: flat.clone() for name, flat in fenced.items()}
    for name, flat in fenced.items():
        assert (flat[:guard] == 7).all() and (flat[-guard:] == 7).all(), f"{op} wrote beside {name}"  # noqa: PT018
    launch(kernels, op, dtype, case, {**addresses(there), **at})
    for name in written:
        assert torch.equal(first[name], fenced[name]), f"{op}: {name} differs from run to run"


@pytest.mark.parametrize("op", ["FusedAttention2NormRotary", "LinearGatedResidual", "ResidualDiff"])
def test_launches_follow_the_stream_that_is_given(kernels: GpuLauncher, op: str) -> None:
    """The inputs arrive on a stream of their own, behind work that takes long: what ran ahead of it would read NaN."""
    case, dtype = CASES[op], DType.BFLOAT16
    given, there, written = on_gpu(op, dtype, case)
    late = {name: there[name].clone() for name in given}
    for name in given:
        there[name].fill_(torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, tensor in late.items():
            there[name].copy_(tensor)
        launch(kernels, op, dtype, case, addresses(there))
    check(op, dtype, given, case.attributes, {name: tensor.cpu() for name, tensor in written.items()}, f"{op} on a stream")


def test_a_captured_graph_replays_the_launches(kernels: GpuLauncher) -> None:
    op, dtype = "FusedAttention2NormRotary", DType.BFLOAT16
    case = CASES[op]
    given, there, written = on_gpu(op, dtype, case)
    values = {**case.dims, **case.attributes}
    call = kernels.prepare(op, registry.contract(op).version, dtype.value, values, addresses(there))
    call(torch.cuda.current_stream().cuda_stream)  # Loads the images: not allowed while a graph is captured.
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(torch.cuda.current_stream().cuda_stream)
    for name in written:
        there[name].fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    check(op, dtype, given, case.attributes, {name: tensor.cpu() for name, tensor in written.items()}, f"{op} replayed")


@pytest.mark.parametrize(
    ("op", "values", "message"),
    [
        ("FusedAttention", {"width": 66, "num_heads": 1}, "no variant of attention was built for bfloat16"),
        ("FusedAttention", {"keys": 0}, "keys is 0, its kernel takes 1 or more"),
        ("FusedAttentionBias", {"keys": 0}, "keys is 0, its kernel takes 1 or more"),
        ("Linear", {"in": 72}, "in_0 is 72, its kernel takes multiples of 16"),
        ("LinearGelu", {"out": 40}, "out is 40, its kernel takes multiples of 16"),
        ("GatedResidual", {"gate_at": 8}, "gate_at is 8, its kernel takes multiples of 16"),
        ("QkNormRope", {"epsilon": 1e-5}, "no variant of qk_norm_rope was built for bfloat16"),
        ("AdaLayerNorm", {"width": 8192}, "no variant of ada_layer_norm was built for bfloat16"),
    ],
)
def test_what_no_kernel_takes_is_named_and_nothing_runs(
    kernels: GpuLauncher, op: str, values: dict[str, int | float], message: str
) -> None:
    case, dtype = CASES[op], DType.BFLOAT16
    _given, there, written = on_gpu(op, dtype, case)
    changed = Case(case.dims, {**case.attributes, **values})
    with pytest.raises(BackendError, match=message):
        launch(kernels, op, dtype, changed, addresses(there))
    assert all(tensor.isnan().all() for tensor in written.values())


def test_a_tensor_that_is_not_aligned_is_refused(kernels: GpuLauncher) -> None:
    """A view that begins in the middle of a row: kernels load 16 bytes at a time."""
    op, dtype = "GatedResidual", DType.BFLOAT16
    _given, there, written = on_gpu(op, dtype, CASES[op])
    at = {**addresses(there), "y": there["y"][:, :, 1:].data_ptr()}
    with pytest.raises(BackendError, match="y is not aligned to 16 bytes"):
        launch(kernels, op, dtype, CASES[op], at)
    assert written["out"].isnan().all()


@pytest.mark.parametrize(("op", "empty"), [("GatedResidual", "tokens"), ("Linear", "tokens"), ("AdaLayerNorm", "batch")])
def test_empty_tensors_launch_nothing(kernels: GpuLauncher, op: str, empty: str) -> None:
    case, dtype = CASES[op], DType.BFLOAT16
    run_and_check(kernels, op, dtype, Case({**case.dims, empty: 0}, case.attributes))


def test_the_resolved_launches_are_what_was_built() -> None:
    """Every program of every op and dtype can be launched: no variant of CASES is missing in the build that is tested."""
    manifest = cubins.folder() / cubins.MANIFEST
    if not manifest.is_file():
        pytest.skip("looks at an installed build, which takes ten minutes: run `vitrify kernels build` first")
    there = cubins.read_manifest(cubins.folder())
    for op, program in programs().items():
        for dtype in TORCH:
            for one in resolve(program, dtype, CASES[op].dims, CASES[op].attributes):
                assert one.variant.name in there.kernels[one.variant.kernel.name].variants
