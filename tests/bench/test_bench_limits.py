"""The limit of registers: units that this processor has, in a plausible order."""

from __future__ import annotations

import platform

import pytest

from vitrify.bench.machine import this_machine
from vitrify.bench.register_peaks import UNITS, register_peaks


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the units known so far are those of x86-64")
def test_every_unit_that_the_processor_has_gets_a_peak() -> None:
    peaks = register_peaks(1, seconds=0.005)
    flags = set(this_machine().cpu_flags)
    assert set(peaks) == {words for name, words in UNITS.items() if name in flags}
    # One core: no slower than a multiplication and an addition in each lane every fourth cycle of 1 GHz, and no wonder.
    for words, lanes in (("float32, AVX2", 8), ("float32, AVX-512", 16)):
        if words in peaks:
            assert lanes * 2 * 0.25e9 < peaks[words] < lanes * 2 * 4 * 6e9
