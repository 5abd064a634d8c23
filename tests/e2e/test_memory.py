"""What is in memory while the loop runs, from the process's own maps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from tests.e2e.flux_sources import RandomFlux, write_random_flux
from vitrify.engine.artifact import Artifact
from vitrify.export.compile import compile_pipeline
from vitrify.export.options import ExportOptions, Range

_PROBE = """
import json, sys
from pathlib import Path
from vitrify.engine.memory import resident_bytes
from vitrify.runtime import load

seen = {}

def look(pipe, step, timestep, values):
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = []
    for addresses, _, offset, *_ in (line.split() for line in lines if "transformer/" in line and ".safetensors" in line):
        first, last = (int(a, 16) for a in addresses.split("-"))
        spans.append((int(offset, 16), int(offset, 16) + last - first))
    seen.update(resident_bytes(), mapped_weights=spans, open=list(pipe.transformer.model.open_segments))
    return {}

before = resident_bytes()
pipe = load(sys.argv[1], keep=sys.argv[2])
pipe("red apple", seed=1, num_inference_steps=2, output_type="latent", callback_on_step_end=look)
print(json.dumps({**seen, "before": before}))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser wide enough for its weights to stand out: width 768, 40 M of 115 M parameters before the loop."""
    source = write_random_flux(tmp_path_factory.mktemp("wide"), RandomFlux(heads=12, axes=(16, 24, 24), layers=(2, 2)))
    artifact = tmp_path_factory.mktemp("artifact") / "art"
    size = Range(32, 32, 32)
    options = ExportOptions(height=size, width=size, batch=Range(1, 1, 1), max_sequence_length=Range(12, 12, 12), parity=False)
    compile_pipeline(source, artifact, options)
    return artifact


def _probe(artifact: Path, keep: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(artifact), keep], capture_output=True, text=True, check=True, timeout=120
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _condition_only(artifact: Path) -> list[tuple[str, int, int]]:
    """The large parameters that only `condition` reads: name and the span of their bytes, without the pages at the ends."""
    spans = []
    for value in ir.load(artifact / "transformer" / "condition.onnx").graph.initializers.values():
        stored = value.const_value
        if isinstance(stored, ir.ExternalTensor) and stored.nbytes > 1 << 20:
            spans.append((str(value.name), int(stored.offset or 0) + 4096, int(stored.offset or 0) + stored.nbytes - 4096))
    assert spans
    return spans


@pytest.mark.slow
def test_weights_of_condition_leave_before_the_loop(wide: Path) -> None:
    graphs = Artifact.open(wide).manifest.components["transformer"].graphs
    before_loop = 4 * graphs["condition"].parameters
    in_loop = 4 * sum(graph.parameters for name, graph in graphs.items() if name != "condition")
    assert before_loop > 50e6, "the case is too small to show anything"
    everything, denoiser = _probe(wide, "all"), _probe(wide, "denoiser")
    assert everything["open"] == ["condition", "embed", "first", "rest", "finish"]
    assert denoiser["open"] == ["embed", "first", "rest", "finish"]
    for name, start, stop in _condition_only(wide):
        assert not [s for s in denoiser["mapped_weights"] if s[0] < stop and start < s[1]], f"{name} is mapped in the loop"
    assert everything["anonymous"] - denoiser["anonymous"] > 0.9 * before_loop
    grown = denoiser["anonymous"] + denoiser["mapped"] - sum(denoiser["before"].values())
    libraries = 60e6  # onnxruntime's own code and heap, which come with the first session
    assert grown < 1.15 * in_loop + libraries


@pytest.mark.slow
def test_a_loaded_pipeline_holds_its_weights_once(wide: Path) -> None:
    components = Artifact.open(wide).manifest.components.values()
    weights = 4 * sum(graph.parameters for component in components for graph in component.graphs.values())
    seen = _probe(wide, "all")
    grown = seen["anonymous"] + seen["mapped"] - sum(seen["before"].values())
    assert grown < 1.15 * weights + 60e6
