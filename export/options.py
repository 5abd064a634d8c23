"""What an export is asked for, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrify.engine.errors import CompileError
from vitrify.engine.specs import Dim

__all__ = ["ExportOptions", "Range"]


@dataclass(frozen=True)
class Range:
    """A size range as the command line takes it: `N`, `MIN:MAX` (optimised for MAX) or `MIN:OPT:MAX`."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, text: str, name: str) -> Range:
        """Raises CompileError that names the option."""
        parts = text.split(":")
        try:
            numbers = [int(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2, 3) or numbers != sorted(numbers) or numbers[0] < 1:
            raise CompileError(f"--{name} {text!r}: expected N, MIN:MAX or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX")
        return cls(numbers[0], numbers[len(numbers) // 2], numbers[-1])

    def dim(self, name: str, step: int = 1) -> Dim:
        """The dimension it describes. Raises CompileError naming the nearest sizes when one is off the raster of `step`."""
        for value in (self.min, self.opt, self.max):
            if value % step:
                low = max(step, value // step * step)
                raise CompileError(
                    f"--{name.replace('_', '-')}: {value} is not a multiple of {step}; nearest are {low} and {low + step}"
                )
        return Dim(name, self.min, self.opt, self.max, step)


@dataclass(frozen=True)
class ExportOptions:
    """Ranges left None take the family's default; `defaults` are request defaults that the artifact will carry."""

    height: Range | None = None
    width: Range | None = None
    batch: Range | None = None
    max_sequence_length: Range | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    parity: bool = True
    force: bool = False
