"""The manifest: everything an artifact says about itself, as frozen data, and its one canonical byte string."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vitrify.engine.artifact.canonical import canonical_bytes, parse, plain
from vitrify.engine.artifact.paths import ID_NAME, MANIFEST_NAME, check_path
from vitrify.engine.errors import ArtifactError, SpecError
from vitrify.engine.specs import MODEL, SEGMENTS, ComponentSpec, Dim, GraphSpec, check_target, expect, expect_list, expect_map

__all__ = ["FORMAT_VERSION", "MAX_MANIFEST_BYTES", "FileEntry", "Manifest", "SchedulerSpec", "TokenizerSpec"]

Json = Any
T = TypeVar("T")

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 2**20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = (
    "format_version",
    "family",
    "pipeline_class",
    "target",
    "components",
    "component_order",
    "dims",
    "step_graphs",
    "ops",
    "scheduler",
    "tokenizers",
    "defaults",
    "presets",
    "provenance",
    "files",
)


@dataclass(frozen=True)
class SchedulerSpec:
    """The source's scheduler: its class and its configuration as saved."""

    class_name: str
    config: Mapping[str, Json]

    def to_json(self) -> Json:
        return {"class_name": self.class_name, "config": dict(self.config)}

    @classmethod
    def from_json(cls, data: Json, where: str = "scheduler") -> SchedulerSpec:
        fields = expect_map(data, where, ("class_name", "config"))
        return cls(expect(fields["class_name"], str, f"{where}.class_name"), expect_map(fields["config"], f"{where}.config"))


@dataclass(frozen=True)
class TokenizerSpec:
    """One tokenizer, serialised by the `tokenizers` library.

    class_name: what the source loads it as. path: the serialised file within the artifact.
    max_length: tokens per text, padding and special tokens included.
    """

    name: str
    class_name: str
    path: str
    max_length: int
    pad_token_id: int
    pad_token: str

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "class_name": self.class_name,
            "path": self.path,
            "max_length": self.max_length,
            "pad_token_id": self.pad_token_id,
            "pad_token": self.pad_token,
        }

    @classmethod
    def from_json(cls, data: Json, where: str = "tokenizer") -> TokenizerSpec:
        fields = expect_map(data, where, ("name", "class_name", "path", "max_length", "pad_token_id", "pad_token"))
        text = {k: expect(fields[k], str, f"{where}.{k}") for k in ("name", "class_name", "path", "pad_token")}
        numbers = {k: expect(fields[k], int, f"{where}.{k}") for k in ("max_length", "pad_token_id")}
        return cls(**text, **numbers)


@dataclass(frozen=True)
class FileEntry:
    """What a file of the artifact must be: its hash in hexadecimal and its size in bytes."""

    sha256: str
    size: int

    def to_json(self) -> Json:
        return {"sha256": self.sha256, "size": self.size}

    @classmethod
    def from_json(cls, data: Json, where: str = "file") -> FileEntry:
        fields = expect_map(data, where, ("sha256", "size"))
        digest, size = expect(fields["sha256"], str, f"{where}.sha256"), expect(fields["size"], int, f"{where}.size")
        if not _SHA256.fullmatch(digest):
            raise SpecError(f"{where}.sha256: got {digest[:80]!r}, expected 64 lower-case hexadecimal digits")
        if size < 0:
            raise SpecError(f"{where}.size: got {size}, expected >= 0")
        return cls(digest, size)


