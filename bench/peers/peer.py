"""What a peer must be able to do: take inputs, predict, and offer calls to be timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitrify.bench.inputs import CaseInputs
from vitrify.bench.measure import Clock
from vitrify.engine.session import Array

__all__ = ["STEP", "Peer"]

STEP = "step"


class Peer(ABC):
    """One denoiser under test, in a process of its own.

    source, artifact, plain: the case's folders (plain None where nobody wants the unsplit export). threads: of every pool.
    clock: hears the parts of a timed call, if the peer knows any.
    """

    def __init__(self, *, source: Path, artifact: Path, plain: Path | None, threads: int, **options: Any) -> None:
        if options:
            raise TypeError(f"{type(self).__name__} got unknown options: {', '.join(sorted(options))}")
        self.source = source
        self.artifact = artifact
        self.plain = plain
        self.threads = threads
        self.clock = Clock()

    @abstractmethod
    def open(self) -> None:
        """Load what is needed; called once, first."""

    @abstractmethod
    def give(self, inputs: CaseInputs) -> None:
        """Take these inputs from now on."""

    @abstractmethod
    def predict(self, step: int) -> Array:
        """noise_pred of `step` (0-based): [batch, image_tokens, out_channels] float32."""

    @abstractmethod
    def calls(self) -> Mapping[str, Callable[[int], object]]:
        """What can be timed, by name; `step` at least. Each is called with 0, 1, 2, …, and gives its result away."""
