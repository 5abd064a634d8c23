"""What a peer must be able to do: take inputs, answer, and offer calls to be timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitrify.bench.inputs import CaseInputs
from vitrify.bench.measure import Clock
from vitrify.engine.errors import BackendError
from vitrify.engine.session import Array

__all__ = ["PICTURE", "STEP", "Peer"]

STEP = "step"
PICTURE = "picture"


class Peer(ABC):
    """One denoiser or pipeline under test, in a process of its own.

    source, artifact: the case's folders. builds: what was prepared beside them, by kind. threads: of every pool.
    clock: hears the parts of a timed call, if the peer knows any.
    """

    inputs_type: Any = CaseInputs
    """What `give` takes; read from its file by `inputs_type.load`."""

    def __init__(self, *, source: Path, artifact: Path, builds: Mapping[str, Path], threads: int, **options: Any) -> None:
        if options:
            raise TypeError(f"{type(self).__name__} got unknown options: {', '.join(sorted(options))}")
        self.source = source
        self.artifact = artifact
        self.builds = builds
        self.threads = threads
        self.clock = Clock()

    def build(self, kind: str) -> Path:
        """The folder of what was prepared. Raises BackendError if it was not."""
        if kind not in self.builds:
            raise BackendError(
                f"{type(self).__name__}: {kind!r} was not prepared; prepared: {', '.join(self.builds) or 'nothing'}"
            )
        return self.builds[kind]

    @abstractmethod
    def open(self) -> None:
        """Load what is needed; called once, first."""

    @abstractmethod
    def give(self, inputs: Any) -> None:
        """Take these inputs, an `inputs_type`, from now on."""

    @abstractmethod
    def predict(self, index: int) -> Array:
        """The answer that is checked: noise_pred of a step, [batch, image_tokens, out_channels] float32; or a picture,
        [height, width, 3] uint8."""

    @abstractmethod
    def calls(self) -> Mapping[str, Callable[[int], object]]:
        """What can be timed, by name. Each is called with 0, 1, 2, …, and gives its result away."""

    def counts(self) -> Mapping[str, int]:
        """What one step or picture takes in things that can be counted exactly; nothing where nobody counts."""
        return {}