@dataclass(frozen=True)
class Manifest:
    """An artifact's account of itself.

    target: what the graphs are typed for, as `check_target` has it. components: in the source pipeline's order.
    step_graphs: the one-op graphs between engines (Euler step, guidance, …) by name.
    ops: the version of each op of ours that the graphs use.
    defaults: what a request that does not say gets. provenance: where the source came from.
    files: every file of the folder but the manifest and its hash.
    """

    family: str
    pipeline_class: str
    target: str
    components: Mapping[str, ComponentSpec]
    dims: Mapping[str, Dim]
    step_graphs: Mapping[str, GraphSpec]
    ops: Mapping[str, int]
    scheduler: SchedulerSpec
    tokenizers: Mapping[str, TokenizerSpec]
    defaults: Mapping[str, Json] = field(default_factory=dict)
    provenance: Mapping[str, Json] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Plain JSON data. Raises ArtifactError where a value is none."""

        def rows(specs: Mapping[str, Any]) -> Json:
            return {name: spec.to_json() for name, spec in specs.items()}

        data = {
            "format_version": FORMAT_VERSION,
            "family": self.family,
            "pipeline_class": self.pipeline_class,
            "target": self.target,
            "components": rows(self.components),
            "component_order": list(self.components),
            "dims": rows(self.dims),
            "step_graphs": rows(self.step_graphs),
            "ops": dict(self.ops),
            "scheduler": self.scheduler.to_json(),
            "tokenizers": rows(self.tokenizers),
            "defaults": dict(self.defaults),
            "presets": {},
            "provenance": dict(self.provenance),
            "files": rows(self.files),
        }
        return plain(data, "manifest")

    def canonical_bytes(self) -> bytes:
        """The bytes of `manifest.json`; their sha256 is the artifact's id."""
        return canonical_bytes(self.to_json(), "manifest")

    @classmethod
    def from_bytes(cls, data: bytes, where: str = MANIFEST_NAME) -> Manifest:
        """Parses and checks `manifest.json`, trusting nothing.

        Raises ArtifactError naming `where`: too large, no JSON, not canonical, another format version, a field unknown or missing
        or of another type, a path that leaves the folder or that `files` does not list.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{where}: got {len(data)} bytes, expected at most {MAX_MANIFEST_BYTES}")
        manifest = cls.from_json(parse(data, where), where)
        if manifest.canonical_bytes() != data:
            raise ArtifactError(f"{where}: not in canonical form (sorted keys, no white space): it was edited; export again")
        return manifest

    @classmethod
    def from_json(cls, data: Json, where: str = "manifest") -> Manifest:
        """Raises ArtifactError (see `from_bytes`)."""
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format version {version} is unknown, this vitrify reads version {FORMAT_VERSION}; "
                "export again with this version, or install the one that wrote it"
            )
        try:
            manifest = cls._from_fields(expect_map(data, where, _FIELDS), where)
            manifest.check(where)
        except SpecError as error:
            # Dim and check_target name themselves, not the file they came from.
            named = str(error) if where in str(error) else f"{where}: {error}"
            raise ArtifactError(f"{named}; export again") from None
        return manifest

    @classmethod
    def _from_fields(cls, fields: dict[str, Json], where: str) -> Manifest:
        def rows(key: str, read: Callable[[Json, str], T]) -> dict[str, T]:
            return {name: read(row, f"{where}: {key}.{name}") for name, row in expect_map(fields[key], f"{where}: {key}").items()}

        expect(fields["format_version"], int, f"{where}: format_version")
        expect_map(fields["presets"], f"{where}: presets", ())
        components = rows("components", ComponentSpec.from_json)
        order = [
            expect(name, str, f"{where}: component_order") for name in expect_list(fields["component_order"], "component_order")
        ]
        if sorted(order) != sorted(components):
            raise SpecError(f"{where}: component_order: got {order}, expected the keys of components {sorted(components)}")
        return cls(
            family=expect(fields["family"], str, f"{where}: family"),
            pipeline_class=expect(fields["pipeline_class"], str, f"{where}: pipeline_class"),
            target=expect(fields["target"], str, f"{where}: target"),
            components={name: components[name] for name in order},
            dims=rows("dims", Dim.from_json),
            step_graphs=rows("step_graphs", GraphSpec.from_json),
            ops=rows("ops", lambda version, at: int(expect(version, int, at))),
            scheduler=SchedulerSpec.from_json(fields["scheduler"], f"{where}: scheduler"),
            tokenizers=rows("tokenizers", TokenizerSpec.from_json),
            defaults=expect_map(fields["defaults"], f"{where}: defaults"),
            provenance=expect_map(fields["provenance"], f"{where}: provenance"),
            files=rows("files", FileEntry.from_json),
        )

    def graphs(self) -> dict[str, tuple[ComponentSpec | None, GraphSpec]]:
        """Every graph by a name for messages ("transformer.first"), with its component (a step graph has none)."""
        found: dict[str, tuple[ComponentSpec | None, GraphSpec]] = {}
        for component in self.components.values():
            found.update({f"{component.name}.{name}": (component, graph) for name, graph in component.graphs.items()})
        found.update({f"step.{name}": (None, graph) for name, graph in self.step_graphs.items()})
        return found

    def check(self, where: str = "manifest") -> None:
        """Raises ArtifactError or SpecError where the parts contradict each other."""
        check_target(self.target)
        for kind, named in (("component", self.components), ("dim", self.dims), ("tokenizer", self.tokenizers)):
            for key, spec in named.items():
                if key != spec.name or not _NAME.fullmatch(key):
                    raise ArtifactError(
                        f"{where}: {kind} {key!r} calls itself {spec.name!r}; expected one name, of letters, digits, _ . -"
                    )
        for name, version in self.ops.items():
            if version < 1:
                raise ArtifactError(f"{where}: op {name!r} has version {version}; expected >= 1")
        for tokenizer in self.tokenizers.values():
            if tokenizer.max_length < 1 or tokenizer.pad_token_id < 0:
                raise ArtifactError(
                    f"{where}: tokenizer {tokenizer.name!r} has max_length={tokenizer.max_length}, "
                    f"pad_token_id={tokenizer.pad_token_id}; expected >= 1 and >= 0"
                )
        self._check_graphs(where)
        self._check_shapes(where)
        self._check_paths(where)

    def _check_graphs(self, where: str) -> None:
        for component in self.components.values():
            if tuple(component.graphs) not in (SEGMENTS, (MODEL,)):
                raise ArtifactError(
                    f"{where}: component {component.name!r} has graphs {list(component.graphs)}, "
                    f"expected {list(SEGMENTS)} in this order, or {MODEL!r} alone"
                )

    def _check_shapes(self, where: str) -> None:
        for name, (_, graph) in self.graphs().items():
            for tensor in (*graph.inputs, *graph.outputs):
                terms = {term for extent in tensor.shape if isinstance(extent, str) for term in extent.split(" + ")}
                unknown = sorted(terms - set(self.dims))
                if unknown:
                    raise ArtifactError(
                        f"{where}: graph {name!r}: tensor {tensor.name!r} {tensor} has dimensions {unknown} "
                        "that dims does not list"
                    )

    def _check_paths(self, where: str) -> None:
        for path in self.files:
            check_path(path, f"{where}: files")
            if path in (MANIFEST_NAME, ID_NAME):
                raise ArtifactError(f"{where}: files: {path!r} cannot list itself")
        users: list[tuple[str, str]] = [(f"tokenizer {t.name!r}", t.path) for t in self.tokenizers.values()]
        for name, (_, graph) in self.graphs().items():
            users.append((f"graph {name!r}", graph.path))
            if graph.parameters < 0 or graph.parameter_bytes < 0:
                raise ArtifactError(f"{where}: graph {name!r} has {graph.parameters} parameters in {graph.parameter_bytes} bytes")
        users += [(f"component {c.name!r} weights", path) for c in self.components.values() for path in c.weights]
        for user, path in users:
            check_path(path, f"{where}: {user}")
            if path not in self.files:
                raise ArtifactError(f"{where}: {user} names {path!r}, which files does not list")
