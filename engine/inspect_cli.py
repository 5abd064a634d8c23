"""`vitrify inspect`: what an artifact says of itself, as tables or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vitrify.engine.artifact import FORMAT_VERSION, Artifact, Manifest
from vitrify.engine.cache_memory import CacheMemory, cache_memory, image_tokens
from vitrify.engine.cache_policy import Cache
from vitrify.engine.cache_presets import PREDICTORS, named_cache
from vitrify.engine.denoiser import LOOP_SEGMENTS, SEGMENTS
from vitrify.engine.errors import RequestError
from vitrify.engine.fusion import FUSION, fusion_of
from vitrify.engine.specs import ComponentSpec, GraphSpec

__all__ = ["Section", "describe", "inspect", "print_sections", "summarize"]

Json = Any

_BEFORE_LOOP = "condition"
_PIPE_WIDTH = 160
_VALUES_SHOWN = 3
_TEXT = frozenset(("what", "value", "field", "component", "class", "encoding", "graphs", "when", "segments", "graph"))
_TEXT |= frozenset(("inputs", "outputs", "name", "measured", "op", "tokenizer", "pad token", "file", "sha256"))
_TEXT |= frozenset(("reason", "values"))
_TEXT |= frozenset(("precision", "layers", "measured on", "layer"))


@dataclass(frozen=True)
class Section:
    """One table: a title, the columns' heads and rows of text as long as the heads."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def describe(manifest: Manifest, artifact_id: str | None = None) -> list[Section]:
    """The tables of an artifact, or of one that is only planned (no files yet, no id); empty ones are left out."""
    sections = [
        Section("artifact", ("what", "value"), tuple(_overview(manifest, artifact_id))),
        Section(
            "components",
            ("component", "class", "encoding", "graphs", "parameters", "read by graphs", "weights on disk"),
            tuple(_component_row(manifest, component) for component in manifest.components.values()),
        ),
        Section("denoiser", ("component", "when", "segments", "parameters", "bytes", "share"), tuple(_loop_rows(manifest))),
        Section("repeated in every step without the latents", ("component", "computation"), tuple(_invariant_rows(manifest))),
        Section("graphs", ("graph", "parameters", "bytes", "graph file", "inputs", "outputs"), tuple(_graph_rows(manifest))),
        Section(
            "dimensions",
            ("name", "min", "opt", "max", "step"),
            tuple((d.name, str(d.min), str(d.opt), str(d.max), str(d.step)) for d in manifest.dims.values()),
        ),
        Section(
            "parity with eager PyTorch, float32", ("component", "measured", "error", "tolerance"), tuple(_parity_rows(manifest))
        ),
        Section(
            "precision of layers",
            ("component", "precision", "layers", "outputs' error", "bound", "measured on"),
            tuple(_precision_rows(manifest)),
        ),
        Section("layers above it", ("component", "layer", "precision", "error when lowered"), tuple(_kept_rows(manifest))),
        Section("fused", ("graph", "op", "nodes"), tuple(_fused_rows(manifest))),
        Section("left to the runtime", ("graph", "op", "nodes", "reason", "values"), tuple(_left_rows(manifest))),
        Section("ops", ("op", "version"), tuple((name, str(version)) for name, version in sorted(manifest.ops.items()))),
        Section("scheduler", ("field", "value"), (("class", manifest.scheduler.class_name), *_flat(manifest.scheduler.config))),
        Section(
            "tokenizers",
            ("tokenizer", "class", "tokens", "pad id", "pad token", "file"),
            tuple(
                (t.name, t.class_name, str(t.max_length), str(t.pad_token_id), repr(t.pad_token), t.path)
                for t in manifest.tokenizers.values()
            ),
        ),
        Section("request defaults", ("field", "value"), tuple(_flat(manifest.defaults))),
        Section(
            "provenance",
            ("field", "value"),
            tuple(_flat({k: v for k, v in manifest.provenance.items() if k != FUSION})),
        ),
        Section(
            "files",
            ("file", "size", "sha256"),
            tuple((path, _bytes(entry.size), entry.sha256) for path, entry in sorted(manifest.files.items())),
        ),
    ]
    return [section for section in sections if section.rows]


def summarize(manifest: Manifest) -> Json:
    """The sums that the manifest itself does not hold.

    denoisers: component → parameters and their bytes, before the loop and in it. files: bytes of weights, graphs, all.
    """
    denoisers = {}
    for component in _denoisers(manifest):
        before, inside = _split(component)
        denoisers[component.name] = {
            "parameters_before_loop": _sum(before, "parameters"),
            "parameters_in_loop": _sum(inside, "parameters"),
            "bytes_before_loop": _sum(before, "parameter_bytes"),
            "bytes_in_loop": _sum(inside, "parameter_bytes"),
        }
    weights = {path for component in manifest.components.values() for path in component.weights}
    graphs = {graph.path for _, graph in manifest.graphs().values()}
    return {
        "denoisers": denoisers,
        "files": {
            "weight_bytes": _size_of(manifest, weights),
            "graph_bytes": _size_of(manifest, graphs),
            "all_bytes": _size_of(manifest, manifest.files),
        },
    }


