"""What an export is asked for, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrify.engine.errors import CompileError
from vitrify.engine.specs import PRECISIONS, Dim

__all__ = ["ExportOptions", "Range", "parse_precision"]


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


def parse_precision(text: str) -> dict[str, str]:
    """`bf16`, or `transformer=int8,vae=fp32`: component → precision; "" stands for every component that is not named.

    Raises CompileError that says what is expected. Whether there is such a component is for the export to say.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, given, precision = part.strip().rpartition("=")
        if precision not in PRECISIONS or (given and not name) or name in found:
            raise CompileError(
                f"--precision {text!r}: expected {', '.join(PRECISIONS)}, for all or as COMPONENT=PRECISION,…, "
                "each component once"
            )
        found[name] = precision
    return found


@dataclass(frozen=True)
class ExportOptions:
    """Ranges left None take the family's default; `defaults` are request defaults that the artifact will carry.

    precision: component → fp32, bf16 or int8; "" for those that are not named, fp32 where that is not there either.
    calibration_prompts: what int8 is measured on; empty for vitrify's own.
    """

    height: Range | None = None
    width: Range | None = None
    batch: Range | None = None
    max_sequence_length: Range | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    parity: bool = True
    force: bool = False
    precision: Mapping[str, str] = field(default_factory=dict)
    calibration_prompts: tuple[str, ...] = ()

    def precision_of(self, component: str) -> str:
        """What the component's linear layers compute in."""
        return self.precision.get(component, self.precision.get("", "fp32"))
