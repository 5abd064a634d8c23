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
    """Medians of five processes, seconds and bytes.

    import_s: `import vitrify.runtime`. import_load_s: that and `from vitrify.runtime import load`.
    load_s: `load(artifact)`. first_image_s: the first request, sessions opened on the way. ready_s: load and first image.
    process_s: the whole process: interpreter, imports, load, first image. next_image_s: the request after it.
    library_…: resident bytes before the load, with every library imported. loaded_…: after the first image, all sessions open.
    weights_bytes: parameters of all graphs in the dtype computed in, float32.
    """

    case: str
    import_s: float
    import_load_s: float
    load_s: float
    first_image_s: float
    ready_s: float
    process_s: float
    next_image_s: float
    library_anonymous: int
    library_mapped: int
    loaded_anonymous: int
    loaded_mapped: int
    weights_bytes: int

    @property
    def resident_over_weights(self) -> float:
        """Everything resident, libraries included, in units of the weights."""
        return (self.loaded_anonymous + self.loaded_mapped) / self.weights_bytes

    @property
    def added_over_weights(self) -> float:
        """What the pipeline added to the libraries, in units of the weights."""
        return self.resident_over_weights - (self.library_anonymous + self.library_mapped) / self.weights_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "resident_over_weights": self.resident_over_weights,
            "added_over_weights": self.added_over_weights,
        }


def measure_startup(case: str, artifact: Path, *, threads: int, runs: int = _RUNS) -> Startup:
    """Time `artifact` of `case` in `runs` fresh processes each. Raises BackendError with what a process said."""
    imports = [_import_seconds(threads) for _ in range(runs)]
    images = []
    for _ in range(runs):
        start = now()
        answer = run_job("vitrify.bench.first_image", {"artifact": str(artifact), "threads": threads}, threads=threads)
        images.append({**answer, "process_s": now() - start})
    medians = {name: statistics.median(image[name] for image in images) for name in images[0]}
    found: dict[str, Any] = {name: value if name.endswith("_s") else int(value) for name, value in medians.items()}
    return Startup(
        case=case,
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
