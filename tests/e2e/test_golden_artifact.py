"""An artifact written by an earlier version still loads and draws what it drew: one stored per format version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.compare import assert_close
from vitrify.engine.artifact import FORMAT_VERSION, Artifact
from vitrify.engine.cache_policy import Cache, FirstBlock, Interval
from vitrify.engine.errors import ArtifactError
from vitrify.runtime import load

_DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_a_stored_artifact_still_draws(version: int) -> None:
    folder = _DATA / f"golden_v{version}"
    Artifact.open(folder / "artifact", verify="full")
    with load(folder / "artifact") as pipe:
        latents = pipe("red apple", seed=1, output_type="latent").images
        pipe("red apple", seed=1, output_type="latent", cache=Cache(Interval(2, 1)))
        if not pipe.artifact.manifest.step_graphs:
            with pytest.raises(ArtifactError, match=r"written without step/residual_diff\.onnx.*export it again"):
                pipe("red apple", seed=1, cache=Cache(FirstBlock(0.1)))
    assert_close(latents, np.load(folder / "latents.npy"), 1e-5, "latents after two steps")
