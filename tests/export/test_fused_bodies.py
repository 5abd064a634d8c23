"""The ops that passes put into graphs: their bodies, and what is told of what was fused and left."""

from __future__ import annotations

import json

from tests.export.by_hand import graph
from vitrify.engine.fusion import GraphFusion
from vitrify.export.fusion import graph_fusion
from vitrify.export.passes.functions import attach_bodies
from vitrify.export.passes.linear import fuse_linears


def test_each_op_brings_its_body_once_and_unneeded_ones_go() -> None:
    model = graph("""(float[b,t,3] x, float[3,3] w, float[3] b) => (float[b,t,3] y) <float[b,t,3] h> {
        h = vitrify.Linear(x, w, b) y = vitrify.Linear(h, w, b) }""")
    attach_bodies(model)
    assert [key[:2] for key in model.functions] == [("vitrify", "Linear")]
    for node in list(model.graph):
        node.op_type, node.domain = "Sum", ""
    attach_bodies(model)
    assert not model.functions
    assert "vitrify" not in model.graph.opset_imports


def test_what_was_fused_and_left_is_counted_and_survives_json() -> None:
    model = graph("""(float[b,t,3] x, float[3,3] w, float[3] b) => (float[b,t,3] y) <float[b,t,3] h, float[b,t,3] g> {
        h = vitrify.Linear(x, w, b) g = Gelu(h) k = Sigmoid(g) y = Sigmoid(k) }""")
    fuse_linears(model, frozenset())
    found = graph_fusion(model)
    assert found.ops == {"Linear": 1}
    assert [(row.op, row.values) for row in found.left] == [("Gelu", ("g",)), ("Sigmoid", ("k", "y"))]
    assert "error function" in found.left[0].reason
    assert GraphFusion.from_json(json.loads(json.dumps(found.to_json())), "here") == found
