"""The other end of a peer's process."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np

from vitrify.bench.jobs import job_environment, tail
from vitrify.bench.measure import Timing
from vitrify.bench.peers.registry import PeerSpec
from vitrify.bench.prepare import Prepared
from vitrify.engine.errors import BackendError
from vitrify.engine.session import Array

__all__ = ["PeerClient", "PeerProcess"]

_ANSWER_LIMIT_S = 1800.0


class PeerClient(Protocol):
    """A peer that can be asked."""

    def open(self) -> None:
        """Load it."""

    def give(self, inputs: Path) -> None:
        """Let it take the inputs of this file from now on."""

    def predict(self, index: int) -> Array:
        """Its noise_pred of a step, float32, or a picture, uint8."""

    def time(self, what: str, count: int, index: int | None = None) -> Timing:
        """Time `count` of its calls `what` in a row: with 0, 1, 2, …, or all with `index`."""

    def counts(self) -> Mapping[str, int]:
        """What it counts exactly; see `Peer.counts`."""

    def close(self) -> None:
        """End it."""


class PeerProcess:
    """A peer in a subprocess. Raises BackendError, with the end of what it said, when it fails, dies or does not answer.

    scratch: folder for arrays on their way. python: the interpreter whose vitrify the peer is.
    """

    def __init__(self, spec: PeerSpec, prepared: Prepared, scratch: Path, *, threads: int, python: str = sys.executable) -> None:
        self._name = spec.name
        self._scratch = scratch
        arguments: Mapping[str, Any] = {**prepared.to_json(), **spec.options, "threads": threads}
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [python, "-m", "vitrify.bench.peers.worker", json.dumps({"factory": spec.factory, "arguments": arguments})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=job_environment(threads),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        self._ask("open")

    def give(self, inputs: Path) -> None:
        self._ask("give", inputs=str(inputs))

    def predict(self, index: int) -> Array:
        out = self._scratch / f"{re.sub(r'[^A-Za-z0-9]', '-', self._name)}.npy"
        self._ask("predict", index=index, out=str(out))
        predicted: Array = np.load(out)
        return predicted

    def time(self, what: str, count: int, index: int | None = None) -> Timing:
        answer = self._ask("time", what=what, count=count, index=index)
        return Timing(tuple(answer["seconds"]), {name: tuple(values) for name, values in answer["parts"].items()})

    def counts(self) -> Mapping[str, int]:
        return {name: int(value) for name, value in self._ask("count").items()}

    def close(self) -> None:
        """Ask the process to end, then insist."""
        with contextlib.suppress(OSError, ValueError):
            self._send({"op": "quit"})
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _ask(self, op: str, **fields: Any) -> Any:
        try:
            self._send({"op": op, **fields})
        except OSError:
            raise BackendError(f"peer {self._name} died before {op}: {self._said()}") from None
        line = self._answer(op)
        if not line:
            raise BackendError(f"peer {self._name} died during {op}: {self._said()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BackendError(f"peer {self._name} failed during {op}: {tail(answer['error'])}")
        return answer["ok"]

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _answer(self, op: str) -> str:
        # One answer a question, a line each: nothing can be waiting in the text layer's own buffer.
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_ANSWER_LIMIT_S):
                raise BackendError(f"peer {self._name} gave no answer to {op} within {_ANSWER_LIMIT_S:.0f} s: {self._said()}")
        return self._process.stdout.readline()

    def _said(self) -> str:
        self._errors.seek(0)
        return tail(self._errors.read())
