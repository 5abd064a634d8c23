"""The Conv2d family: reference, body and native kernel against float64, at every level and for every weight dtype."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from tests.compare import assert_close
from tests.kernels.op_models import one_op_model, session
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError
from vitrify.engine.native_kernel import NativeKernel
from vitrify.kernels import registry

Array = NDArray[Any]

FAMILY = ("Conv2d", "Conv2dResidual", "GroupNormSiluConv2d", "GroupNormSiluConv2dResidual", "UpsampleConv2d")
OPS = tuple(name + precision for precision in ("", "Bf16") for name in FAMILY)
WEIGHTS = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
GROUPS = {1: 1, 3: 3, 16: 4, 31: 31, 33: 11, 96: 32, 160: 32, 512: 32}

# batch, in, out, height, width, kernel: channels and pixels beside the tiles' sizes; images in several tiles, cut between rows,
# and the last between columns.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 3),
    (3, 31, 33, 2, 3, 3),
    (2, 16, 49, 8, 8, 3),
    (1, 33, 17, 17, 31, 3),
    (1, 96, 3, 5, 90, 1),
    (1, 160, 13, 40, 75, 3),
    (1, 512, 50, 9, 33, 3),
    (2, 3, 6, 64, 130, 3),
    (1, 512, 5, 7, 200, 3),
]


def tolerance(op: str) -> float:
    return registry.contract(op).tolerances[DType.FLOAT32]


def names(op: str) -> list[str]:
    return [tensor.name for tensor in registry.contract(op).inputs]


def attributes(op: str, channels: int) -> dict[str, Any]:
    return {"groups": GROUPS[channels], "epsilon": 1e-6} if registry.contract(op).attributes else {}


def inputs(op: str, size: tuple[int, ...], dtype: np.dtype[Any] = WEIGHTS[0]) -> dict[str, Array]:
    """By name, in the contract's order."""
    batch, channels, out, height, width, kernel = size
    rng = np.random.default_rng([FAMILY.index(op.removesuffix("Bf16")), *size])

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    everything = {
        "x": normal(batch, channels, height, width) * np.linspace(0.5, 2, channels, dtype=np.float32)[:, None, None] + 0.3,
        "norm_weight": 1 + 0.2 * normal(channels),
        "norm_bias": normal(channels),
        "weight": (normal(out, channels, kernel, kernel) / np.float32(kernel * np.sqrt(channels))).astype(dtype),
        "bias": normal(out),
        "residual": normal(batch, out, height, width),
    }
    return {name: everything[name] for name in names(op)}


def exact(op: str, given: dict[str, Array]) -> Array:
    """In float64 but for what the op rounds; the convolution is spelt out as a sum over its taps."""
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    x, weight = wide["x"], wide["weight"]
    if "norm_weight" in wide:
        batch, channels = x.shape[:2]
        grouped = x.reshape(batch, GROUPS[channels], -1)
        grouped = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-6)
        x = grouped.reshape(x.shape) * wide["norm_weight"][:, None, None] + wide["norm_bias"][:, None, None]
        x = x / (1 + np.exp(-x))
    if op.startswith("Upsample"):
        x = x.repeat(2, axis=2).repeat(2, axis=3)
    if op.endswith("Bf16"):
        x = x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
        weight = given["weight"].astype(ml_dtypes.bfloat16).astype(np.float64)
    kernel = weight.shape[2]
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)))
    y = np.zeros((x.shape[0], weight.shape[0], height, width))
    for row in range(kernel):
        for column in range(kernel):
            y += np.einsum("bihw,oi->bohw", padded[:, :, row : row + height, column : column + width], weight[:, :, row, column])
    return np.asarray(wide.get("residual", 0) + y + wide["bias"][:, None, None])


def kernel(op: str, given: dict[str, Array]) -> NativeKernel:
    """The kernel for this weight; it has no copy of anything else."""
    constants = [array if name == "weight" else None for name, array in given.items()]
    return NativeKernel(op, constants, attributes=attributes(op, given["x"].shape[1]))


