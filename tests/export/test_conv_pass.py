"""Convolutions: what the pass takes in, what it leaves and why; results stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.export.by_hand import graph, ops
from tests.export.fused_graphs import PARAMETERS, Dims, fused, reasons
from vitrify.export.passes.conv import fuse_convs

IMAGES = "float[b,4,h,w] {0}"
CONV = "Conv<pads = [1, 1, 1, 1]>({0}, w, b)"
NORM = "GroupNormalization<num_groups = 2, epsilon = 0.01>(x, s, b)"
DOUBLED = 'Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, none, twice)'
CONV_SHAPES: dict[str, Dims] = {"x": (2, 4, 5, 6), "w": (4, 4, 3, 3), "s": (4,), "b": (4,)}


def convs(model: ir.Model) -> None:
    fuse_convs(model, PARAMETERS)


def images(body: str, outputs: str = "y", more: str = "", values: str = "n g a p q d e", kernel: int = 3) -> ir.Model:
    """x: [b, 4, h, w], a kernel of `kernel`, and what a norm needs."""
    known = ", ".join(IMAGES.format(name) for name in values.split() if name not in outputs.split())
    given = ", ".join(IMAGES.format(name) for name in outputs.split())
    return graph(f"""({IMAGES.format("x")}, float[4,4,{kernel},{kernel}] w, float[4] s, float[4] b{more}) => ({given})
        <float[1] one = {{1}}, {known}> {{ {body} }}""")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"y = {CONV.format('x')}", ["Conv2d"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(n, g) y = {CONV.format('a')}", ["GroupNormSiluConv2d"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(g, n) p = {CONV.format('a')} y = Add(p, x)", ["GroupNormSiluConv2dResidual"]),
        (f"p = {CONV.format('x')} y = Add(x, p)", ["Conv2dResidual"]),
        # of two convolutions the one behind the norm takes the other in, on whichever side
        (f"n = {NORM} g = Sigmoid(n) a = Mul(g, n) p = {CONV.format('a')} q = {CONV.format('x')} y = Add(p, q)",
         ["Conv2d", "GroupNormSiluConv2dResidual"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(g, n) p = {CONV.format('a')} q = {CONV.format('x')} y = Add(q, p)",
         ["Conv2d", "GroupNormSiluConv2dResidual"]),
        # what another reads is not taken in
        (f"n = {NORM} g = Sigmoid(n) a = Mul(n, g) p = {CONV.format('a')} y = Add(p, a)",
         ["GroupNormalization", "Sigmoid", "Mul", "Conv2dResidual"]),
        (f"n = {NORM} g = Sigmoid(n) a = Mul(n, g) p = {CONV.format('a')} y = Add(p, n)",
         ["GroupNormalization", "Sigmoid", "Mul", "Conv2dResidual"]),
        (f"p = {CONV.format('x')} q = Add(x, p) y = Sub(q, p)", ["Conv2d", "Add", "Sub"]),
        # no SiLU: another gate, another activation
        (f"n = {NORM} g = Sigmoid(x) a = Mul(n, g) y = {CONV.format('a')}", ["GroupNormalization", "Sigmoid", "Mul", "Conv2d"]),
        (f"n = {NORM} g = Tanh(n) a = Mul(n, g) y = {CONV.format('a')}", ["GroupNormalization", "Tanh", "Mul", "Conv2d"]),
        (f"n = {NORM.replace('num_groups', 'stash_type = 10, num_groups')} g = Sigmoid(n) a = Mul(n, g) y = {CONV.format('a')}",
         ["GroupNormalization", "Sigmoid", "Mul", "Conv2d"]),
        # no residual of y's sizes
        (f"p = {CONV.format('x')} y = Add(p, one)", ["Conv2d", "Add"]),
    ],
)  # fmt: skip
def test_what_a_convolution_takes_in(body: str, expected: list[str]) -> None:
    assert fused(images(body), convs, CONV_SHAPES) == expected


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("attributes", ["", "strides = [1, 1], group = 1, ", 'auto_pad = "NOTSET", dilations = [1, 1], '])
def test_a_convolution_may_say_what_goes_without_saying(attributes: str, kernel: int) -> None:
    pads = f"pads = [{', '.join(4 * [str(kernel // 2)])}]"
    model = images(f"y = Conv<{attributes}{pads}>(x, w, b)", kernel=kernel)
    assert fused(model, convs, {**CONV_SHAPES, "w": (4, 4, kernel, kernel)}) == ["Conv2d"]


def doubled(resize: str = DOUBLED, after: str = f"y = {CONV.format('d')}", more: str = "") -> ir.Model:
    return graph(f"""(float[b,4,h,w] x, float[4,4,3,3] w, float[4] b) => (float[b,4,h2,w2] y{more})
        <float[4] twice = {{1, 1, 2, 2}}, float[4] wide = {{1, 1, 2, 3}}, float[b,4,h2,w2] d, float[b,4,h2,w2] p> {{
        d = {resize.replace("none", "")} {after} }}""")


def test_a_doubled_image_is_taken_in() -> None:
    shapes = {name: shape for name, shape in CONV_SHAPES.items() if name != "s"}
    assert fused(doubled(), convs, shapes) == ["UpsampleConv2d"]
    # Its sum is another op: there is none with a residual.
    after = f"p = {CONV.format('d')} y = Add(p, p)"
    assert fused(doubled(after=after), convs, shapes) == ["UpsampleConv2d", "Add"]


@pytest.mark.parametrize(
    "resize",
    [
        DOUBLED.replace("twice", "wide"),
        DOUBLED.replace('"nearest"', '"linear"'),
        DOUBLED.replace('"floor"', '"ceil"'),
        DOUBLED.replace('"asymmetric"', '"half_pixel"'),
        DOUBLED.replace("Resize<", "Resize<axes = [0, 1, 3, 2], "),
    ],
)
def test_another_resize_stays(resize: str) -> None:
    shapes = {name: shape for name, shape in CONV_SHAPES.items() if name != "s"}
    assert fused(doubled(resize), convs, shapes) == ["Resize", "Conv2d"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("Conv(x, w, b)", "pads [1, 1, 1, 1], this one [0, 0, 0, 0]"),
        ("Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b)", "strides [1, 1], this one [2, 2]"),
        ("Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, w, b)", "dilations [1, 1], this one [2, 2]"),
        ('Conv<auto_pad = "SAME_UPPER">(x, w, b)', "pads [1, 1, 1, 1]"),
        ("Conv<pads = [1, 1, 1, 1]>(x, w)", "weight or bias is no parameter"),
        ("Conv<pads = [1, 1, 1, 1]>(x, w, s)", "weight or bias is no parameter"),
    ],
)
def test_another_convolution_stays_and_says_why(call: str, reason: str) -> None:
    model = images(f"y = {call}")
    convs(model)
    assert ops(model) == ["Conv"]
    assert reason in reasons(model)["Conv"]


def test_a_kernel_of_another_size_stays_and_says_why() -> None:
    model = images("y = Conv<pads = [2, 2, 2, 2]>(x, w, b)", kernel=5)
    convs(model)
    assert "square kernels of 1 and 3, this one is 5 x 5" in reasons(model)["Conv"]
