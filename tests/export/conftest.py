"""Traced once, used by many tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.export.tiny_flux import CONFIG, TinyFlux, compiled
from vitrify.engine.ort import OrtCpuBackend


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Small work: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def backend() -> OrtCpuBackend:
    return OrtCpuBackend(kernels="portable")


@pytest.fixture(scope="session")
def guided(tmp_path_factory: pytest.TempPathFactory) -> TinyFlux:
    """dev-like: guidance embedding, one double and two single blocks; bfloat16 weights."""
    return compiled(CONFIG, tmp_path_factory.mktemp("guided"), torch.bfloat16)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TinyFlux:
    """schnell-like: no guidance embedding, two double blocks and one single; float32 weights, heads of another size."""
    config = {**CONFIG, "guidance_embeds": False, "num_layers": 2, "num_single_layers": 1, "num_attention_heads": 3}
    return compiled(config, tmp_path_factory.mktemp("plain"), seed=1)
