"""Which model an artifact was compiled from, as its provenance tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrify.engine.specs import expect, expect_map

__all__ = ["SOURCE", "SourceRecord", "source_of"]

Json = Any

SOURCE = "source"
"""The key in a manifest's provenance."""


@dataclass(frozen=True)
class SourceRecord:
    """name: the model's as a hub has it, `owner/name`, None where the source does not say it.

    weights: path of each weight file in the source → its sha256 there, in hexadecimal.
    """

    name: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {"name": self.name, "weights": dict(self.weights)}

    @classmethod
    def from_json(cls, data: Json, where: str) -> SourceRecord:
        fields = expect_map(data, where, ("name", "weights"))
        name = None if fields["name"] is None else expect(fields["name"], str, f"{where}.name")
        rows = expect_map(fields["weights"], f"{where}.weights")
        return cls(name, {path: expect(digest, str, f"{where}.weights.{path}") for path, digest in rows.items()})


def source_of(provenance: Mapping[str, Json]) -> SourceRecord:
    """What a manifest's provenance says of the source; nothing in artifacts that were compiled before it did.

    Raises SpecError where it is malformed.
    """
    return SourceRecord.from_json(provenance.get(SOURCE, SourceRecord().to_json()), f"provenance.{SOURCE}")
