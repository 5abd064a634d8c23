"""The sample in bf16 and int8: every step of 64 names from the reference's own latents, against diffusers in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.compare import relative_error
from tests.e2e.conftest import SAMPLE_OPTIONS
from tests.e2e.flux_sources import SAMPLE
from tests.e2e.test_against_diffusers import SAMPLE_CALL, Recorded, teacher_forced
from vitrify.export.options import ExportOptions, parse_precision

if TYPE_CHECKING:
    from tests.e2e.conftest import Case

_NAMES = 64
_CALL = {**SAMPLE_CALL, "true_cfg_scale": 2.0, "negative_prompt": ""}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.02), ("int8", 0.04)])
def test_every_step_keeps_the_bound(make_case: Callable[[Path, ExportOptions], Case], precision: str, bound: float) -> None:
    case = make_case(SAMPLE, replace(SAMPLE_OPTIONS, precision=parse_precision(precision), parity=True))
    names = (SAMPLE / "names.txt").read_text(encoding="utf-8").split("\n")
    errors: list[float] = []
    differences: list[Any] = []
    for name in [name for name in names if name][:: max(1, len(names) // _NAMES)][:_NAMES]:
        call = {**_CALL, "prompt": name}
        reference = Recorded(case, call)
        found = teacher_forced(case, call, reference)
        errors.extend(relative_error(got, expected) for got, expected in zip(found, reference.predictions, strict=True))
        picture: Any = case.pipe(**call, latents=reference.noise, output_type="np").images
        differences.append(np.abs(picture - reference.images).mean())
    case.pipe.close()
    assert len(errors) == _NAMES * _CALL["num_inference_steps"] * 2
    print(
        f"{precision}: noise_pred off by {np.median(errors):.4f}, 95th percentile {np.percentile(errors, 95):.4f}, "
        f"largest {max(errors):.4f}; pictures off by {255 * np.mean(differences):.2f} of 255 levels"
    )
    assert np.percentile(errors, 95) <= bound
    # Rounding leaves a trace: a run in float32 would be off by 1e-6.
    assert np.median(errors) > 1e-4
