"""The process that `startup` times: load an artifact, draw with it twice, say what is resident."""

from __future__ import annotations

import json
import sys

from vitrify.bench.measure import now
from vitrify.engine.memory import resident_bytes
from vitrify.runtime import load

__all__ = ["main"]

_FLOAT32_BYTES = 4
_PROMPT = "red apple"


def main() -> None:
    """Print seconds and bytes as JSON; see vitrify.bench.startup.Startup."""
    given = json.loads(sys.argv[1])
    # What a load imports on its way counts as library, not as weights; the time of it counts as load.
    start = now()
    import onnxruntime  # noqa: F401

    from vitrify.engine import backends  # noqa: F401

    imported = now() - start
    library = resident_bytes()
    start = now()
    pipeline = load(given["artifact"], threads=given["threads"])
    loaded = now()
    pipeline(_PROMPT, seed=1)
    drawn = now()
    held = resident_bytes()
    again = now()
    pipeline(_PROMPT, seed=2)
    end = now()
    components = pipeline.artifact.manifest.components.values()
    answer = {
        "load_s": imported + loaded - start,
        "first_image_s": drawn - loaded,
        "ready_s": imported + drawn - start,
        "next_image_s": end - again,
        "library_anonymous": library["anonymous"],
        "library_mapped": library["mapped"],
        "loaded_anonymous": held["anonymous"],
        "loaded_mapped": held["mapped"],
        "weights_bytes": _FLOAT32_BYTES * sum(graph.parameters for spec in components for graph in spec.graphs.values()),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
