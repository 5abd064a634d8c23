"""The process that counts what an artifact's sessions alone hold: all graphs open, nothing run, so no activations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vitrify.engine.artifact import Artifact
from vitrify.engine.backends import backend
from vitrify.engine.memory import release_free_memory, resident_bytes

__all__ = ["main"]

_FLOAT32_BYTES = 4


def main() -> None:
    """Print bytes as JSON; see vitrify.bench.startup.Startup."""
    given = json.loads(sys.argv[1])
    engine = backend(threads=given["threads"])
    library = resident_bytes()
    artifact = Artifact.open(Path(given["artifact"]))
    graphs = [graph for spec in artifact.manifest.components.values() for graph in spec.graphs.values()]
    sessions = [engine.open(artifact.root / graph.path, graph) for graph in graphs]
    release_free_memory()
    held = resident_bytes()
    for session in sessions:
        session.close()
    answer = {
        "library_anonymous": library["anonymous"],
        "library_mapped": library["mapped"],
        "opened_anonymous": held["anonymous"],
        "opened_mapped": held["mapped"],
        "weights_bytes": _FLOAT32_BYTES * sum(graph.parameters for graph in graphs),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
