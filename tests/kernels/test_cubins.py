"""Kernels compiled ahead of time, without a GPU: what every cubin must be, and what is refused."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
import triton

from tests.kernels.fake_driver import structure_of
from vitrify.engine import cubins
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import CompileError, SpecError
from vitrify.kernels.aot import cubin, programs, sass
from vitrify.kernels.aot.build import build
from vitrify.kernels.aot.compile import compile_variant
from vitrify.kernels.aot.description import Integer, Pointer, Variant
from vitrify.kernels.aot.targets import ARCH_NAMES, arch
from vitrify.kernels.aot.tiles import Tile, built, tile

VARIANTS = programs.variants()


def one_of_each_kernel() -> list[tuple[Variant, str]]:
    """One variant of each kernel, in bfloat16 where there is one, with the architectures dealt out in turn.

    The variant with the smallest constants compiles fastest; of FLUX's own attention it is FLUX's head width.
    """
    by_kernel: dict[str, Variant] = {}
    for variant in sorted(VARIANTS, key=lambda v: (v.dtype != DType.BFLOAT16, _head_dim(v))):
        by_kernel.setdefault(variant.kernel.name, variant)
    return [(variant, ARCH_NAMES[i % len(ARCH_NAMES)]) for i, variant in enumerate(by_kernel.values())]


def _head_dim(variant: Variant) -> int:
    head_dim = int(variant.constants.get("HEAD_DIM", 0))
    return -head_dim if variant.kernel.name == "attention_2_norm_rotary" else head_dim


def ids(value: object) -> str:
    return value.name if isinstance(value, Variant) else str(value)


def variant_of(kernel: str, dtype: DType = DType.BFLOAT16) -> Variant:
    return next(v for v in VARIANTS if v.kernel.name == kernel and v.dtype == dtype)


@pytest.mark.parametrize(("variant", "name"), one_of_each_kernel(), ids=ids)
def test_a_cubin_is_what_its_description_says(variant: Variant, name: str, tmp_path: Path) -> None:
    """compile_variant itself refuses spills, wrong parameters, too much shared memory, a missing matrix instruction."""
    compiled = compile_variant(variant, arch(name), tile(variant, name))
    sizes = [8 if isinstance(p, Pointer) else 4 for p in variant.kernel.parameters]
    assert [size for _offset, size in compiled.parameters] == [*sizes, 8, 8]
    assert (compiled.stack_bytes, compiled.registers <= 255) == (0, True)
    # The tables were read by our own reader: NVIDIA's tool must see the same.
    assert by_tool(compiled.cubin, tmp_path) == (compiled.registers, compiled.stack_bytes, list(compiled.parameters))
    assert b".py" not in compiled.cubin
    assert b".py" not in compiled.ptx


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ARCH_NAMES)
def test_every_image_of_an_architecture(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All variants, compiled twice in processes of their own: the same bytes, and each image what its description says.

    What compile_variant refuses of any is an error here; the files are read again all the same.
    """
    seconds: list[float] = []
    for folder in ("one", "other"):
        build(tmp_path / folder, VARIANTS, [name], report=lambda *said: seconds.append(said[-1]))
    one, other = ({f.name: f.read_bytes() for f in (tmp_path / folder).rglob("*.*")} for folder in ("one", "other"))
    assert one == other
    manifest = cubins.read_manifest(tmp_path / "one", verify=True)
    assert set(manifest.programs) == set(programs.programs())
    held = {v.name: manifest.kernels[v.kernel.name].variants[v.name].images.get(name) for v in VARIANTS}
    assert {key for key, image in held.items() if image is None} == {v.name for v in VARIANTS if not built(v, name)}
    for variant in VARIANTS:
        image = held[variant.name]
        if image is None:
            continue
        facts = cubin.read(one[image.file])
        structure = structure_of(variant)
        fields = [(getattr(structure, field).offset, getattr(structure, field).size) for field, _kind in structure._fields_]
        assert [(p.offset, p.size) for p in facts.parameters] == fields == list(image.parameters), image.file
        assert (facts.stack_bytes, image.shared_bytes <= arch(name).shared_bytes) == (0, True), image.file
        if variant.kernel.tensor_core:
            code = sass.opcodes(one[image.file])
            assert code["LDL"] + code["STL"] == 0, image.file
            assert code[arch(name).tensor_core] == image.tensor_core_instructions, image.file
            assert image.tensor_core_instructions or variant.dtype == DType.FLOAT32, image.file
    with capsys.disabled():
        print(f"\n{name}: {len(seconds)} compilations, {sum(seconds):.0f} s of one core", end=" ")


