"""bf16 and int8: what is rounded, what is kept above, what the files hold, and that the graphs compute it."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from tests.export.by_hand import graph
from tests.export.test_compile import DENOISER, ENCODER, snapshot
from tests.export.test_reverify import flip
from vitrify.engine.artifact import Artifact
from vitrify.engine.denoiser import LOOP_SEGMENTS
from vitrify.engine.errors import ArtifactError, CompileError, ParityError, SpecError
from vitrify.engine.source_record import source_of
from vitrify.engine.specs import ComponentSpec, PrecisionSpec
from vitrify.export import compile as compile_module
from vitrify.export import lowering
from vitrify.export.calibration import _steps
from vitrify.export.compile import compile_pipeline, plan_pipeline
from vitrify.export.lowering import layers_of
from vitrify.export.options import ExportOptions, parse_precision
from vitrify.export.precision import BOUNDS, _fewest, choose_precision
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.reverify import verify_artifact
from vitrify.export.rounding import Runs, deciding, int8_rows, layer_errors, output_errors, rounded
from vitrify.export.verify import random_runs
from vitrify.kernels import registry

quick = pytest.mark.usefixtures("quick")


# ---- rounding


def test_int8_rows_are_off_by_half_a_step_at_most_and_reach_127() -> None:
    sizes = np.logspace(-6, 6, 7, dtype=np.float32)[:, None]
    weight = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32) * sizes
    rows, scale = int8_rows(weight)
    assert (rows.dtype, scale.dtype) == (np.int8, np.float32)
    assert (np.abs(rows.astype(int)).max(axis=1) == 127).all()
    off = np.abs(rows * scale[:, None].astype(np.float64) - weight)
    assert (off <= scale[:, None] * 0.5001).all()


def test_rows_rounded_again_stay_what_they_are() -> None:
    weight = np.random.default_rng(1).standard_normal((50, 40)).astype(np.float32)
    rows, scale = int8_rows(weight)
    again, same = int8_rows(rows * scale[:, None])
    np.testing.assert_array_equal(again, rows)
    np.testing.assert_allclose(same, scale, rtol=2e-7)


def test_rows_of_zeros_stay_zeros() -> None:
    rows, scale = int8_rows(np.zeros((2, 3), np.float32))
    assert not rows.any()
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_a_convolution_is_rounded_as_its_op_rounds_it() -> None:
    layer = torch.nn.Conv2d(5, 7, 3, padding=1)
    x = torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        exact = layer(x)
        with rounded(torch.nn.Sequential(layer), {"0.weight": "bf16"}):
            found = layer(x)
        expected = registry.reference("Conv2dBf16")(x, layer.weight, layer.bias)[0]
    assert torch.equal(found, expected)
    assert 1e-4 < torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact) < 1e-2


def test_a_layer_is_rounded_inside_the_block_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        exact = module(x)
        with rounded(module, {"1.weight": "bf16", "0.weight": "fp32"}):
            lower = module(x)
        hidden = module[0](x).bfloat16().double()
        by_hand = hidden @ module[1].weight.bfloat16().double().T + module[1].bias.double()
        assert torch.allclose(lower.double(), by_hand, rtol=1e-5, atol=1e-6)
        assert not torch.equal(lower, exact)
        assert torch.equal(module(x), exact)


@pytest.mark.parametrize(("poor", "kept"), [(1, True), (2, False)])
def test_the_error_is_that_which_95_of_100_outputs_keep(poor: int, kept: bool) -> None:
    """Of twenty outputs; in a poor one two large numbers cancel, which bfloat16 cannot bear."""
    layer = nn.Sequential(nn.Linear(16, 16, bias=False))
    layer[0].weight.data[:, 1] = -layer[0].weight.data[:, 2]
    inputs = [torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(n)) for n in range(20)]
    for x in inputs[:poor]:
        x[..., 1:3] += 3000.0
    with torch.no_grad():
        runs = Runs(layer, [partial(layer, x) for x in inputs])
        exact = dict(enumerate(map(layer, inputs)))
        errors = output_errors(runs, {"0.weight": "bf16"}, exact)
        assert set(output_errors(runs, {}, exact).values()) == {0.0}
    assert sorted(place for place, error in errors.items() if error > 1) == list(range(poor))
    error = errors[deciding(errors)]
    assert (0.001 < error < 0.01) if kept else error > 1


def test_calibration_reaches_the_last_noise_level_of_a_request() -> None:
    given = _steps(20, {"sigmas"})
    assert given["num_inference_steps"] == len(given["sigmas"]) == 6
    assert (given["sigmas"][0], given["sigmas"][-1]) == (1.0, 0.05)
    assert _steps(20, {}) == {"num_inference_steps": 6}
    assert _steps(4, {"sigmas"}) == {"num_inference_steps": 4}


# ---- the choice


def models(*names: str) -> dict[str, Any]:
    """A graph with a Linear over each of these weights, [16, 16]."""
    nodes = "\n".join(f'h{i + 1} = vitrify.LinearNoBias(h{i}, "{name}")' for i, name in enumerate(names))
    weights = ", ".join(f'float[16,16] "{name}"' for name in names)
    return {"model": graph(f"(float[batch,tokens,16] h0, {weights}) => (float[batch,tokens,16] h{len(names)}) {{ {nodes} }}")}


class Layers(nn.Module):
    """Four linear layers side by side, added up. The third sees large numbers that do not reach its exact result: one that its
    weights ignore, which int8's one scale per token cannot bear, or two that cancel, which bfloat16 cannot bear either."""

    def __init__(self, ignored: float, cancelled: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))
        for layer in self.layers:
            layer.weight.data = torch.randn(16, 16, generator=generator)
        third = self.layers[2].weight.data
        third[:, 0], third[:, 1] = 0.0, -third[:, 2]
        self.large = torch.zeros(4, 16)
        self.large[2, :3] = torch.tensor([ignored, cancelled, cancelled])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(x + large) for layer, large in zip(self.layers, self.large, strict=True)]).sum(dim=0)


