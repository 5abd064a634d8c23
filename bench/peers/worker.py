"""The process of one peer: reads one JSON object a line, answers with one.

Operations: open · give {inputs} · predict {index, out} · time {what, count, index} · count · quit.
An answer is `{"ok": …}` or `{"error": …}`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitrify.bench.measure import timed
from vitrify.bench.peers.peer import Peer

__all__ = ["main", "make_peer", "serve"]


def make_peer(factory: str, arguments: dict[str, Any]) -> Peer:
    """The peer of `module:Class`. arguments: as in JSON, the folders as strings."""
    module, _, name = factory.partition(":")
    paths = {key: Path(arguments[key]) for key in ("source", "artifact")}
    builds = {kind: Path(folder) for kind, folder in arguments["builds"].items()}
    peer: Peer = getattr(importlib.import_module(module), name)(**{**arguments, **paths, "builds": builds})
    return peer


def serve(peer: Peer, requests: IO[str], answers: IO[str]) -> None:
    """Answer until `quit` or the end of `requests`. An operation that raises is answered with its traceback's end."""
    operations: dict[str, Callable[[dict[str, Any]], Any]] = {
        "open": lambda _: peer.open(),
        "give": lambda given: peer.give(peer.inputs_type.load(Path(given["inputs"]))),
        "predict": lambda given: np.save(given["out"], peer.predict(given["index"])),
        "time": lambda given: _time(peer, given["what"], given["count"], given["index"]),
        "count": lambda _: dict(peer.counts()),
    }
    for line in requests:
        given = json.loads(line)
        if given["op"] == "quit":
            return
        try:
            answer = {"ok": operations[given["op"]](given)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _time(peer: Peer, what: str, count: int, index: int | None) -> dict[str, Any]:
    call = peer.calls()[what]
    timing = timed(call if index is None else lambda _: call(index), count, peer.clock)
    return {"seconds": timing.seconds, "parts": timing.parts}


def main() -> None:
    """Serve on the standard streams; whatever libraries print goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    given = json.loads(sys.argv[1])
    serve(make_peer(given["factory"], given["arguments"]), sys.stdin, answers)


if __name__ == "__main__":
    main()
