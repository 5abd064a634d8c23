"""Attention in bfloat16: what eager PyTorch rounds, which attentions are found and lowered, and that the bound decides."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.compare import assert_close, relative_error
from tests.export.by_hand import graph, ops
from tests.export.tiny_flux import TinyFlux
from vitrify.export.lowering import attentions_of, lower_graphs
from vitrify.export.precision import choose_precision
from vitrify.export.rounded_attention import in_bfloat16
from vitrify.export.rounding import Runs, layer_errors, rounded
from vitrify.export.verify import random_runs
from vitrify.kernels import registry


class Attention(nn.Module):
    """Self-attention of two heads of 8. sharp: what its scores are multiplied by."""

    def __init__(self, sharp: float, seed: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16, bias=False) for _ in "qkv")
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.to_q, self.to_k, self.to_v):
            layer.weight.data = torch.randn(16, 16, generator=generator) / 4
        self.sharp = sharp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        return functional.scaled_dot_product_attention(q, k, v, scale=self.sharp).transpose(1, 2).flatten(2)


class Two(nn.Module):
    """The sum of two attentions."""

    def __init__(self, sharp: float = 0.35) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(0.35, 0), Attention(sharp, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x) + self.blocks[1](x)


def runs_of(module: nn.Module) -> Runs:
    inputs = [torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    return Runs(module, [partial(module, x) for x in inputs])


GRAPH = """(float[b,t,16] x, float[16,16] "blocks.{n}.to_q.weight", float[16,16] "blocks.{n}.to_k.weight",
            float[16,16] "blocks.{n}.to_v.weight") => (float[b,t,16] y) {{
    q = vitrify.LinearNoBias(x, "blocks.{n}.to_q.weight")
    k = vitrify.LinearNoBias(x, "blocks.{n}.to_k.weight")
    v = vitrify.LinearNoBias(x, "blocks.{n}.to_v.weight")
    y = vitrify.FusedAttention<num_heads=2, scale=0.35, causal=0>(q, k, v)
}}"""


def test_the_module_of_an_attention_is_read_from_its_queries_weight() -> None:
    models = {name: graph(GRAPH.format(n=name)) for name in ("0", "1")}
    assert attentions_of(models) == ["blocks.0", "blocks.1"]
    of_inputs = "(float[b,t,16] q, float[b,t,16] k) => (float[b,t,16] y) "
    of_inputs += "{ y = vitrify.FusedAttention<num_heads=2, scale=0.35, causal=0>(q, k, k) }"
    assert attentions_of({"model": graph(of_inputs)}) == []


def test_the_node_becomes_the_rounded_op_with_its_attributes() -> None:
    models = {name: graph(GRAPH.format(n=name)) for name in ("0", "1")}
    lower_graphs(models, {"blocks.1": "bf16"}, {}, {})
    assert ops(models["0"])[-1] == "FusedAttention"
    made = list(models["1"].graph)[-1]
    assert made.op_type == "FusedAttentionBf16"
    assert (made.attributes["num_heads"].as_int(), made.attributes["causal"].as_int()) == (2, 0)
    assert made.attributes["scale"].as_float() == pytest.approx(0.35)
    assert [output.name for output in models["1"].graph.outputs] == ["y"]
    assert {name for _, name, _ in models["1"].functions} == {"LinearNoBias", "FusedAttentionBf16"}


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "bias"])
def test_eager_rounding_is_what_the_op_says(mask: str) -> None:
    torch.manual_seed(0)
    q, k, v, bias = torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 12)
    seen = torch.ones(12, 12, dtype=torch.bool).tril()
    given = {"none": {}, "causal": {"is_causal": True}, "bool": {"attn_mask": seen}, "bias": {"attn_mask": bias}}[mask]
    found = in_bfloat16(q, k, v, **given)
    exact = functional.scaled_dot_product_attention(q, k, v, **given)
    assert 1e-4 < relative_error(found, exact) < 1e-2
    flat = [x.transpose(1, 2).flatten(2) for x in (q, k, v)]
    said = {"num_heads": 2, "scale": 1 / math.sqrt(8)}
    if mask == "bias":
        (expected,) = registry.reference("FusedAttentionBiasBf16")(*flat, bias, **said)
    else:
        (expected,) = registry.reference("FusedAttentionBf16")(*flat, **said, causal=int(mask in ("causal", "bool")))
    assert_close(found.transpose(1, 2).flatten(2), expected, 1e-6)


def test_a_modules_attention_is_rounded_inside_the_block_alone() -> None:
    module = Two()
    x = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        exact = module(x)
        with rounded(module, {"blocks.1": "bf16", "blocks.0": "fp32"}):
            lower = module(x)
            assert torch.equal(module.blocks[0](x) + module.blocks[1](x), lower)
        assert 1e-4 < relative_error(lower, exact) < 1e-2
        assert torch.equal(module(x), exact)
        with rounded(module, {"blocks.1": "bf16", "blocks.0": "bf16"}):
            assert not torch.equal(module(x), lower)


def test_an_attentions_error_is_measured_on_its_own_inputs_where_it_can_be() -> None:
    class Own(nn.Module):
        """No attention of PyTorch's."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    module = Two(sharp=30.0)
    module.blocks.append(Own())
    runs = runs_of(module)
    with torch.no_grad():
        errors = layer_errors(runs, {"blocks.0": "bf16", "blocks.1": "bf16", "blocks.2": "bf16"})
    assert set(errors) == {"blocks.0", "blocks.1"}
    # Sharp scores are large, and so is what rounding takes from them.
    assert 1e-4 < errors["blocks.0"] < 0.01 < errors["blocks.1"]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_an_attention_that_the_bound_does_not_bear_stays_in_float32(precision: str) -> None:
    models = {name: graph(GRAPH.format(n=name)) for name in ("0", "1")}
    chosen = choose_precision("two", models, precision, runs_of(Two(sharp=0.35)), "these", lambda _: None)
    assert {chosen.layers[f"blocks.{n}"].precision for n in (0, 1)} == {"bf16"}
    assert chosen.layers["blocks.0.to_q.weight"].precision == precision
    chosen = choose_precision("two", models, "bf16", runs_of(Two(sharp=40.0)), "these", lambda _: None)
    assert chosen.layers["blocks.1"].precision == "fp32"
    assert chosen.layers["blocks.1"].error > chosen.bound >= chosen.error


def test_every_attention_of_a_transformer_is_found_and_measured(guided: TinyFlux) -> None:
    models = {name: ir.load(guided.root / graph.path) for name, graph in guided.spec.graphs.items()}
    names = ["single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn", "transformer_blocks.0.attn"]
    assert attentions_of(models) == names
    with torch.no_grad():
        errors = layer_errors(random_runs(guided.recipe, guided.locations), dict.fromkeys(names, "bf16"))
    assert sorted(errors) == names
    assert all(1e-4 < error < 0.01 for error in errors.values())
    assert np.isfinite(list(errors.values())).all()