def run(made: NativeKernel, op: str, given: dict[str, Array], threads: int = 1) -> Array:
    """Into an output full of NaN."""
    times = 2 if op.startswith("Upsample") else 1
    batch, _, height, width = given["x"].shape
    y = np.full((batch, given["weight"].shape[0], height * times, width * times), np.nan, np.float32)
    made.run(list(given.values()), [y], threads=threads)
    return y


def native(op: str, given: dict[str, Array], threads: int = 1) -> Array:
    return run(kernel(op, given), op, given, threads)


def in_onnxruntime(op: str, given: dict[str, Array], *, library: bool, marked: bool = False) -> Array:
    """As the exporter writes it: the weight is an initializer."""
    said = attributes(op, given["x"].shape[1])
    model = one_op_model(op, attributes=said, constants={"weight": given["weight"]}, marked=marked)
    feed = {name: array for name, array in given.items() if name != "weight"}
    return np.asarray(session(model.SerializeToString(), library=library).run(None, feed)[0])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_kernel_is_right_at_every_level(op: str, size: tuple[int, ...], cpu_level: str) -> None:
    given = inputs(op, size)
    assert_close(native(op, given), exact(op, given), tolerance(op), f"{op} {cpu_level}")


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.parametrize("op", ["Conv2d", "GroupNormSiluConv2dResidual", "Conv2dBf16"])
def test_a_weight_is_read_as_it_is_stored(op: str, dtype: np.dtype[Any], cpu_level: str) -> None:
    given = inputs(op, (1, 96, 49, 8, 31, 3), dtype)
    assert_close(native(op, given), exact(op, given), tolerance(op), f"{op} {dtype} {cpu_level}")


@pytest.mark.parametrize("op", OPS)
def test_reference_body_and_kernel_agree_everywhere(op: str) -> None:
    for size in SIZES[2:6]:  # PyTorch normalises no group of one pixel.
        given = inputs(op, size)
        said = attributes(op, size[1])
        tensors = [torch.from_numpy(array) for array in given.values()]
        # The evaluator has no kernel that finds the zeros around x by itself for a weight that is no constant.
        model = one_op_model(op, attributes=said, constants={"weight": given["weight"]})
        feed = {name: array for name, array in given.items() if name != "weight"}
        found = {
            "reference": registry.reference(op)(*tensors, **said)[0].numpy(),
            "body": in_onnxruntime(op, given, library=False),
            "evaluator": ReferenceEvaluator(model).run(None, feed)[0],
            # The marked body adds 1000: it did not run.
            "kernel": in_onnxruntime(op, given, library=True, marked=True),
        }
        for who, y in found.items():
            assert_close(y, exact(op, given), tolerance(op), f"{op} {size} {who}")


@pytest.mark.parametrize("op", OPS)
def test_the_threads_and_the_batch_change_no_bit(op: str, cpu_level: str) -> None:
    given = inputs(op, (3, 160, 50, 30, 40, 3))
    made = kernel(op, given)
    alone = run(made, op, given)
    for threads in (2, 3, 7):
        assert run(made, op, given, threads).tobytes() == alone.tobytes(), (cpu_level, threads)
    for row in range(3):
        one = {name: array[row : row + 1] if name in ("x", "residual") else array for name, array in given.items()}
        assert run(made, op, one).tobytes() == alone[row : row + 1].tobytes(), (cpu_level, row)


def test_pixels_off_the_image_are_zero_after_the_norm(cpu_level: str) -> None:
    """silu(shift) is not zero: what lies around the image is no normalised zero."""
    op = "GroupNormSiluConv2d"
    given = inputs(op, (1, 16, 5, 8, 8, 3))
    given["norm_bias"] = np.full(16, 7, np.float32)
    x = torch.from_numpy(given["x"]).double()
    normed = functional.group_norm(x, 4, *(torch.from_numpy(given[n]).double() for n in ("norm_weight", "norm_bias")), 1e-6)
    wanted = functional.conv2d(
        functional.silu(normed), *(torch.from_numpy(given[n]).double() for n in ("weight", "bias")), padding=1
    )
    assert_close(native(op, given), wanted.numpy(), tolerance(op), cpu_level)


