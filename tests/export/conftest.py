"""Traced once, used by many tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export import toy_family
from tests.export.tiny_flux import CONFIG, TinyFlux, compiled
from vitrify.engine.ort import OrtCpuBackend
from vitrify.export import compile as compile_module
from vitrify.export import families
from vitrify.export.recipe import ComponentRecipe


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


@pytest.fixture
def toy_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy family among the supported ones."""
    monkeypatch.setitem(families.SUPPORTED, toy_family.NAME, "tests.export.toy_family")


@pytest.fixture(scope="session")
def toy_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: copy it before changing it."""
    return toy_family.write_toy(tmp_path_factory.mktemp("toy") / "source")


@pytest.fixture(scope="session")
def _traced_toys() -> dict[str, Any]:
    return {}


@pytest.fixture
def quick(toy_supported: None, monkeypatch: pytest.MonkeyPatch, _traced_toys: dict[str, Any]) -> None:  # noqa: ARG001
    """Each component of the toy is traced once in a session; every export works on its own copy."""
    real = compile_module._traced

    def cached(recipe: ComponentRecipe, progress: Callable[[str, str], None]) -> Any:
        key = f"{recipe.name} {dict(recipe.config)}"
        if key not in _traced_toys:
            _traced_toys[key] = real(recipe, lambda _component, _phase: None)
        progress(recipe.name, "trace")
        progress(recipe.name, "passes")
        made = _traced_toys[key]
        return replace(made, recipe=recipe, models={name: model.clone() for name, model in made.models.items()})

    monkeypatch.setattr(compile_module, "_traced", cached)
