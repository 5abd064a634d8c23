"""From nothing to the first image, and what a loaded pipeline holds in memory; each in a fresh process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitrify.bench.jobs import job_environment, run_job, tail
from vitrify.bench.measure import now
from vitrify.engine.errors import BackendError

__all__ = ["Startup", "measure_startup"]

_RUNS = 5

# The timer is Python's own here: importing the bench first would import what is to be measured.
_IMPORTS = """
import json, time
start = time.perf_counter()
import vitrify.runtime
package = time.perf_counter()
from vitrify.runtime import load
print(json.dumps([package - start, time.perf_counter() - start]))
"""


@dataclass(frozen=True)
class Startup:
    """Medians of fresh processes, seconds and bytes. steps: of each image.

    import_s: `import vitrify.runtime`. import_load_s: that and `from vitrify.runtime import load`.
    load_s: `load(artifact)`. first_image_s: the first request, sessions opened on the way. ready_s: load and first image.
    process_s: the whole process: interpreter, imports, load, both images. next_image_s: the request after the first.
    library_…: resident bytes with every library imported and no artifact. opened_…: all sessions open, nothing run.
    drawn_…: after the first image, with the activations that sessions keep. weights_bytes: parameters of all graphs in
    the dtype computed in, float32.
    """

    case: str
    steps: int
    import_s: float
    import_load_s: float
    load_s: float
    first_image_s: float
    ready_s: float
    process_s: float
    next_image_s: float
    library_anonymous: int
    library_mapped: int
    opened_anonymous: int
    opened_mapped: int
    drawn_anonymous: int
    drawn_mapped: int
    weights_bytes: int

    @property
    def opened_over_weights(self) -> float:
        """What the open sessions add to the libraries, in units of the weights."""
        libraries = self.library_anonymous + self.library_mapped
        return (self.opened_anonymous + self.opened_mapped - libraries) / self.weights_bytes

    @property
    def drawn_over_weights(self) -> float:
        """Everything resident after an image, libraries and activations included, in units of the weights."""
        return (self.drawn_anonymous + self.drawn_mapped) / self.weights_bytes

    def to_json(self) -> dict[str, Any]:
        shares = {"opened_over_weights": self.opened_over_weights, "drawn_over_weights": self.drawn_over_weights}
        return {**asdict(self), **shares}


def measure_startup(case: str, artifact: Path, *, steps: int, threads: int, runs: int = _RUNS) -> Startup:
    """Time `artifact` of `case` in `runs` fresh processes, and the imports in as many.

    Raises BackendError with what a process said.
    """
    given = {"artifact": str(artifact), "steps": steps, "threads": threads}
    imports = [_import_seconds(threads) for _ in range(runs)]
    seen = []
    for _ in range(runs):
        start = now()
        image = run_job("vitrify.bench.first_image", given, threads=threads)
        seen.append({**image, "process_s": now() - start, **run_job("vitrify.bench.opened", given, threads=threads)})
    medians = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
    found: dict[str, Any] = {name: value if name.endswith("_s") else int(value) for name, value in medians.items()}
    return Startup(
        case=case,
        steps=steps,
        import_s=statistics.median(package for package, _ in imports),
        import_load_s=statistics.median(load for _, load in imports),
        **found,
    )


def _import_seconds(threads: int) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS], capture_output=True, text=True, env=job_environment(threads), check=False
    )
    if done.returncode != 0:
        raise BackendError(f"import vitrify.runtime failed: {tail(done.stderr)}")
    package, load = json.loads(done.stdout)
    return float(package), float(load)