def runs_of(module: nn.Module) -> Runs:
    inputs = [torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    return Runs(module, [partial(module, x) for x in inputs])


NAMES = tuple(f"layers.{i}.weight" for i in range(4))


def choose(precision: str, *, ignored: float = 0.0, cancelled: float = 0.0) -> PrecisionSpec:
    runs = runs_of(Layers(ignored, cancelled))
    return choose_precision("four", models(*NAMES), precision, runs, "these", lambda _: None)


def test_all_layers_go_where_the_bound_allows_it() -> None:
    chosen = choose("int8")
    assert {name: layer.precision for name, layer in chosen.layers.items()} == dict.fromkeys(NAMES, "int8")
    assert 0 < chosen.error <= chosen.bound == BOUNDS["int8"]
    assert all(0 < layer.error < 0.03 for layer in chosen.layers.values())


def test_the_worst_layer_alone_is_kept_above() -> None:
    chosen = choose("int8", ignored=100.0)
    assert {name for name, layer in chosen.layers.items() if layer.precision == "bf16"} == {"layers.2.weight"}
    assert chosen.error <= chosen.bound


def test_a_trial_makes_the_run_that_decides_and_what_is_chosen_all() -> None:
    """The exact outputs are made once however long the search; the layers' own errors take a pass before."""
    runs = runs_of(Layers(100.0, 0.0))
    made: list[int] = []

    def counted(place: int) -> torch.Tensor:
        made.append(place)
        return runs.calls[place]()

    calls = [partial(counted, place) for place in range(len(runs.calls))]
    choose_precision("four", models(*NAMES), "int8", Runs(runs.module, calls), "these", lambda _: None)
    every = list(range(len(calls)))
    assert made[:9] == 3 * every
    assert made[-3:] == every
    trials = made[9:-3]
    assert trials
    assert len(set(trials)) == 1


class Uneven(nn.Module):
    """Five linear layers of which each run, of a number that tells it, sees one with inputs that int8 cannot bear."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(5))
        for layer in self.layers:
            layer.weight.data = torch.randn(16, 16, generator=generator)
            layer.weight.data[:, 0] = 0.0

    def forward(self, x: torch.Tensor, hard: int) -> torch.Tensor:
        large = torch.zeros(5, 16)
        large[hard, 0] = 60.0 + 20.0 * hard
        return torch.stack([layer(x + more) for layer, more in zip(self.layers, large, strict=True)]).sum(dim=0)


def test_the_search_goes_on_with_the_run_that_decides_next() -> None:
    """Each run alone needs one layer above; together they need as many as there are kinds of run."""
    module = Uneven()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    names = tuple(f"layers.{i}.weight" for i in range(5))
    runs = Runs(module, [partial(module, x, hard) for hard in (1, 3, 4)])
    chosen = choose_precision("five", models(*names), "int8", runs, "these", lambda _: None)
    above = {name for name, layer in chosen.layers.items() if layer.precision == "bf16"}
    assert above == {f"layers.{i}.weight" for i in (1, 3, 4)}
    assert chosen.error <= chosen.bound


@pytest.mark.parametrize("needed", range(1, 14))
def test_fewest_is_found_from_below(needed: int) -> None:
    asked: list[int] = []

    def enough(kept: int) -> bool:
        asked.append(kept)
        return kept >= needed

    assert _fewest(0, 12, enough) == min(needed, 12)
    assert len(asked) <= 7
    assert _fewest(needed - 1, needed, enough) == needed


def test_outputs_of_zeros_are_off_by_nothing_or_by_all() -> None:
    layer = nn.Sequential(nn.Linear(16, 16, bias=False))
    layer[0].weight.data.zero_()
    runs = runs_of(layer)
    with torch.no_grad():
        zeros = {place: call() for place, call in enumerate(runs.calls)}
        assert set(output_errors(runs, {"0.weight": "bf16"}, zeros).values()) == {0.0}
        layer[0].weight.data.fill_(1.0)
        assert set(output_errors(runs, {"0.weight": "bf16"}, zeros).values()) == {math.inf}
        layer[0].weight.data.fill_(math.nan)
        assert set(output_errors(runs, {"0.weight": "bf16"}, zeros).values()) == {math.inf}


def test_hooks_go_when_a_run_fails() -> None:
    module = Layers(0.0, 0.0)

    def failing() -> torch.Tensor:
        raise RuntimeError("in the middle")

    runs = Runs(module, [partial(module, torch.ones(1, 1, 16)), failing])
    with pytest.raises(RuntimeError, match="in the middle"), torch.no_grad():
        layer_errors(runs, dict.fromkeys(NAMES, "bf16"))
    assert not [layer for layer in module.layers if layer._forward_hooks]


def test_bf16_keeps_layers_in_fp32() -> None:
    chosen = choose("bf16", cancelled=300.0)
    assert {name for name, layer in chosen.layers.items() if layer.precision == "fp32"} == {"layers.2.weight"}


def test_a_bound_that_nothing_keeps_is_said() -> None:
    with pytest.raises(
        CompileError, match=r"four: even with every layer one precision above .* allowed 0.04; .*--precision four=fp32"
    ):
        choose("int8", cancelled=3000.0)


def test_only_what_linear_ops_alone_read_is_rounded() -> None:
    text = (
        "(float[b,t,16] x, float[16,16] w, float[16,16] shared, float[16,16] table) => (float[b,t,16] y, float[16,16] z) "
        "{ h = vitrify.LinearNoBias(x, w)\n y = vitrify.LinearNoBias(h, shared)\n z = Add(shared, table) }"
    )
    assert layers_of({"model": graph(text)}) == {"w": True}
    wide = "(float[b,t,131073] x, float[2,131073] w) => (float[b,t,2] y) { y = vitrify.LinearNoBias(x, w) }"
    assert layers_of({"model": graph(wide)}) == {"w": False}


def test_an_int8_component_measures_its_convolutions_in_bf16_and_may_keep_them_in_fp32() -> None:
    text = (
        '(float[b,16,h,v] x, float[16,16,3,3] "0.weight", float[16] "0.bias", float[16,16,3,3] "1.weight") '
        "=> (float[b,16,h,v] y) "
        '{ a = vitrify.Conv2d(x, "0.weight", "0.bias") y = vitrify.Conv2d(a, "1.weight", "0.bias") }'
    )
    convs = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)))
    x = torch.randn(1, 16, 5, 5, generator=torch.Generator().manual_seed(1))

    def chosen() -> PrecisionSpec:
        runs = Runs(convs, [lambda: convs(x)])
        return choose_precision("vae", {"model": graph(text)}, "int8", runs, "x", lambda _: None)

    with torch.no_grad():
        found = chosen().layers
        assert {name: layer.precision for name, layer in found.items()} == {"0.weight": "bf16", "1.weight": "bf16"}
        assert all(1e-4 < layer.error < 1e-2 for layer in found.values())
        # The second's weights cancel but for what bfloat16 cannot hold.
        convs[1].weight[:, 1] = -convs[1].weight[:, 0]
        convs[0].bias[:2] = 3000.0
        found = chosen().layers
    assert {name: layer.precision for name, layer in found.items()} == {"0.weight": "bf16", "1.weight": "fp32"}


def test_a_convolution_is_a_layer_that_int8_does_not_hold() -> None:
    text = (
        "(float[b,16,h,v] x, float[16] n, float[16,16,3,3] w, float[16] b) => (float[b,16,h,v] y) "
        "{ y = vitrify.GroupNormSiluConv2dResidual<groups = 4, epsilon = 1e-6>(x, n, n, w, b, x) }"
    )
    assert layers_of({"model": graph(text)}) == {"w": False}


# ---- what is asked for


def test_precision_is_parsed() -> None:
    assert parse_precision("int8") == {"": "int8"}
    options = ExportOptions(precision=parse_precision("transformer=int8, vae=fp32"))
    assert [options.precision_of(name) for name in ("transformer", "vae", "text_encoder")] == ["int8", "fp32", "fp32"]
    assert ExportOptions(precision=parse_precision("bf16,vae=fp32")).precision_of("text_encoder") == "bf16"


@pytest.mark.parametrize("text", ["fp8", "transformer=", "=int8", "a=int8,a=bf16", "", "int8,bf16"])
def test_another_precision_is_refused(text: str) -> None:
    with pytest.raises(CompileError, match=r"--precision .*: expected fp32, bf16, int8"):
        parse_precision(text)


@quick
def test_a_component_that_is_not_there_is_named(toy_source: Path, tmp_path: Path) -> None:
    """Before anything is traced, which takes long, and by a plan too."""
    phases: list[str] = []
    options = ExportOptions(precision={"unet": "bf16"})
    for attempt in (
        lambda: compile_pipeline(toy_source, tmp_path / "art", options, progress=lambda *at: phases.append(at[1])),
        lambda: plan_pipeline(toy_source, options, progress=lambda *at: phases.append(at[1])),
    ):
        with pytest.raises(CompileError, match="--precision names unet; the components are encoder, denoiser"):
            attempt()
    assert phases == []
    assert list(tmp_path.iterdir()) == []


# ---- the toy, whole


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers has no toy pipeline: random runs stand for its calls."""

    def runs(folder: Any, components: list[ComponentRecipe], prompts: Any, defaults: Any) -> dict[str, Runs]:  # noqa: ARG001
        found = {}
        for component in components:
            stored = folder.weights(component.name).tensors
            found[component.name] = random_runs(component, stored)
        return found

    monkeypatch.setattr(compile_module, "recorded_calls", runs)


@pytest.fixture
def source(toy_source: Path, tmp_path: Path) -> Path:
    """The toy in float32, as wide as its bound for int8 needs."""
    folder = Path(shutil.copytree(toy_source, tmp_path / "source"))
    for path in (ENCODER, DENOISER):
        save_file({name: value.astype(np.float32) for name, value in load_file(folder / path).items()}, folder / path)
    return folder


def exported(source: Path, out: Path, precision: str, **options: Any) -> Artifact:
    compile_pipeline(source, out, ExportOptions(precision=parse_precision(precision), **options))
    return Artifact.open(out, verify="full")


def op_types(artifact: Artifact, spec: ComponentSpec, graphs: tuple[str, ...]) -> set[str]:
    found = set()
    for name in graphs:
        proto = onnx.load(artifact.path(spec.graphs[name].path), load_external_data=False)
        found |= {node.op_type for node in proto.graph.node if node.domain == "vitrify"}
    return found


@quick
@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_files_hold_the_layers_rounded_and_all_else_as_it_was(source: Path, tmp_path: Path, precision: str) -> None:
    opened = exported(source, tmp_path / "art", precision)
    for path in (ENCODER, DENOISER):
        before, after = load_file(source / path), load_file(opened.root / path)
        spec = opened.manifest.components[path.split("/")[0]]
        assert spec.precision is not None
        layers = {name: layer.precision for name, layer in spec.precision.layers.items()}
        assert layers
        for name, value in before.items():
            match layers.get(name, "fp32"):
                case "int8":
                    rows, scale = int8_rows(value)
                    np.testing.assert_array_equal(after[name], rows)
                    np.testing.assert_array_equal(after[name + "_scale"], scale)
                case "bf16":
                    np.testing.assert_array_equal(after[name], value.astype(ml_dtypes.bfloat16))
                case _:
                    np.testing.assert_array_equal(after[name], value)
                    assert after[name].dtype == value.dtype
        assert set(after) - set(before) == {f"{name}_scale" for name, kind in layers.items() if kind == "int8"}


@quick
@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize(("precision", "suffix"), [("bf16", "Bf16"), ("int8", "Int8")])
def test_the_graphs_have_the_ops_and_the_manifest_says_it(source: Path, tmp_path: Path, precision: str, suffix: str) -> None:
    opened = exported(source, tmp_path / "art", f"denoiser={precision}")
    encoder, denoiser = opened.manifest.components.values()
    assert encoder.precision is None
    assert op_types(opened, encoder, ("model",)) == {"Linear"}
    found = op_types(opened, denoiser, LOOP_SEGMENTS)
    assert any(op.endswith(suffix) for op in found)
    assert denoiser.precision is not None
    assert (denoiser.precision.name, denoiser.precision.bound) == (precision, BOUNDS[precision])
    assert 0 < denoiser.precision.error <= denoiser.precision.bound
    assert set(opened.manifest.ops) >= found
    # Both comparisons stand there: in float32, and rounded.
    assert {"noise_pred"} < set(denoiser.parity.measurements)
    assert any(key.startswith(f"{precision}, block") for key in denoiser.parity.measurements)
    assert sum(graph.parameter_bytes for graph in denoiser.graphs.values()) < (source / DENOISER).stat().st_size
    assert ComponentSpec.from_json(denoiser.to_json()) == denoiser


@quick
@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_verify_measures_it_again_over_its_own_weights_and_its_sources(source: Path, tmp_path: Path, precision: str) -> None:
    opened = exported(source, tmp_path / "art", precision, parity=False)
    for against in (None, source):
        found = verify_artifact(opened, against)
        assert all(spec.checked for spec in found.values())
        assert found["denoiser"].method == "blocks"
    # The source's file is not in the artifact, but known there.
    digest = hashlib.sha256((source / DENOISER).read_bytes()).hexdigest()
    assert source_of(opened.manifest.provenance).weights[DENOISER] == digest != opened.manifest.files[DENOISER].sha256
    flip(source / DENOISER, -1)
    with pytest.raises(
        ArtifactError, match=rf"model.safetensors: not what the artifact was compiled from .*whose {DENOISER} has sha256 {digest}"
    ):
        verify_artifact(opened, source)


@quick
@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize("change", [lambda rows, scale: (rows, scale * np.float32(1.1)), lambda rows, scale: (rows[::-1], scale)])
def test_weights_written_wrong_fail_parity(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any], tuple[Any, Any]]
) -> None:
    monkeypatch.setattr(lowering, "int8_rows", lambda weight: change(*int8_rows(weight)))
    with pytest.raises(ParityError, match="denoiser: block"):
        exported(source, tmp_path / "art", "denoiser=int8")
    assert not (tmp_path / "art").exists()


@quick
@pytest.mark.usefixtures("calibrated")
def test_two_exports_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first, second = (exported(source, tmp_path / name, "int8") for name in ("a", "b"))
    assert first.id == second.id
    assert snapshot(first.root) == snapshot(second.root)


def test_a_precision_of_a_manifest_is_checked() -> None:
    data = {"name": "int4", "bound": 0.1, "error": 0.1, "measured_on": "x", "layers": {}}
    with pytest.raises(SpecError, match="got 'int4', expected one of fp32, bf16, int8"):
        PrecisionSpec.from_json(data)
