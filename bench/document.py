"""The JSON document of one command: kind, day, machine, results; written and read back."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from vitrify.bench.machine import Machine
from vitrify.bench.results import RunResult
from vitrify.engine.errors import SpecError
from vitrify.engine.specs import expect, expect_map

__all__ = ["FORMAT", "Document", "document", "read_document", "write_document", "write_json"]

FORMAT = 3
Kind = Literal["run", "export", "startup", "ops", "skips", "components"]


@dataclass(frozen=True)
class Document:
    """A run as it was written. date: the day, UTC.

    run_id: two documents that have it in common were measured in the same rounds. is_base: as the base of the other.
    """

    date: str
    machine: Machine
    run: RunResult
    run_id: str
    is_base: bool = False

    @classmethod
    def of_today(cls, machine: Machine, run: RunResult, run_id: str, *, is_base: bool = False) -> Self:
        """A run that was just measured."""
        return cls(_today(), machine, run, run_id, is_base)


def document(kind: Kind, machine: Machine, results: Any) -> dict[str, Any]:
    """The JSON of one command: format and kind, the day (UTC), the machine, what was found."""
    return {"format": FORMAT, "kind": kind, "date": _today(), "machine": machine.to_json(), "results": results}


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a document; numbers that are no numbers are refused (ValueError)."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def write_document(path: Path, found: Document) -> None:
    """Write a run so that `read_document` gives it back."""
    kept = {"date": found.date, "run_id": found.run_id, "is_base": found.is_base}
    write_json(path, {**document("run", found.machine, found.run.to_json()), **kept})


def read_document(path: Path) -> Document:
    """A document of `bench run`. Raises SpecError naming the file and the field that is wrong."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}; write it by vitrify bench run --json {path}") from None
    except ValueError as error:
        raise SpecError(f"{path}: not JSON: {error}") from None
    fields = expect_map(content, str(path))
    if (fields.get("format"), fields.get("kind")) != (FORMAT, "run"):
        raise SpecError(
            f"{path}: got a {fields.get('kind')} document of format {fields.get('format')}, expected a run of format {FORMAT}; "
            "measure it again with this version"
        )
    fields = expect_map(content, str(path), ("format", "kind", "date", "machine", "results", "run_id", "is_base"))
    return Document(
        date=expect(fields["date"], str, f"{path}: date"),
        machine=Machine.from_json(fields["machine"], f"{path}: machine"),
        run=RunResult.from_json(fields["results"], f"{path}: results"),
        run_id=expect(fields["run_id"], str, f"{path}: run_id"),
        is_base=expect(fields["is_base"], bool, f"{path}: is_base"),
    )