def by_tool(data: bytes, folder: Path) -> tuple[int, int, list[tuple[int, int]]]:
    """Registers, stack and parameters as cuobjdump prints them."""
    (folder / "kernel.cubin").write_bytes(data)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-elf", folder / "kernel.cubin"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Ordinal : (0x[0-9a-f]+)\s+Offset  : (0x[0-9a-f]+)\s+Size    : (0x[0-9a-f]+)", text)
    rows = sorted((int(ordinal, 16), int(offset, 16), int(size, 16)) for ordinal, offset, size in found)
    registers, stack = re.search(r"register count: (\d+)", text), re.search(r"min stack size: (0x[0-9a-f]+)", text)
    assert registers is not None
    assert stack is not None
    return int(registers[1]), int(stack[1], 16), [(offset, size) for _ordinal, offset, size in rows]


@pytest.mark.parametrize("name", ARCH_NAMES)
def test_every_variant_has_one_row_of_tiles(name: str) -> None:
    for variant in VARIANTS:
        if not built(variant, name):
            assert variant.constants["HEAD_DIM"] == 512, variant.name
            continue
        found = tile(variant, name)
        assert all(size & (size - 1) == 0 for size in found.sizes.values()), variant.name


def test_variants_have_names_of_their_own() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def test_parameters_come_as_inputs_numbers_outputs() -> None:
    """The order that every host can pass, TensorRT's plugins included."""
    for kernel in programs.kernels().values():
        order = [1 if isinstance(p, Integer) else 2 if p.written else 0 for p in kernel.parameters]
        assert order == sorted(order), kernel.name


# ---- what is refused


def test_a_description_that_lies_about_its_parameters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = variant_of("taylor_predict_1")
    honest = cubin.read

    def lying(data: bytes) -> cubin.CubinFacts:
        facts = honest(data)
        return dataclasses.replace(facts, parameters=facts.parameters[:-1])

    monkeypatch.setattr(cubin, "read", lying)
    with pytest.raises(CompileError, match=r"taylor_predict_1-bfloat16 for sm_80: the cubin's parameters .* the description's"):
        compile_variant(variant, arch("sm_80"), tile(variant, "sm_80"))


def test_a_parameter_that_the_function_lacks_is_named() -> None:
    variant = variant_of("taylor_predict_1")
    kernel = dataclasses.replace(variant.kernel, parameters=(*variant.kernel.parameters, Integer("nonsense")))
    with pytest.raises(CompileError, match=r"has no parameters \['nonsense'\]"):
        compile_variant(dataclasses.replace(variant, kernel=kernel), arch("sm_80"), tile(variant, "sm_80"))


def test_parameters_in_another_order_are_refused() -> None:
    """Their sizes would not tell."""
    variant = variant_of("taylor_predict_1")
    first, second, *others = variant.kernel.parameters
    kernel = dataclasses.replace(variant.kernel, parameters=(second, first, *others))
    with pytest.raises(CompileError, match=r"takes \['f0', 'f1', .*, the description says \['f1', 'f0', "):
        compile_variant(dataclasses.replace(variant, kernel=kernel), arch("sm_80"), tile(variant, "sm_80"))


def test_spills_are_refused() -> None:
    """128 elements of each of five arrays per thread do not fit 255 registers."""
    variant = variant_of("taylor_update_2", DType.FLOAT32)
    with pytest.raises(CompileError, match=r"spills: \d+ bytes of stack, [1-9]\d* local loads and stores"):
        compile_variant(variant, arch("sm_80"), Tile({"BLOCK": 16384}, num_warps=1, num_stages=1))


def test_a_kernel_without_its_matrix_instruction_is_refused() -> None:
    variant = variant_of("taylor_predict_1")
    kernel = dataclasses.replace(variant.kernel, tensor_core=True)
    with pytest.raises(CompileError, match="no HGMMA instruction in it; it holds"):
        compile_variant(dataclasses.replace(variant, kernel=kernel), arch("sm_90"), tile(variant, "sm_90"))


def test_what_triton_refuses_is_named() -> None:
    variant = variant_of("taylor_predict_1")
    with pytest.raises(CompileError, match="taylor_predict_1-bfloat16 for sm_80: Triton failed"):
        compile_variant(variant, arch("sm_80"), Tile({"BLOCK": 1000}, num_warps=4, num_stages=1))


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(SpecError, match="architecture 'sm_75' is unknown; known: sm_80, sm_86"):
        arch("sm_75")


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01" + bytes(40), b"PTX" * 100])
def test_what_is_no_cubin_is_refused(data: bytes) -> None:
    with pytest.raises(CompileError, match="damaged, or no cubin"):
        cubin.read(data)
    with pytest.raises(CompileError, match="printed no instruction"):
        sass.opcodes(data)
