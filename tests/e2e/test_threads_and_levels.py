"""What must not matter to a picture: how many threads draw it, and by which instruction set. In float32, bf16 and int8."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.compare import assert_close, relative_error
from tests.e2e.conftest import SAMPLE_OPTIONS
from tests.e2e.flux_sources import SAMPLE, RandomFlux, write_random_flux
from tests.e2e.test_against_diffusers import RANDOM_CALL, SAMPLE_CALL, TOLERANCE, Recorded, teacher_forced
from vitrify.engine import native_library
from vitrify.engine.artifact import Artifact
from vitrify.export.options import ExportOptions, parse_precision
from vitrify.export.precision import BOUNDS
from vitrify.runtime import load

if TYPE_CHECKING:
    from tests.e2e.conftest import Case

THREADS = (1, 2, 3)
GUIDED = {"prompt": "red apple", "negative_prompt": "cat", "true_cfg_scale": 2.0}

# The pool of threads is made once in a process. Arguments: where the picture goes, threads, artifact, request.
DRAW = """
import json, sys
import numpy as np
from vitrify.runtime import load

out, threads, artifact, call = sys.argv[1:]
with load(artifact, kernels="native", threads=int(threads)) as pipe:
    np.save(out, pipe(**json.loads(call), seed=7, output_type="np").images)
"""


@dataclass
class Lowered:
    """A pipeline with its transformer in `precision`, and diffusers in float32 beside it. call: a request."""

    case: Case
    precision: str
    call: dict[str, Any]


def sample_in(precision: str, make_case: Callable[[Path, ExportOptions], Case]) -> Lowered:
    options = replace(SAMPLE_OPTIONS, precision=parse_precision(precision), calibration_prompts=("cat face",))
    return Lowered(make_case(SAMPLE, options), precision, {**SAMPLE_CALL, **GUIDED})


@pytest.fixture(
    scope="module",
    params=[
        "sample-fp32",
        "random-int8-and-bf16",
        pytest.param("sample-bf16", marks=pytest.mark.slow),
        pytest.param("sample-int8", marks=pytest.mark.slow),
    ],
)
def lowered(
    request: pytest.FixtureRequest,
    sample: Case,
    make_case: Callable[[Path, ExportOptions], Case],
    random_options: ExportOptions,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lowered]:
    if request.param == "sample-fp32":
        yield Lowered(sample, "fp32", {**SAMPLE_CALL, **GUIDED})
        return
    if request.param == "random-int8-and-bf16":
        options = replace(random_options, precision=parse_precision("bf16,transformer=int8"), calibration_prompts=("cat",))
        source = write_random_flux(tmp_path_factory.mktemp("random"), RandomFlux(layers=(1, 1)))
        made = Lowered(make_case(source, options), "int8", {**RANDOM_CALL, **GUIDED})
    else:
        made = sample_in(request.param.removeprefix("sample-"), make_case)
    yield made
    made.case.pipe.close()


def test_most_layers_are_in_that_precision(lowered: Lowered) -> None:
    chosen = Artifact.open(lowered.case.artifact).manifest.components["transformer"].precision
    if lowered.precision == "fp32":
        assert chosen is None
    else:
        assert chosen is not None
        layers = [layer.precision for layer in chosen.layers.values()]
        assert layers.count(lowered.precision) > len(layers) / 2


def test_the_thread_count_changes_no_picture(lowered: Lowered, tmp_path: Path) -> None:
    """Whole pictures, from the prompt on."""
    pictures = []
    for threads in THREADS:
        out = tmp_path / f"{threads}.npy"
        command = [sys.executable, "-c", DRAW, str(out), str(threads), str(lowered.case.artifact), json.dumps(lowered.call)]
        subprocess.run(command, check=True, timeout=300)
        pictures.append(np.load(out))
    assert pictures[0].std() > 0.05
    for threads, picture in zip(THREADS, pictures, strict=True):
        assert np.abs(picture - pictures[0]).max() <= 1e-6, f"{threads} threads and {THREADS[0]}"


@pytest.fixture
def any_level() -> Iterator[None]:
    yield
    native_library.force_cpu_level(None)


@pytest.mark.usefixtures("any_level")
def test_every_instruction_set_gives_the_same_answers(lowered: Lowered) -> None:
    """Every call's noise_pred, from the reference's latents; the text encoders are of the same instruction set.

    In float32 they agree as any two orders of a sum do. Where layers round, a last bit decides on which side a number falls,
    and the next layers carry that on: two instruction sets are then as far apart as two independent roundings, and each is
    as far from float32 as the others.
    """
    call = {**lowered.call, "num_inference_steps": 3}
    reference = Recorded(lowered.case, call)
    answers: dict[str, list[Any]] = {}
    pictures: dict[str, Any] = {}
    for level in native_library.cpu_levels():
        native_library.force_cpu_level(level)
        with load(lowered.case.artifact, kernels="native") as pipe:
            answers[level] = teacher_forced(replace(lowered.case, pipe=pipe), call, reference)
            pictures[level] = pipe(**call, latents=reference.noise, output_type="np").images
    for index, expected in enumerate(reference.predictions):
        found = {level: predictions[index] for level, predictions in answers.items()}
        if lowered.precision == "fp32":
            for level, got in found.items():
                assert_close(got, expected, 1e-5, f"call {index}, {level}")
                assert_close(pictures[level], reference.images, TOLERANCE, f"picture, {level}")
        else:
            errors = {level: relative_error(got, expected) for level, got in found.items()}
            apart = {level: relative_error(got, found["scalar"]) for level, got in found.items()}
            assert max(errors.values()) <= min(BOUNDS[lowered.precision], 2 * min(errors.values())), (index, errors)
            assert max(apart.values()) <= 1.5 * max(errors.values()), (index, apart, errors)
