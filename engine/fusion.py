"""What the compiler put our ops for, and what it left to the runtime, as an artifact's provenance tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrify.engine.specs import expect, expect_list, expect_map

__all__ = ["FUSION", "GraphFusion", "LeftNodes", "fusion_of"]

Json = Any

FUSION = "fusion"
"""The key in a manifest's provenance: graph, e.g. `transformer.first` → GraphFusion."""


@dataclass(frozen=True)
class LeftNodes:
    """Nodes of one type that no op of ours took, for one reason. values: the first result of each, by which graphs name them."""

    op: str
    reason: str
    values: tuple[str, ...]

    def to_json(self) -> Json:
        return {"op": self.op, "reason": self.reason, "values": list(self.values)}

    @classmethod
    def from_json(cls, data: Json, where: str) -> LeftNodes:
        fields = expect_map(data, where, ("op", "reason", "values"))
        values = tuple(expect(v, str, f"{where}.values") for v in expect_list(fields["values"], f"{where}.values"))
        return cls(expect(fields["op"], str, f"{where}.op"), expect(fields["reason"], str, f"{where}.reason"), values)


@dataclass(frozen=True)
class GraphFusion:
    """One graph. ops: op of ours → how many nodes are one. left: products, activations and norms that stayed, with the reason."""

    ops: Mapping[str, int] = field(default_factory=dict)
    left: tuple[LeftNodes, ...] = ()

    def to_json(self) -> Json:
        return {"ops": dict(self.ops), "left": [row.to_json() for row in self.left]}

    @classmethod
    def from_json(cls, data: Json, where: str) -> GraphFusion:
        fields = expect_map(data, where, ("ops", "left"))
        ops = {name: int(expect(n, int, f"{where}.ops")) for name, n in expect_map(fields["ops"], f"{where}.ops").items()}
        left = expect_list(fields["left"], f"{where}.left")
        return cls(ops, tuple(LeftNodes.from_json(row, f"{where}.left[{i}]") for i, row in enumerate(left)))


def fusion_of(provenance: Mapping[str, Json]) -> dict[str, GraphFusion]:
    """What a manifest's provenance says of fused graphs; nothing in artifacts that were compiled before there was any.

    Raises SpecError where it is malformed.
    """
    told = expect_map(provenance.get(FUSION, {}), f"provenance.{FUSION}")
    return {graph: GraphFusion.from_json(data, f"provenance.{FUSION}.{graph}") for graph, data in told.items()}