def print_sections(manifest: Manifest, artifact_id: str | None = None, more: Sequence[Section] = ()) -> None:
    """Prints the tables of `describe`, then `more`; as wide as the terminal, 160 columns into a file or a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    probe = Console()
    # Text such as "[batch, 4]" is no markup.
    console = Console(markup=False, highlight=False, emoji=False, width=None if probe.is_terminal else _PIPE_WIDTH)
    for section in (*describe(manifest, artifact_id), *more):
        table = Table(title=section.title, title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
        for column in section.columns:
            table.add_column(column, overflow="fold", justify="left" if column in _TEXT else "right")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--cache", help="Also how much memory this step cache takes: first-block, taylorseer, interval, mask:fast, …")
@click.option("--cache-predict", type=click.Choice(PREDICTORS), help="What stands in for a skipped step.")
@click.option("--height", type=int, help="Pixels, for --cache; a request's default if not given.")
@click.option("--width", type=int, help="Pixels, for --cache; a request's default if not given.")
@click.option("--batch", type=int, help="Rows of the denoiser, for --cache: pictures, twice with true CFG.  [default: 1]")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest, the id and the sums as one JSON object.")
def inspect(
    artifact: Path,
    cache: str | None,
    cache_predict: str | None,
    height: int | None,
    width: int | None,
    batch: int | None,
    as_json: bool,
) -> None:
    """Print what ARTIFACT holds: components, segments, dimensions, parity, fused ops, defaults, provenance, sizes."""
    if cache is None and (cache_predict, height, width, batch) != (None,) * 4:
        raise RequestError("--cache-predict, --height, --width and --batch say what --cache is asked for; name a cache")
    opened = Artifact.open(artifact)
    cached = None
    if cache is not None:
        cached = _cache_at(opened.manifest, named_cache(cache, cache_predict, artifact=opened), height, width, batch)
    if as_json:
        data = {"id": opened.id, "manifest": opened.manifest.to_json(), **summarize(opened.manifest)}
        data |= {} if cached is None else {"cache": cached.to_json()}
        click.echo(json.dumps(data, indent=2, sort_keys=True))
    else:
        print_sections(opened.manifest, opened.id, () if cached is None else (cached.section(),))


@dataclass(frozen=True)
class _CacheAt:
    """A cache's memory for one size of request."""

    cache: Cache
    component: str
    height: int
    width: int
    batch: int
    image_tokens: int
    memory: CacheMemory

    def to_json(self) -> Json:
        return {
            "cache": str(self.cache),
            "component": self.component,
            "height": self.height,
            "width": self.width,
            "batch": self.batch,
            "image_tokens": self.image_tokens,
            "holds": self.memory.of,
            "decision_bytes": self.memory.decision_bytes,
            "predictor_bytes": self.memory.predictor_bytes,
            "total_bytes": self.memory.total_bytes,
        }

    def section(self) -> Section:
        rows = [
            ("cache", str(self.cache)),
            ("of a request", f"{self.height} × {self.width} pixels = {self.image_tokens} image tokens, batch {self.batch}"),
            ("decision", f"{self.memory.decision_bytes} bytes"),
            (f"predictor{f', of the {self.memory.of}' if self.memory.of else ''}", f"{self.memory.predictor_bytes} bytes"),
            ("in all", f"{self.memory.total_bytes} bytes ({_bytes(self.memory.total_bytes)})"),
        ]
        return Section(f"memory of a step cache: {self.component}", ("what", "value"), tuple(rows))


