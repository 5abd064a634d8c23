"""The process that `startup` times: load an artifact, draw with it twice, say what is resident then."""

from __future__ import annotations

import json
import sys

from vitrify.bench.measure import now
from vitrify.engine.memory import resident_bytes
from vitrify.runtime import load

__all__ = ["main"]

_PROMPT = "red apple"


def main() -> None:
    """Print seconds and bytes as JSON; see vitrify.bench.startup.Startup."""
    given = json.loads(sys.argv[1])
    start = now()
    pipeline = load(given["artifact"], threads=given["threads"])
    loaded = now()
    pipeline(_PROMPT, seed=1, num_inference_steps=given["steps"])
    drawn = now()
    held = resident_bytes()
    again = now()
    pipeline(_PROMPT, seed=2, num_inference_steps=given["steps"])
    end = now()
    answer = {
        "load_s": loaded - start,
        "first_image_s": drawn - loaded,
        "ready_s": drawn - start,
        "next_image_s": end - again,
        "drawn_anonymous": held["anonymous"],
        "drawn_mapped": held["mapped"],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
