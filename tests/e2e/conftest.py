"""The artifacts that the end-to-end tests share: at most three exports in the default suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from tests.e2e.flux_sources import SAMPLE, RandomFlux, write_random_flux
from vitrify.export.compile import compile_pipeline
from vitrify.export.options import ExportOptions, Range
from vitrify.runtime import load
from vitrify.runtime.compiled import CompiledPipeline


@dataclass
class Case:
    """One source folder: diffusers' pipeline in float32, and ours over its artifact."""

    source: Path
    artifact: Path
    reference: Any
    pipe: CompiledPipeline


def sizes(text: str) -> Range:
    return Range.parse(text, "size")


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, ExportOptions], Case]:
    """Compile a folder; parity is what the tests of this folder show."""

    def make(source: Path, options: ExportOptions) -> Case:
        artifact = tmp_path_factory.mktemp("artifact") / "art"
        compile_pipeline(source, artifact, options)
        reference = FluxPipeline.from_pretrained(source, dtype=torch.float32)
        reference.set_progress_bar_config(disable=True)
        return Case(source, artifact, reference, load(artifact))

    return make


SAMPLE_OPTIONS = ExportOptions(
    height=sizes("32:64:128"),
    width=sizes("32:64:128"),
    batch=sizes("1:2:4"),
    max_sequence_length=sizes("8:16:64"),
    parity=False,
    defaults={"num_inference_steps": 20, "true_cfg_scale": 2.0, "negative_prompt": "", "max_sequence_length": 16},
)
"""The request defaults that the sample's README names."""


@pytest.fixture(scope="session")
def sample(make_case: Callable[[Path, ExportOptions], Case]) -> Iterator[Case]:
    """The trained sample."""
    case = make_case(SAMPLE, SAMPLE_OPTIONS)
    yield case
    case.pipe.close()


_RANDOM_OPTIONS = ExportOptions(
    height=sizes("16:32:64"), width=sizes("16:32:64"), batch=sizes("1:2:4"), max_sequence_length=sizes("8:12:32"), parity=False
)


@pytest.fixture(scope="session")
def random_options() -> ExportOptions:
    """What random folders are compiled for."""
    return _RANDOM_OPTIONS


@pytest.fixture(scope="session")
def dev_like(make_case: Callable[[Path, ExportOptions], Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Random weights with guidance embedding and dynamic shift."""
    case = make_case(write_random_flux(tmp_path_factory.mktemp("dev"), RandomFlux()), _RANDOM_OPTIONS)
    yield case
    case.pipe.close()


@pytest.fixture(scope="session")
def schnell_like(make_case: Callable[[Path, ExportOptions], Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Random weights without guidance embedding, with a static shift."""
    made = RandomFlux(guidance_embeds=False, seed=1, scheduler={"shift": 1.7}, layers=(1, 3), heads=2, latent_channels=3)
    case = make_case(write_random_flux(tmp_path_factory.mktemp("schnell"), made), _RANDOM_OPTIONS)
    yield case
    case.pipe.close()
