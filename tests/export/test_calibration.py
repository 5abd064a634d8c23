"""Recording what a component is called with leaves the libraries and the modules as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import diffusers.utils.logging
import pytest
import torch
import transformers.utils.logging
from torch import nn

from vitrify.engine.errors import CompileError
from vitrify.export.calibration import recorded_calls

LIBRARIES: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)


class Part(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Pipe:
    """A diffusers pipeline of one component, that a prompt can break."""

    def __init__(self) -> None:
        self.part = Part()

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def __call__(self, prompt: str, generator: torch.Generator, output_type: str, num_inference_steps: int) -> None:
        assert output_type == "np"
        for _step in range(num_inference_steps):
            self.part(torch.randn(2, generator=generator))
        if prompt == "break":
            raise RuntimeError("broken by its prompt")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    made = Pipe()
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *_, **__: made)
    return made


@pytest.fixture(params=[True, False], ids=["bars", "no bars"])
def bars(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the caller has progress bars on."""
    before = [library.is_progress_bar_enabled() for library in LIBRARIES]
    for library in LIBRARIES:
        library.enable_progress_bar() if request.param else library.disable_progress_bar()
    yield request.param
    for library, was in zip(LIBRARIES, before, strict=True):
        library.enable_progress_bar() if was else library.disable_progress_bar()


def record(*prompts: str) -> dict[str, Any]:
    folder: Any = SimpleNamespace(root=Path("source"), variant=None)
    part: Any = SimpleNamespace(name="part", called="")
    return dict(recorded_calls(folder, [part], prompts, {"num_inference_steps": 2, "height": 8}))


def test_calls_are_recorded_and_made_again(pipe: Pipe, bars: bool) -> None:
    runs = record("a", "b")["part"]
    assert [call().shape for call in runs.calls] == 4 * [torch.Size([2])]
    assert not pipe.part._forward_pre_hooks
    assert [library.is_progress_bar_enabled() for library in LIBRARIES] == [bars, bars]


def test_a_pipeline_that_fails_leaves_no_hook_and_bars_as_they_were(pipe: Pipe, bars: bool) -> None:
    with pytest.raises(CompileError, match="RuntimeError: broken by its prompt"):
        record("a", "break")
    assert not pipe.part._forward_pre_hooks
    assert [library.is_progress_bar_enabled() for library in LIBRARIES] == [bars, bars]
