"""The reference: eager PyTorch over the source's bytes, whole or one block's weights at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from tests.compare import assert_close
from tests.export.by_hand import Array
from tests.export.tiny_flux import Request, TinyFlux
from tests.export.tiny_flux import request as ask
from vitrify.engine.dtypes import DType
from vitrify.export.eager import EagerModule, read_float32
from vitrify.export.recipe import Border, ComponentRecipe, GraphInput
from vitrify.export.source import TensorLocation


def step_inputs(asked: Request) -> dict[str, Array]:
    """One step's inputs by the graph's names."""
    return {**asked.once, "latents": asked.latents[0], **{name: rows[0] for name, rows in asked.by_step.items()}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("which", ["guided", "plain"])
def test_the_reference_is_diffusers_own_model(request: pytest.FixtureRequest, which: str, stream: bool) -> None:
    """The wrapper's rotary tables and timestep frequencies stand for what diffusers computes itself."""
    made: TinyFlux = request.getfixturevalue(which)
    asked = ask(made.model, batch=2, grid=(3, 4), text=6, steps=1)
    eager = EagerModule(made.recipe, made.locations, stream=stream)
    for _ in range(2):
        found = eager.run(step_inputs(asked))
        assert_close(found["noise_pred"], asked.eager(made.model, 0), 1e-6)
    labels = {label for border in made.recipe.borders for label in border.labels}
    assert set(found) == labels | {"noise_pred"}


def test_streaming_holds_one_block_at_a_time(guided: TinyFlux) -> None:
    eager = EagerModule(guided.recipe, guided.locations, stream=True)
    module = eager.module
    blocks = [module.get_submodule(f"model.{border.path}") for border in guided.recipe.borders]
    most = 0

    def count(part: nn.Module, *_: object) -> None:
        nonlocal most
        held = [b for b in blocks if any(not p.is_meta for p in b.parameters())]
        most = max(most, len(held))
        assert held == [part]

    for block in blocks:
        block.register_forward_hook(count, prepend=True)
    eager.run(step_inputs(ask(guided.model, batch=1, grid=(2, 2), text=3, steps=1)))
    assert most == 1
    assert all(p.is_meta for block in blocks for p in block.parameters())


class Branch(nn.Module):
    """`unread` is computed and thrown away: no graph has its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Linear(3, 3)
        self.unread = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kept(x), self.unread(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(self.branch(x)[0]))
        return result


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Tied()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(x)
        return result


def recipe(build: Callable[[], nn.Module] = Wrapper) -> ComponentRecipe:
    return ComponentRecipe(
        name="toy",
        class_name="Toy",
        config={},
        build=build,
        inputs=(GraphInput("x", DType.FLOAT32, ("rows", 3)),),
        outputs=("y",),
        output_shapes=(("rows", 3),),
        probe_dims=({"rows": 2}, {"rows": 5}),
        borders=(Border("branch", ("kept", None)),),
    )


@pytest.mark.parametrize("stream", [False, True])
def test_tied_and_unread_parameters(stream: bool) -> None:
    rng = np.random.default_rng(0)
    w, b, tied = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 3), (3,), (3, 3)))
    eager = EagerModule(recipe(), {"branch.kept.weight": w, "branch.kept.bias": b, "first.weight": tied}, stream=stream)
    x = rng.standard_normal((4, 3)).astype(np.float32)
    found = eager.run({"x": x})
    assert set(found) == {"branch/kept", "y"}
    assert_close(found["branch/kept"], x @ w.T + b, 1e-6)
    assert_close(found["y"], (x @ w.T + b) @ tied.T @ tied.T, 1e-6)


def test_the_tie_may_be_stored_under_its_other_name() -> None:
    w = np.eye(3, dtype=np.float32)
    eager = EagerModule(recipe(), {"branch.kept.weight": w, "branch.kept.bias": np.zeros(3, np.float32), "second.weight": 2 * w})
    np.testing.assert_array_equal(eager.run({"x": w})["y"], 4 * w)


@pytest.mark.parametrize(
    ("stored", "dtype"), [("F32", np.float32), ("BF16", ml_dtypes.bfloat16), ("F16", np.float16), ("F64", np.float64)]
)
@pytest.mark.parametrize("shape", [(2, 3), (6,), ()])
def test_stored_tensors_are_lifted_and_the_file_is_never_written(
    tmp_path: Path, stored: str, dtype: type, shape: tuple[int, ...]
) -> None:
    values: Array = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape).astype(dtype)
    file = tmp_path / "weights"
    file.write_bytes(b"odd" + values.tobytes())
    file.chmod(0o400)
    got = read_float32(TensorLocation(file, stored, shape, 3, values.nbytes))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values.astype(np.float32))
    torch.from_numpy(got).mul_(2.0)  # a warning here, of an array that cannot be written, is an error
    assert file.read_bytes() == b"odd" + values.tobytes()


def test_probe_sizes_differ_in_every_dimension(guided: TinyFlux) -> None:
    """One size could hide an axis that was mistaken for another."""
    first, second = guided.recipe.probe_dims
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)
    for sizes in (first, second):
        assert len(set(sizes.values())) == len(sizes)
