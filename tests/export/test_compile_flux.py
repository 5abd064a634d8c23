"""Whole FLUX pipelines through the compiler: minutes, so none runs by default; the end-to-end tests draw with such artifacts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.compare import assert_close
from tests.e2e.flux_sources import RandomFlux, write_random_flux
from tests.export.by_hand import Array, run
from tests.export.test_compile_processes import files
from tests.export.test_segments import closed_form, dims
from tests.export.tiny_flux import CONFIG, compiled, flux_recipe
from tests.export.tiny_flux import request as ask
from vitrify.engine.artifact import Artifact
from vitrify.engine.denoiser import LOOP_SEGMENTS, Denoiser
from vitrify.engine.errors import CompileError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.export.compile import compile_pipeline, plan_pipeline
from vitrify.export.eager import EagerModule
from vitrify.export.families import recipe_for
from vitrify.export.options import ExportOptions, Range
from vitrify.export.passes import run_passes
from vitrify.export.recipe import ComponentRecipe
from vitrify.export.reverify import verify_artifact
from vitrify.export.source import DiffusersFolder
from vitrify.export.trace import trace
from vitrify.export.verify import verify_component

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMPONENTS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
OPTIONS = ExportOptions(
    height=Range(16, 32, 64), width=Range(16, 32, 64), batch=Range(1, 2, 4), max_sequence_length=Range(8, 12, 32)
)
WHOLE, BLOCKS = 1 << 40, 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dev-like, float32."""
    return write_random_flux(tmp_path_factory.mktemp("flux") / "source", RandomFlux())


def stored_as(source: Path, dtype: torch.dtype, variant: str | None = None, shards: bool = False) -> None:
    """Rewrite every component's weights in another type, under other names, in several files."""
    for component, stem in COMPONENTS.items():
        file = source / component / f"{stem}.safetensors"
        weights = {name: value.to(dtype) for name, value in load_file(file).items()}
        file.unlink()
        infix = f".{variant}" if variant else ""
        if not shards:
            save_file(weights, file.with_name(f"{stem}{infix}.safetensors"))
            continue
        names = sorted(weights)
        placed = {name: f"{stem}{infix}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
        for shard in set(placed.values()):
            save_file({name: weights[name] for name in names if placed[name] == shard}, file.with_name(shard))
        index = f"{stem}.safetensors.index{infix}.json"
        file.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


# ---- sources of every kind


@pytest.mark.parametrize(
    ("made", "dtype", "variant", "shards", "limit"),
    [
        (RandomFlux(), torch.bfloat16, None, False, WHOLE),
        (RandomFlux(), torch.float16, "fp16", True, BLOCKS),
        (RandomFlux(guidance_embeds=False, seed=1, layers=(1, 3), heads=2, latent_channels=3), torch.float32, None, True, BLOCKS),
        (RandomFlux(guidance_embeds=False, seed=2, scheduler={"shift": 3.0}), torch.bfloat16, "ema", False, WHOLE),
    ],
)
def test_compiled_and_verified_again(
    tmp_path: Path, made: RandomFlux, dtype: torch.dtype, variant: str | None, shards: bool, limit: int
) -> None:
    source, out = write_random_flux(tmp_path / "source", made), tmp_path / "art"
    stored_as(source, dtype, variant, shards)
    artifact_id = compile_pipeline(source, out, replace(OPTIONS, variant=variant), whole_limit_bytes=limit)
    opened = Artifact.open(out, verify="full")
    assert opened.id == artifact_id
    assert list(opened.manifest.components) == list(COMPONENTS)
    for name, spec in opened.manifest.components.items():
        assert spec.encoding.value == str(dtype).removeprefix("torch.")
        assert spec.parity.checked
        assert all(error <= 5e-6 for error in spec.parity.measurements.values()), spec.parity
        if limit == BLOCKS and name in ("text_encoder_2", "transformer"):
            assert spec.parity.method == "blocks"
            assert any(place.startswith("wiring") for place in spec.parity.measurements)
        for path in spec.weights:
            assert (out / path).read_bytes() == (source / path).read_bytes()
    stored = sum(p.stat().st_size for p in source.rglob("*.safetensors"))
    kept = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
    assert kept == stored
    for against in (None, source):
        found = verify_artifact(opened, against, whole_limit_bytes=limit)
        assert found == {name: spec.parity for name, spec in opened.manifest.components.items()}


def test_a_plan_needs_the_configurations_alone(source: Path, tmp_path: Path) -> None:
    compile_pipeline(source, tmp_path / "art", replace(OPTIONS, parity=False))
    sealed = Artifact.open(tmp_path / "art").manifest
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    before = files(tmp_path)
    planned = plan_pipeline(bare, OPTIONS)
    assert files(tmp_path) == before
    assert planned.dims == sealed.dims
    for name, spec in planned.components.items():
        other = sealed.components[name]
        assert spec.invariant_work == other.invariant_work
        assert [(n, g.parameters, g.inputs, g.outputs) for n, g in spec.graphs.items()] == [
            (n, g.parameters, g.inputs, g.outputs) for n, g in other.graphs.items()
        ]


def test_flux_dev_is_planned_as_it_is_known() -> None:
    """57 blocks, 11.9 B parameters: 8.61 B in the loop, 3.29 B before it."""
    config = {
        **CONFIG,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56],
    }
    recipe = flux_recipe(config, text_encoder={"hidden_size": 768}, text_encoder_2={"d_model": 4096}, vae={"latent_channels": 16})
    transformer = next(c for c in recipe.components if c.name == "transformer")
    traced = trace(transformer)
    shapes = dict(traced.parameters)
    counted = {
        name: sum(int(np.prod(shapes[str(v.name)], dtype=np.int64)) for v in part.graph.inputs if v.name in shapes)
        for name, part in run_passes(traced, transformer).items()
    }
    inside = sum(counted[segment] for segment in LOOP_SEGMENTS)
    assert (inside, counted["condition"]) == closed_form(config)
    assert (round(inside / 1e9, 2), round(counted["condition"] / 1e9, 2)) == (8.61, 3.29)
    assert sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) == inside + counted["condition"]


