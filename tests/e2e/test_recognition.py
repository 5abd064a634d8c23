"""The compiled sample draws what it is asked for as often as diffusers does with the same weights and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.e2e.conftest import Case
from tests.e2e.flux_sources import SAMPLE

_NAMES = 128


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_names_are_recognised_as_often_as_in_diffusers_pictures(sample: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SAMPLE))
    from emoji_training.folder import draw
    from recognise import load_gallery, recognition_rate, spread_names

    gallery = load_gallery()
    names = spread_names(_NAMES, gallery.names)
    ours = np.concatenate([sample.pipe(name, seed=seed, output_type="uint8").images for seed, name in enumerate(names)])
    theirs = draw(sample.reference, names, range(len(names)))
    compiled, eager = recognition_rate(ours, names, gallery), recognition_rate(theirs, names, gallery)
    print(f"right name first: compiled {compiled.first:.3f}, diffusers {eager.first:.3f}; among five: {compiled.among_five:.3f}")
    assert abs(compiled.first - eager.first) <= 0.02
    assert abs(compiled.among_five - eager.among_five) <= 0.02
    assert eager.first > 0.5, "a gallery or pictures that recognise nothing would agree too"
