"""`bench ops`: its cases fit the contracts, its numbers come after a check, its document reads back."""

from __future__ import annotations

import json

import pytest

from vitrify.bench import ops
from vitrify.bench.op_cases import OP_CASES, OpCase, op_case
from vitrify.bench.ops import OpResult, measure_ops
from vitrify.bench.report import ops_table
from vitrify.engine import native_library
from vitrify.engine.errors import ParityError, SpecError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.kernels import registry


@pytest.mark.parametrize("case", OP_CASES, ids=lambda case: case.name)
def test_a_case_gives_every_dimension_a_size(case: OpCase) -> None:
    contract = registry.contract(case.op)
    assert set(case.dims) == set(contract.awkward)
    assert set(case.attributes) == {a.name for a in contract.attributes if a.default is None}
    assert set(case.constants) <= {tensor.name for tensor in contract.inputs}


def test_every_op_of_the_linear_family_with_an_epilogue_is_measured() -> None:
    measured = {case.op for case in OP_CASES}
    assert {"Linear", "LinearGelu", "LinearGatedResidual", "Linear2GatedResidual"} <= measured


def test_names_are_unique_and_an_unknown_one_is_refused() -> None:
    assert len({case.name for case in OP_CASES}) == len(OP_CASES)
    with pytest.raises(SpecError, match="op case 'x' is unknown; known: flux"):
        op_case("x")


def test_an_op_is_measured_in_a_process_of_its_own() -> None:
    level = native_library.cpu_levels()[-1]
    (found,) = measure_ops(["sample single out"], rounds=1, threads=1, level=level)
    assert (found.op, found.level) == ("Linear2GatedResidual", level)
    assert found.flops == 2 * 160 * 960 * 192
    assert 0 < found.error < 1e-5  # Not the same code twice.
    assert found.peak_flops is None or found.peak_flops > 1e9
    assert found.ratio.median == pytest.approx(found.ours.median / found.theirs.median, rel=0.2)
    assert OpResult.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert ops_table([found]).row_count == 1


def test_a_kernel_that_disagrees_gets_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    OrtCpuBackend(kernels="portable")  # The process's pool.
    monkeypatch.setattr(ops, "_error", lambda *_: float("nan"))
    with pytest.raises(ParityError, match="sample mlp in: LinearGelu and its body differ by nan"):
        ops._measure("sample mlp in", rounds=1, peak=None)


@pytest.mark.parametrize(
    ("op", "unit", "products"),
    [
        ("LinearGelu", "amx_bf16", 3),
        ("FusedAttention2NormRotary", "amx_bf16", 6),
        ("LinearGeluBf16", "amx_bf16", 1),
        ("LinearInt8", "amx_int8", 1),
        ("Linear", "avx512f", 1),
    ],
)
def test_a_float32_product_is_several_of_the_tile_unit(op: str, unit: str, products: int) -> None:
    assert ops._products(op, unit) == products
