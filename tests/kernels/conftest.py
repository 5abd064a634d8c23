"""For the tests of the kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vitrify.engine import native_library


@pytest.fixture(params=native_library.cpu_levels())
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine, forced while the test runs."""
    native_library.force_cpu_level(request.param)
    yield request.param
    native_library.force_cpu_level(None)