def test_a_mean_far_from_zero_costs_no_accuracy(cpu_level: str) -> None:
    """A mean of 3e4 deviations: a single pass in float32 would lose every digit."""
    op = "GroupNormSiluConv2d"
    given = inputs(op, (1, 16, 5, 40, 50, 3))
    given["x"] = (np.random.default_rng(0).standard_normal(given["x"].shape) + 3e4).astype(np.float32)
    assert_close(native(op, given), exact(op, given), tolerance(op), cpu_level)


@pytest.mark.parametrize("hostile", [np.nan, np.inf])
@pytest.mark.parametrize("op", ["Conv2d", "UpsampleConv2d", "Conv2dBf16"])
def test_a_hostile_value_reaches_what_its_kernel_covers_and_no_more(op: str, hostile: float, cpu_level: str) -> None:
    given = inputs(op, (1, 33, 17, 12, 21, 3))
    clean = native(op, given)
    given["x"][0, 5, 4, 9] = hostile
    y = native(op, given)
    first, last = (8, 10) if op.startswith("Upsample") else (4, 5)
    left, right = (18, 20) if op.startswith("Upsample") else (9, 10)
    reached = np.zeros(y.shape[2:], bool)
    reached[first - 1 : last + 1, left - 1 : right + 1] = True
    assert not np.isfinite(y[..., reached]).any(), cpu_level
    assert_close(y[..., ~reached], clean[..., ~reached], tolerance(op), cpu_level)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
def test_sizes_beside_what_parts_hold(scale: float, cpu_level: str) -> None:
    """On the tile unit such an x, or such a weight, is not split: its parts or their sums would be lost."""
    given = inputs("Conv2d", (1, 33, 17, 12, 21, 3))
    given["bias"][:] = 0
    for name in ("x", "weight"):
        scaled = given | {name: given[name] * np.float32(scale)}
        assert_close(native("Conv2d", scaled) / np.float32(scale), exact("Conv2d", given), tolerance("Conv2d"), cpu_level)


@pytest.mark.parametrize("size", [(0, 16, 5, 4, 4, 3), (2, 16, 0, 4, 4, 3), (2, 16, 5, 0, 4, 3), (2, 16, 5, 4, 0, 3)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_an_empty_dimension(op: str, size: tuple[int, ...]) -> None:
    assert native(op, inputs(op, size)).size == 0


def test_what_cannot_be_is_named() -> None:
    given = inputs("GroupNormSiluConv2d", (1, 16, 5, 4, 4, 3))
    constants = [given[name] if name == "weight" else None for name in given]

    def made(**changes: Any) -> NativeKernel:
        return NativeKernel("GroupNormSiluConv2d", constants, attributes={"groups": 4, "epsilon": 1e-6} | changes)

    for changes, message in (
        ({"groups": 3}, r"attribute groups is 3, expected a divisor of 16 \(in\)"),
        ({"groups": 0}, "attribute groups is 0, expected a divisor of 16"),
        ({"epsilon": -1.0}, "attribute epsilon is -1.0+, expected 0 or more"),
    ):
        with pytest.raises(BackendError, match=f"GroupNormSiluConv2d: {message}"):
            made(**changes)
    with pytest.raises(BackendError, match="weight is not constant: it must be an initializer"):
        NativeKernel("Conv2d", [None] * 3)
    wide = np.zeros((5, 16, 5, 5), np.float32)
    with pytest.raises(BackendError, match="Conv2d: weight has 5 along kernel, expected 1 or 3"):
        NativeKernel("Conv2d", [None, wide, None])
    with pytest.raises(BackendError, match="Conv2d: weight has 3 along kernel, expected 1"):
        NativeKernel("Conv2d", [None, np.zeros((5, 16, 1, 3), np.float32), None])
    y = np.zeros((1, 5, 4, 4), np.float32)
    for name, wrong, message in (
        ("x", np.zeros((1, 15, 4, 4), np.float32), "has 16 along in, expected 15|has 15 along in, expected 16"),
        ("x", np.zeros((16, 4, 4), np.float32), "x has rank 3, expected 4"),
        ("bias", np.zeros(4, np.float32), "bias has 4 along out, expected 5"),
    ):
        with pytest.raises(BackendError, match=message):
            made().run(list((given | {name: wrong}).values()), [y])
