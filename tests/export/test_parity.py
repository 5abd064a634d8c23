"""The measure: what it says of equal, close, wrong and broken arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrify.engine.errors import CompileError, ParityError
from vitrify.export.parity import BLOCK_TOLERANCE, COMPONENT_TOLERANCE, Difference, difference, rounded_up

REFERENCE = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)


def test_the_tolerances_are_those_promised() -> None:
    assert (BLOCK_TOLERANCE, COMPONENT_TOLERANCE) == (1e-5, 1e-4)


def test_equal_arrays_do_not_differ() -> None:
    assert difference(REFERENCE, REFERENCE.copy()) == Difference(0.0, 0.0)
    assert difference(np.zeros((0, 3)), np.zeros((0, 3))) == Difference(0.0, 0.0)
    assert difference(np.zeros(4), np.zeros(4)) == Difference(0.0, 0.0)


@pytest.mark.parametrize("factor", [1 + 1e-3, 1 - 1e-6, 2.0, -1.0, 0.0])
def test_a_scaled_array_is_as_far_as_its_factor(factor: float) -> None:
    b = REFERENCE.astype(np.float64)
    found = difference(factor * b, b)
    assert found.relative == pytest.approx(abs(factor - 1), rel=1e-6)
    assert found.worst == pytest.approx(abs(factor - 1) * np.abs(b).max() / np.sqrt(np.mean(b * b)), rel=1e-6)


def test_one_wrong_element_among_many_shows_in_the_worst() -> None:
    b = np.ones(1_000_000)
    a = b.copy()
    a[123_456] += 0.01
    found = difference(a, b)
    assert found.relative == pytest.approx(1e-5, rel=1e-6)
    assert found.worst == pytest.approx(1e-2, rel=1e-6)
    with pytest.raises(ParityError, match=r"worst element 1.00e-02 of the rms \(allowed 2e-03\)"):
        found.check(1e-4, "here")


def test_where_both_round_an_element_is_held_against_its_channel() -> None:
    """Of a channel 20 times as large an element may be as much further off, of the others none; and never in float32."""
    b = np.random.default_rng(0).standard_normal((2, 300, 64))
    b[..., 7] *= 20
    a = b.copy()
    a[1, 30, 7] += 5
    assert difference(a, b).worst > 1
    assert difference(a, b, rounded=True).worst == pytest.approx(0.25, rel=0.1)
    a[1, 30, 8] += 5
    assert difference(a, b, rounded=True).worst == difference(a, b).worst
    small = 1e-3 * b  # A channel smaller than the whole is held against the whole.
    small[..., 7] *= 1000
    moved = small.copy()
    moved[0, 0, 3] += 1e-3
    assert difference(moved, small, rounded=True).worst == difference(moved, small).worst


def test_against_a_zero_reference_the_error_is_absolute() -> None:
    assert difference(np.array([3.0, 4.0]), np.zeros(2)).relative == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["ours", "reference", "both"])
def test_what_is_not_finite_is_infinitely_far(bad: float, side: str) -> None:
    a, b = REFERENCE.copy(), REFERENCE.copy()
    if side != "reference":
        a[1, 2] = bad
    if side != "ours":
        b[1, 2] = bad
    found = difference(a, b)
    assert found == Difference(math.inf, math.inf)
    with pytest.raises(ParityError):
        found.check(1.0, "here")


def test_another_shape_is_infinitely_far() -> None:
    assert difference(REFERENCE, REFERENCE[:, :6]) == Difference(math.inf, math.inf)
    assert difference(REFERENCE, REFERENCE[None]) == Difference(math.inf, math.inf)


@pytest.mark.parametrize(
    "found", [Difference(math.nan, 0.0), Difference(0.0, math.nan), Difference(1e-5, 3e-3), Difference(2e-4, 0.0)]
)
def test_what_is_too_far_raises_and_says_both_errors(found: Difference) -> None:
    with pytest.raises(ParityError, match=r"block 7 differs from eager PyTorch: relative error .* worst element") as raised:
        found.check(1e-4, "block 7")
    assert isinstance(raised.value, CompileError)


def test_the_bounds_themselves_pass() -> None:
    Difference(1e-4, 20 * 1e-4).check(1e-4, "here")


def test_two_differences_join_to_the_larger_of_each() -> None:
    assert Difference(1.0, 2.0) | Difference(3.0, 1.0) == Difference(3.0, 2.0)


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_rounded_up_is_the_next_of_1_2_and_5(value: float) -> None:
    rounded = rounded_up(value)
    mantissa, exponent = f"{rounded:e}".split("e")
    assert float(mantissa) in (1.0, 2.0, 5.0)
    assert rounded == float(f"{mantissa.partition('.')[0]}e{exponent}"), "no digits behind"
    assert value <= rounded
    assert rounded <= 2.5 * value * (1 + 1e-15), "none of them lies between"
    assert rounded_up(rounded) == rounded


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((v, v) for v in (0.0, 1e-5, 2e-7, 5e-300, 0.5, 1.0, 20.0)),
        *((1.0000001e-5, 2e-5), (3e-7, 5e-7), (5.1e-7, 1e-6), (9.99e-6, 1e-5), (7.0, 10.0)),
    ],
)
def test_rounded_up_by_example(value: float, expected: float) -> None:
    assert rounded_up(value) == expected
