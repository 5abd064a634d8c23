"""The GPU kernels of this installation: what `vitrify kernels build` wrote beside the op library, read back.

`cubins/manifest.json` (canonical JSON) describes every kernel once and lists its compiled images per architecture. Names:
a **kernel** has parameters and a grid; a **variant** of it has a dtype and compile-time constants; an **image** is a variant
compiled for one architecture; a **program** is what one op runs, as launches in order.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitrify.engine.artifact.canonical import canonical_bytes, parse
from vitrify.engine.errors import ArtifactError, BackendError, SpecError
from vitrify.engine.specs import expect, expect_list, expect_map

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Argument",
    "CubinManifest",
    "GpuKernel",
    "GpuProgram",
    "Image",
    "LaunchSpec",
    "ScratchSpec",
    "VariantSpec",
    "folder",
    "read_manifest",
]

FORMAT = 2
MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 64 << 20

Json = Any


@dataclass(frozen=True)
class Argument:
    """A kernel's parameter. type: "pointer" or "int32". dtype: what a pointer points to, "activation" for the variant's dtype;
    "" for an int32. written: the kernel writes through it. divisible_by: of the address in bytes, or of the number. least: the
    smallest number in a launch that is not empty."""

    name: str
    type: str
    dtype: str
    written: bool
    divisible_by: int
    least: int


@dataclass(frozen=True)
class Image:
    """A compiled variant. file: beside the manifest. parameters: (offset, size) of each in the buffer of a launch, hidden ones
    included. shared_bytes: dynamic shared memory of a block. registers, stack_bytes, tensor_core_instructions: None for PTX."""

    file: str
    bytes: int
    sha256: str
    entry: str
    tile: Mapping[str, int]
    num_warps: int
    num_stages: int
    shared_bytes: int
    parameters: tuple[tuple[int, int], ...]
    registers: int | None = None
    stack_bytes: int | None = None
    tensor_core_instructions: int | None = None


@dataclass(frozen=True)
class VariantSpec:
    """dtype: of the activations. constants: name → value. images: `sm_90` or `sm_80_ptx` → image."""

    dtype: str
    constants: Mapping[str, int | float]
    images: Mapping[str, Image]


@dataclass(frozen=True)
class GpuKernel:
    """arguments: visible parameters in order; hidden: pointers after them that a launch passes as null. sizes: whole numbers
    that the expressions need besides. grid, flops, moved_bytes: expressions (kernels/aot/expressions.py) over int32 arguments,
    sizes, constants and tile sizes; flops and moved_bytes also know `itemsize`."""

    arguments: tuple[Argument, ...]
    hidden: tuple[str, ...]
    sizes: tuple[str, ...]
    grid: tuple[str, ...]
    flops: str
    moved_bytes: str
    tensor_core: bool
    variants: Mapping[str, VariantSpec]


@dataclass(frozen=True)
class LaunchSpec:
    """kernel: its name. arguments: argument or size → tensor or scratch name, or expression over dimensions and int attributes.
    constants: constant → expression or float attribute whose value picks the variant."""

    kernel: str
    arguments: Mapping[str, str]
    constants: Mapping[str, str]


@dataclass(frozen=True)
class ScratchSpec:
    """Memory between launches: `elements` is an expression over dimensions. dtype as in Argument."""

    name: str
    dtype: str
    elements: str


@dataclass(frozen=True)
class GpuProgram:
    """What one op runs on a GPU."""

    version: int
    scratch: tuple[ScratchSpec, ...]
    launches: tuple[LaunchSpec, ...]


@dataclass(frozen=True)
class CubinManifest:
    """compiler: `triton 3.9.0`. kernels and programs (by op) by name."""

    compiler: str
    kernels: Mapping[str, GpuKernel]
    programs: Mapping[str, GpuProgram]

    def canonical_bytes(self) -> bytes:
        """The one byte string of this manifest."""
        return canonical_bytes({"format": FORMAT, **asdict(self)}, MANIFEST)


def folder() -> Path:
    """Where this installation keeps its GPU kernels, built or not."""
    place = importlib.resources.files("vitrify.engine").joinpath("native", "cubins")
    if not isinstance(place, Path):
        raise BackendError(f"{place}: GPU kernels need a package installed as files")
    return place


def read_manifest(where: Path, *, verify: bool = False) -> CubinManifest:
    """The manifest of the folder `where`; with `verify` every image's size and sha256 are held against it.

    Raises BackendError where there is none, ArtifactError where it is damaged or of another format.
    """
    file = where / MANIFEST
    try:
        with file.open("rb") as stream:
            data = stream.read(_MANIFEST_LIMIT + 1)
    except FileNotFoundError:
        raise BackendError(f"{file} does not exist: no GPU kernels were built; run: vitrify kernels build") from None
    if len(data) > _MANIFEST_LIMIT:
        raise ArtifactError(f"{file}: larger than {_MANIFEST_LIMIT} bytes; build the kernels again")
    try:
        manifest = _manifest(parse(data, str(file)), str(file))
    except SpecError as error:
        raise ArtifactError(f"{error}; run: vitrify kernels build") from error
    if verify:
        _verify(where, manifest)
    return manifest


def _verify(where: Path, manifest: CubinManifest) -> None:
    for kernel in manifest.kernels.values():
        for variant in kernel.variants.values():
            for image in variant.images.values():
                try:
                    data = (where / image.file).read_bytes()
                except OSError as error:
                    raise ArtifactError(f"{where / image.file}: {error.strerror}; run: vitrify kernels build") from error
                if len(data) != image.bytes or hashlib.sha256(data).hexdigest() != image.sha256:
                    raise ArtifactError(f"{where / image.file}: not the file that {MANIFEST} names; run: vitrify kernels build")


# ---- from JSON, trusting nothing


def _manifest(data: Json, where: str) -> CubinManifest:
    fields = expect_map(data, where, ("format", "compiler", "kernels", "programs"))
    if fields["format"] != FORMAT:
        raise SpecError(f"{where}: format {fields['format']!r}, this version reads {FORMAT}")
    kernels = {k: _kernel(v, f"{where}: kernel {k}") for k, v in expect_map(fields["kernels"], where).items()}
    programs = {k: _program(v, f"{where}: program {k}") for k, v in expect_map(fields["programs"], where).items()}
    for op, program in programs.items():
        for launch in program.launches:
            if launch.kernel not in kernels:
                raise SpecError(f"{where}: program {op} launches {launch.kernel!r}, which is no kernel of it")
    return CubinManifest(expect(fields["compiler"], str, where), kernels, programs)


def _kernel(data: Json, where: str) -> GpuKernel:
    keys = ("arguments", "hidden", "sizes", "grid", "flops", "moved_bytes", "tensor_core", "variants")
    fields = expect_map(data, where, keys)
    return GpuKernel(
        arguments=tuple(_argument(row, where) for row in expect_list(fields["arguments"], where)),
        hidden=_strings(fields["hidden"], where),
        sizes=_strings(fields["sizes"], where),
        grid=_strings(fields["grid"], where),
        flops=expect(fields["flops"], str, where),
        moved_bytes=expect(fields["moved_bytes"], str, where),
        tensor_core=expect(fields["tensor_core"], bool, where),
        variants={k: _variant(v, f"{where}, variant {k}") for k, v in expect_map(fields["variants"], where).items()},
    )


def _argument(data: Json, where: str) -> Argument:
    fields = expect_map(data, where, ("name", "type", "dtype", "written", "divisible_by", "least"))
    if fields["type"] not in ("pointer", "int32"):
        raise SpecError(f"{where}: argument type {fields['type']!r}, expected pointer or int32")
    return Argument(
        name=expect(fields["name"], str, where),
        type=fields["type"],
        dtype=expect(fields["dtype"], str, where),
        written=expect(fields["written"], bool, where),
        divisible_by=expect(fields["divisible_by"], int, where),
        least=expect(fields["least"], int, where),
    )


def _variant(data: Json, where: str) -> VariantSpec:
    fields = expect_map(data, where, ("dtype", "constants", "images"))
    constants = expect_map(fields["constants"], where)
    for name, value in constants.items():
        expect(value, float if isinstance(value, float) else int, f"{where}, {name}")
    images = {k: _image(v, f"{where}, image {k}") for k, v in expect_map(fields["images"], where).items()}
    return VariantSpec(expect(fields["dtype"], str, where), constants, images)


def _image(data: Json, where: str) -> Image:
    numbers = ("bytes", "num_warps", "num_stages", "shared_bytes")
    facts = ("registers", "stack_bytes", "tensor_core_instructions")
    fields = expect_map(data, where, ("file", "sha256", "entry", "tile", "parameters", *numbers, *facts))
    file = expect(fields["file"], str, where)
    if Path(file).name != file:
        raise SpecError(f"{where}: file {file!r} is no plain name")
    pairs = [[expect(n, int, where) for n in expect_list(pair, where)] for pair in expect_list(fields["parameters"], where)]
    if any(len(pair) != 2 for pair in pairs):
        raise SpecError(f"{where}: parameters must be pairs of offset and size")
    known = {name: expect(fields[name], int, f"{where}, {name}") for name in numbers}
    perhaps = {name: None if fields[name] is None else expect(fields[name], int, f"{where}, {name}") for name in facts}
    return Image(
        file=file,
        bytes=known["bytes"],
        sha256=expect(fields["sha256"], str, where),
        entry=expect(fields["entry"], str, where),
        tile={k: expect(v, int, where) for k, v in expect_map(fields["tile"], where).items()},
        num_warps=known["num_warps"],
        num_stages=known["num_stages"],
        shared_bytes=known["shared_bytes"],
        parameters=tuple((pair[0], pair[1]) for pair in pairs),
        **perhaps,
    )


def _program(data: Json, where: str) -> GpuProgram:
    fields = expect_map(data, where, ("version", "scratch", "launches"))
    scratch, launches = [], []
    for row in expect_list(fields["scratch"], where):
        texts = _texts(expect_map(row, where, ("name", "dtype", "elements")), where)
        scratch.append(ScratchSpec(**texts))
    for row in expect_list(fields["launches"], where):
        launch = expect_map(row, where, ("kernel", "arguments", "constants"))
        arguments, constants = (_texts(expect_map(launch[key], where), where) for key in ("arguments", "constants"))
        launches.append(LaunchSpec(expect(launch["kernel"], str, where), arguments, constants))
    return GpuProgram(expect(fields["version"], int, where), tuple(scratch), tuple(launches))


def _strings(data: Json, where: str) -> tuple[str, ...]:
    return tuple(expect(item, str, where) for item in expect_list(data, where))


def _texts(data: Mapping[str, Json], where: str) -> dict[str, str]:
    return {key: expect(value, str, f"{where}, {key}") for key, value in data.items()}