EXPORT = """
import sys
from pathlib import Path
from vitrify.export.compile import compile_pipeline
from vitrify.export.options import ExportOptions, Range
options = ExportOptions(height=Range(16, 32, 64), width=Range(16, 32, 64), max_sequence_length=Range(8, 12, 32))
print(compile_pipeline(Path(sys.argv[1]), Path(sys.argv[2]), options))
"""


def test_two_processes_write_the_same_bytes(source: Path, tmp_path: Path) -> None:
    outs = []
    for number, seed in enumerate(("0", "4321")):
        copied, out = tmp_path / f"copy{number}", tmp_path / ("deep/er" * number) / f"art{number}"
        shutil.copytree(source, copied)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
        done = subprocess.run(
            [sys.executable, "-c", EXPORT, str(copied), str(out)], env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        outs.append((done.stdout.split()[-1], files(out)))
    assert outs[0] == outs[1]
    for name, data in outs[0][1].items():
        assert str(tmp_path).encode() not in data, name
        assert str(ROOT).encode() not in data, name


# ---- what FLUX folders may contain


@pytest.mark.parametrize("changes", [{"num_layers": 0}, {"num_layers": 2, "num_single_layers": 0}, {"out_channels": 12}], ids=str)
def test_other_depths_and_widths(tmp_path: Path, changes: Mapping[str, int]) -> None:
    """Blocks of one kind alone; an output that is not as wide as the input; parameters that are computed with for nothing."""
    backend = OrtCpuBackend(kernels="portable")
    made = compiled({**CONFIG, **changes}, tmp_path)
    asked = ask(made.model, batch=2, grid=(3, 4), text=5, steps=2)
    with contextlib.closing(Denoiser(backend, made.root, made.spec)) as denoiser, denoiser.plan(**dims(asked)) as plan:
        plan.condition(asked.once, asked.by_step)
        for step in range(2):
            plan.latents[...] = asked.latents[step]
            assert_close(plan.step(step), asked.eager(made.model, step), 1e-5)
    for limit in (WHOLE, BLOCKS):
        assert verify_component(made.recipe, made.spec, made.root, made.locations, whole_limit_bytes=limit).checked


def in_memory(recipe: ComponentRecipe, weights: Mapping[str, Array]) -> Callable[[Mapping[str, Array]], Array]:
    """A component of one graph, its parameters held in it."""
    traced = trace(recipe)
    names = set(traced.parameters)
    graph = run_passes(traced, recipe)["model"]
    for value in [v for v in graph.graph.inputs if v.name in names]:
        graph.graph.inputs.remove(value)
        value.const_value = ir.tensor(weights[str(value.name)], name=value.name)
        graph.graph.register_initializer(value)
    return lambda fed: next(iter(run(graph, fed).values()))


def random_weights(recipe: ComponentRecipe) -> dict[str, Array]:
    torch.manual_seed(0)
    found: dict[str, Array] = {}
    for name, value in recipe.build().named_parameters(remove_duplicate=False):
        found[name.removeprefix(recipe.prefix)] = value.detach().numpy()
    return found


def component(source: Path, name: str, **changes: Any) -> ComponentRecipe:
    folder = DiffusersFolder.open(source)

    class Changed:
        pipeline_class = folder.pipeline_class

        def component(self, wanted: str) -> Any:
            found = folder.component(wanted)
            return replace(found, config={**found.config, **changes}) if wanted == name else found

    return next(c for c in recipe_for(Changed(), OPTIONS).components if c.name == name)


def compare(recipe: ComponentRecipe, *given: Mapping[str, Array]) -> None:
    weights = random_weights(recipe)
    ours, eager = in_memory(recipe, weights), EagerModule(recipe, weights)
    for fed in given:
        assert_close(ours(fed), eager.run(fed)[recipe.outputs[0]], 1e-5, str({n: v.shape for n, v in fed.items()}))


@pytest.mark.parametrize("end_token", [2, None], ids=["the highest id is the end", "the end is named"])
def test_clip_pools_at_the_first_end_token(source: Path, end_token: int | None) -> None:
    """Probes of random ids have no end token: this shows the place that prompts have."""
    recipe = component(source, "text_encoder", **({} if end_token is None else {"eos_token_id": end_token}))
    last = int(recipe.config["vocab_size"]) - 1
    end = last if end_token == 2 else int(recipe.config["eos_token_id"])
    rng = np.random.default_rng(0)
    length = int(recipe.config["max_position_embeddings"])
    ids = rng.integers(3, last - 1, (4, length))
    for row, place in enumerate((1, 5, length - 1, 9)):
        ids[row, place:] = end
    ids[3, 10:] = 0
    compare(recipe, {"input_ids": ids[:1]}, {"input_ids": ids})
    weights = random_weights(recipe)
    ours = in_memory(recipe, weights)
    moved = ids.copy()
    moved[1, 6:] = 7
    assert_close(ours({"input_ids": moved})[1], ours({"input_ids": ids})[1], 1e-6, "what stands behind the end token")
    moved[1, 4] += 1
    assert not np.allclose(ours({"input_ids": moved})[1], ours({"input_ids": ids})[1])


@pytest.mark.parametrize("kind", ["gated-gelu", "relu"])
def test_t5_at_every_distance(source: Path, kind: str) -> None:
    """Beyond 8, distances share buckets by their logarithm; beyond 128, one."""
    recipe = component(source, "text_encoder_2", feed_forward_proj=kind, relative_attention_num_buckets=32)
    rng = np.random.default_rng(0)
    upper = int(recipe.config["vocab_size"])
    compare(recipe, *({"input_ids": rng.integers(0, upper, (n, t))} for n, t in ((1, 1), (2, 9), (1, 130), (1, 300))))


@pytest.mark.parametrize(
    "changes", [{}, {"use_post_quant_conv": True, "use_quant_conv": True}, {"mid_block_add_attention": False}], ids=str
)
def test_the_decoder_at_every_size(source: Path, changes: Mapping[str, bool]) -> None:
    recipe = component(source, "vae", **changes)
    rng = np.random.default_rng(0)
    channels = int(recipe.config["latent_channels"])
    sizes = ((1, 1, 1), (1, 8, 8), (2, 3, 17), (63, 2, 2))
    compare(recipe, *({"latents": rng.standard_normal((n, channels, h, w)).astype(np.float32)} for n, h, w in sizes))


def test_a_broken_configuration_is_named(source: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    path = broken / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_num_groups": 7}))
    with pytest.raises(CompileError, match=r"vae \(AutoencoderKL\) cannot be built from its configuration: ValueError"):
        plan_pipeline(broken, OPTIONS)
