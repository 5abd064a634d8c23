"""Contracts as data: what the registry says, and that the native library says the same."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import onnx
import pytest

from tests.kernels.op_models import one_op_model
from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.engine.specs import TensorSpec
from vitrify.kernels import registry

NAMES = [contract.name for contract in registry.contracts()]


def test_the_library_holds_these_ops_in_these_versions() -> None:
    assert native_library.ops() == {contract.name: contract.version for contract in registry.contracts()}


@pytest.mark.parametrize("name", NAMES)
def test_the_library_was_compiled_with_the_contracts_signature(name: str) -> None:
    assert native_library.signatures()[name] == registry.contract(name).signature


@pytest.mark.parametrize("name", NAMES)
def test_the_body_has_the_contracts_names(name: str) -> None:
    contract, body = registry.contract(name), registry.function(name, 23)
    assert (body.domain, body.name) == ("vitrify", name)
    assert list(body.input) == [tensor.name for tensor in contract.inputs]
    assert list(body.output) == [tensor.name for tensor in contract.outputs]
    assert list(body.attribute) == [a.name for a in contract.attributes if a.default is None]
    defaults = {a.name: a.kind(a.default) for a in contract.attributes if a.default is not None}
    assert {a.name: onnx.helper.get_attribute_value(a) for a in body.attribute_proto} == pytest.approx(defaults)
    assert {node.domain for node in body.node} == {""}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_the_body_passes_the_checker(name: str) -> None:
    onnx.checker.check_model(one_op_model(name), full_check=True)


def test_the_bodies_are_the_same_in_every_process() -> None:
    program = (
        "import hashlib; from vitrify.kernels import registry\n"
        "for op in registry.contracts():\n"
        "    print(op.name, hashlib.sha256(registry.function(op.name, 23).SerializeToString(deterministic=True)).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert len(runs.pop().splitlines()) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_body_names_no_file(name: str) -> None:
    assert b".py" not in registry.function(name, 23).SerializeToString()


def test_an_old_opset_is_refused() -> None:
    with pytest.raises(SpecError, match="needs opset 18 or newer, got 17"):
        registry.function("ResidualDiff", 17)


@pytest.mark.parametrize("ask", [registry.contract, registry.reference, lambda name: registry.function(name, 23)])
def test_an_unknown_op_lists_the_known(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(SpecError, match=r"op 'Rope' is unknown; known: .*ResidualDiff"):
        ask("Rope")


def test_contracts_load_no_compiler() -> None:
    program = "import sys, vitrify.kernels.registry; print(*{'torch', 'onnx', 'onnxscript', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_contract_cannot_invent_a_dimension() -> None:
    contract = registry.contract("ResidualDiff")
    with pytest.raises(SpecError, match=r"output 'y' has dims \['heads'\], which no input has"):
        dataclasses.replace(contract, outputs=(TensorSpec("y", DType.FLOAT32, ("batch", "heads")),))


def test_a_sum_of_dimensions_has_terms_that_stand_alone() -> None:
    contract = registry.contract("Linear2GatedResidual")
    assert "weight: float32|bfloat16|float16[out, in_0 + in_1]" in contract.signature
    without = tuple(tensor for tensor in contract.inputs if tensor.name != "x_1")
    with pytest.raises(SpecError, match=r"input 'weight' has dims \['in_1'\], which no input has"):
        dataclasses.replace(contract, inputs=without)


def test_further_dtypes_are_those_of_an_input() -> None:
    contract = registry.contract("Linear")
    for dtypes in ({"y": (DType.FLOAT32,)}, {"weight": (DType.BFLOAT16,)}):
        with pytest.raises(SpecError, match="with its own dtype first"):
            dataclasses.replace(contract, dtypes=dtypes)


def test_a_contract_names_sizes_to_test_for_every_dimension() -> None:
    contract = registry.contract("ResidualDiff")
    with pytest.raises(SpecError, match="awkward names dims"):
        dataclasses.replace(contract, awkward={"batch": (1,)})
