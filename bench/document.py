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

FORMAT = 2
Kind = Literal["run", "export", "startup", "ops", "skips", "components"]


@dataclass(frozen=True)
class Document:
    """A run as it was written. date: the day, UTC."""

    date: str
    machine: Machine
    run: RunResult

    @classmethod
    def of_today(cls, machine: Machine, run: RunResult) -> Self:
        """A run that was just measured."""
        return cls(_today(), machine, run)


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
    write_json(path, {**document("run", found.machine, found.run.to_json()), "date": found.date})


def read_document(path: Path) -> Document:
    """A document of `bench run`. Raises SpecError naming the file and the field that is wrong."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}; write it by vitrify bench run --json {path}") from None
    except ValueError as error:
        raise SpecError(f"{path}: not JSON: {error}") from None
    fields = expect_map(content, str(path), ("format", "kind", "date", "machine", "results"))
    if (fields["format"], fields["kind"]) != (FORMAT, "run"):
        raise SpecError(
            f"{path}: got a {fields['kind']} document of format {fields['format']}, expected a run of format {FORMAT}; "
            "measure it again with this version"
        )
    date = expect(fields["date"], str, f"{path}: date")
    machine = Machine.from_json(fields["machine"], f"{path}: machine")
    return Document(date, machine, RunResult.from_json(fields["results"], f"{path}: results"))