def _cache_at(manifest: Manifest, cache: Cache, height: int | None, width: int | None, batch: int | None) -> _CacheAt:
    """The memory of `cache` for one size of request. Raises RequestError for a size that the artifact was not compiled for."""
    denoisers = [one for one in manifest.components.values() if tuple(one.graphs) == SEGMENTS]
    if len(denoisers) != 1:
        raise RequestError(f"--cache: the artifact has {len(denoisers)} denoisers in segments, expected one")
    high, wide = (
        asked if asked is not None else int(manifest.defaults.get(name, manifest.dims[name].opt))
        for name, asked in (("height", height), ("width", width))
    )
    rows, compiled = 1 if batch is None else batch, manifest.dims["batch"]
    tokens = image_tokens(manifest.dims, high, wide)
    # Two branches of guidance may lie in two lanes.
    if not compiled.allows(rows) and (rows % 2 or not compiled.allows(rows // 2)):
        raise RequestError(f"--batch {rows} is outside what this artifact was compiled for: {compiled}, twice that with true CFG")
    memory = cache_memory(cache, denoisers[0], rows, tokens)
    return _CacheAt(cache, denoisers[0].name, high, wide, rows, tokens, memory)


def _precision_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for component in manifest.components.values():
        if (chosen := component.precision) is not None:
            counts = Counter(
                layer.precision + ("" if _is_linear(name) else " attention") for name, layer in chosen.layers.items()
            )
            layers = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            yield component.name, chosen.name, layers, f"{chosen.error:.2g}", f"{chosen.bound:.2g}", chosen.measured_on


def _kept_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for component in manifest.components.values():
        if (chosen := component.precision) is not None:
            for name, layer in chosen.layers.items():
                if layer.precision != (chosen.name if _is_linear(name) else "bf16"):
                    yield component.name, name, layer.precision, f"{layer.error:.2g}" if layer.error else "-"


def _is_linear(layer: str) -> bool:
    """A linear layer or a convolution goes by its weight's name, an attention by its module's; the latter knows no int8."""
    return layer.endswith(".weight")


def _overview(manifest: Manifest, artifact_id: str | None) -> Iterator[tuple[str, str]]:
    if artifact_id is not None:
        yield "id", artifact_id
    yield "format version", str(FORMAT_VERSION)
    yield "family", manifest.family
    yield "pipeline", manifest.pipeline_class
    yield "target", manifest.target
    parameters = sum(_sum(component.graphs.values(), "parameters") for component in manifest.components.values())
    yield "parameters", _count(parameters)
    if manifest.files:
        sizes = summarize(manifest)["files"]
        yield "weights", _bytes(sizes["weight_bytes"])
        yield "graphs", _bytes(sizes["graph_bytes"])
        yield "all files", f"{_bytes(sizes['all_bytes'])} in {len(manifest.files)} files"


def _component_row(manifest: Manifest, component: ComponentSpec) -> tuple[str, ...]:
    graphs = component.graphs.values()
    return (
        component.name,
        component.class_name,
        component.encoding.value if component.weights else "-",
        ", ".join(component.graphs),
        _count(_sum(graphs, "parameters")),
        _stored(graphs),
        _bytes(_size_of(manifest, component.weights)) if manifest.files else "-",
    )


def _denoisers(manifest: Manifest) -> list[ComponentSpec]:
    return [component for component in manifest.components.values() if _BEFORE_LOOP in component.graphs]


def _split(component: ComponentSpec) -> tuple[list[GraphSpec], list[GraphSpec]]:
    """The graphs that run once per request, and those that run in every step."""
    inside = [graph for name, graph in component.graphs.items() if name in LOOP_SEGMENTS]
    return [graph for graph in component.graphs.values() if graph not in inside], inside


def _loop_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for component in _denoisers(manifest):
        before, inside = _split(component)
        total = _sum([*before, *inside], "parameters")
        names = {"before the loop, once per request": before, "in the loop, every step": inside}
        for when, graphs in names.items():
            parameters = _sum(graphs, "parameters")
            segments = ", ".join(name for name, graph in component.graphs.items() if graph in graphs)
            share = f"{parameters / total:.1%}" if total else "-"
            yield component.name, when, segments, _count(parameters), _stored(graphs), share


def _graph_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for name, (_, graph) in manifest.graphs().items():
        size = _bytes(manifest.files[graph.path].size) if graph.path in manifest.files else "-"
        tensors = ("\n".join(f"{t.name}: {t}" for t in side) for side in (graph.inputs, graph.outputs))
        yield name, _count(graph.parameters), _stored([graph]), size, *tensors


def _invariant_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for component in manifest.components.values():
        for work in component.invariant_work:
            yield component.name, work


def _fused_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for graph, told in fusion_of(manifest.provenance).items():
        for op, count in sorted(told.ops.items()):
            yield graph, op, str(count)


def _left_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for graph, told in fusion_of(manifest.provenance).items():
        for row in told.left:
            more = ", …" if len(row.values) > _VALUES_SHOWN else ""
            yield graph, row.op, str(len(row.values)), row.reason, ", ".join(row.values[:_VALUES_SHOWN]) + more


def _parity_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for component in manifest.components.values():
        if not component.weights:
            continue  # planned only: there is nothing yet to compare
        parity = component.parity
        if not parity.checked:
            yield component.name, "not checked (--no-parity)", "-", "-"
        for name, error in sorted(parity.measurements.items()):
            tolerance = parity.tolerances.get(name)
            yield component.name, f"{name} ({parity.method})", f"{error:.0e}", "-" if tolerance is None else f"{tolerance:.0e}"


def _flat(data: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested objects as one row per leaf, keys joined by dots."""
    for key, value in sorted(data.items()):
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
            yield from _flat({str(i): item for i, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _sum(graphs: Sequence[GraphSpec] | Any, field: str) -> int:
    return sum(int(getattr(graph, field)) for graph in graphs)


def _stored(graphs: Sequence[GraphSpec] | Any) -> str:
    """Bytes of the weights that graphs read; none are known of a plan."""
    total = _sum(graphs, "parameter_bytes")
    return _bytes(total) if total else "-"


def _size_of(manifest: Manifest, paths: Sequence[str] | set[str] | Mapping[str, object]) -> int:
    return sum(manifest.files[path].size for path in paths if path in manifest.files)


def _count(number: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number} B"
