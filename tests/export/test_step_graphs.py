"""The artifact's one-op graphs: their dimensions, their bytes, and what they compute with and without our kernels."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.compare import assert_close
from tests.engine import toy_denoiser
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.engine.ort import KernelMode, OrtCpuBackend
from vitrify.engine.specs import ComponentSpec, TensorSpec
from vitrify.export.step_graphs import op_versions, step_graphs


@pytest.mark.parametrize("kernels", ["native", "portable"])
def test_residual_diff(kernels: KernelMode) -> None:
    """Against float64, at two sizes of one session."""
    (graph,) = step_graphs(toy_denoiser.spec()).values()
    rng = np.random.default_rng(0)
    with contextlib.closing(OrtCpuBackend(kernels=kernels).open_bytes(graph.model, Path(), graph.spec)) as session:
        for batch, tokens in ((1, 7), (3, 130)):
            plan = session.plan({"batch": batch, "image_tokens": tokens})
            plan.ready()
            for name in ("h1", "h0", "r_ref"):
                plan.array(name)[...] = rng.standard_normal((batch, tokens, 4))
            for name in ("r", "sums"):
                plan.array(name)[...] = np.nan
            plan.run()
            h1, h0, r_ref = (plan.array(name).astype(np.float64) for name in ("h1", "h0", "r_ref"))
            assert_close(plan.array("r"), h1 - h0, 1e-7, "r")
            moved, size = (np.abs(x).sum(axis=(1, 2)) for x in (h1 - h0 - r_ref, r_ref))
            assert_close(plan.array("sums"), np.stack([moved, size], axis=1), 5e-6, "sums")


def test_what_the_manifest_says_is_what_the_file_says() -> None:
    graphs = step_graphs(toy_denoiser.spec())
    assert op_versions(graphs) == {"ResidualDiff": 1}
    graph = graphs["residual_diff"]
    assert graph.spec.path == "step/residual_diff.onnx"
    assert (graph.spec.parameters, graph.spec.parameter_bytes) == (0, 0)
    model = onnx.load_from_string(graph.model)
    onnx.checker.check_model(model, full_check=True)
    assert [f.name for f in model.functions] == ["ResidualDiff"]
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert shapes == {name: ["batch", "image_tokens", 4] for name in ("h1", "h0", "r_ref")}
    assert [t.shape for t in graph.spec.outputs] == [("batch", "image_tokens", 4), ("batch", 2)]


def test_the_same_bytes_every_time() -> None:
    assert step_graphs(toy_denoiser.spec())["residual_diff"].model == step_graphs(toy_denoiser.spec())["residual_diff"].model


def test_states_that_do_not_show_are_an_error() -> None:
    """Two tensors that could be the image's, or none."""
    spec = toy_denoiser.spec()

    def cut_otherwise(*handed_on: TensorSpec) -> ComponentSpec:
        rest, finish = (replace(spec.graphs[name]) for name in ("rest", "finish"))
        graphs = {"rest": replace(rest, outputs=handed_on), "finish": replace(finish, inputs=handed_on)}
        return replace(spec, graphs={**spec.graphs, **graphs})

    image, twin = (TensorSpec(name, DType.FLOAT32, ("batch", "image_tokens", 4)) for name in ("hn", "twin"))
    text = TensorSpec("hn", DType.FLOAT32, ("batch", "text_tokens", 4))
    with pytest.raises(SpecError, match=r"segment 'finish' takes the image's states from \['hn', 'twin'\], expected one"):
        step_graphs(cut_otherwise(image, twin))
    with pytest.raises(SpecError, match=r"from \[\], expected one"):
        step_graphs(cut_otherwise(text))
