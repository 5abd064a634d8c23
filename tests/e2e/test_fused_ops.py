"""The shipped graphs with our ops in them: one result wherever they run, and proof of whose code it came from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.compare import assert_close, relative_error
from tests.kernels.op_models import mark, session
from vitrify.engine import native_library, ort
from vitrify.engine.errors import BackendError
from vitrify.runtime import load

if TYPE_CHECKING:
    from tests.e2e.conftest import Case

TOLERANCE = 1e-5
"""Of one graph; each op's own is 1e-6 to 3e-6."""
SIZES = {"batch": 2, "image_tokens": 15, "text_tokens": 9, "prompts": 2, "max_sequence_length": 9, "latent_h": 6, "latent_w": 4}
GRAPHS = (
    "text_encoder/model",
    "text_encoder_2/model",
    "transformer/condition",
    "transformer/embed",
    "transformer/first",
    "transformer/rest",
    "transformer/finish",
)


def feed(opened: Any) -> dict[str, np.ndarray]:
    """Inputs of these sizes; a sum of dimensions is the sum of theirs."""
    rng = np.random.default_rng(5)
    made = {}
    for given in opened.get_inputs():
        shape = [n if isinstance(n, int) else sum(SIZES.get(t, 6) for t in n.split(" + ")) for n in given.shape]
        if given.type == "tensor(int64)":
            made[given.name] = rng.integers(1, 200, shape)
        else:
            made[given.name] = rng.standard_normal(shape).astype(np.float32)
    return made


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_gives_one_result_wherever_it_runs(dev_like: Case, name: str) -> None:
    """ONNX Runtime without our library, with it, and ONNX's reference evaluator."""
    file = dev_like.artifact / f"{name}.onnx"
    plain = session(file, library=False)
    inputs = feed(plain)
    expected = plain.run(None, inputs)
    ours = session(file, library=True).run(None, inputs)
    with np.errstate(divide="ignore", invalid="ignore"):  # T5 takes the logarithm of distances, zero among them, and drops it.
        evaluated = ReferenceEvaluator(onnx.load(file)).run(None, inputs)
    for value, got, told, wanted in zip(plain.get_outputs(), ours, evaluated, expected, strict=True):
        assert np.std(wanted) > 0
        assert_close(got, wanted, TOLERANCE, f"{name} {value.name}, our library")
        assert_close(told, wanted, TOLERANCE, f"{name} {value.name}, reference evaluator")


def test_the_vae_gives_one_result_with_our_library_and_without(dev_like: Case) -> None:
    """The reference evaluator cannot run the attention's GroupNormalization; its ops' bodies it runs in test_conv.py."""
    file = dev_like.artifact / "vae/model.onnx"
    plain = session(file, library=False)
    inputs = feed(plain)
    (expected,), (got,) = plain.run(None, inputs), session(file, library=True).run(None, inputs)
    assert np.std(expected) > 0
    assert_close(got, expected, TOLERANCE, "vae")


def test_every_op_of_the_graphs_is_the_librarys(dev_like: Case, tmp_path: Path) -> None:
    """Bodies that add 1000 run without the library and not with it."""
    shutil.copytree(dev_like.artifact / "transformer", tmp_path, dirs_exist_ok=True)
    for segment in ("embed", "first", "rest", "finish"):
        file = tmp_path / f"{segment}.onnx"
        right = session(file, library=True)
        inputs = feed(right)
        expected = right.run(None, inputs)
        model = onnx.load(file, load_external_data=False)
        assert model.functions
        for body in model.functions:
            mark(body)
        file.write_bytes(model.SerializeToString())
        for got, wanted in zip(session(file, library=True).run(None, inputs), expected, strict=True):
            assert np.array_equal(got, wanted), segment
        by_bodies = session(file, library=False).run(None, inputs)
        assert max(relative_error(*pair) for pair in zip(by_bodies, expected, strict=True)) > 1, segment


def latents(case: Case, kernels: Any, replace: Callable[[int], Any]) -> list[np.ndarray]:
    """After each of the sample's 20 steps. replace: step → the latents that the next one starts from."""
    seen: list[np.ndarray] = []

    def record(_: Any, step: int, __: float, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].copy())
        return {"latents": replace(step)} if replace(step) is not None else {}

    with load(case.artifact, kernels=kernels) as pipe:
        assert bool(pipe.session.native_ops) == (kernels == "native")
        pipe("red apple", seed=3, num_inference_steps=20, output_type="latent", callback_on_step_end=record)
    return seen


def test_latents_with_and_without_our_kernels_step_by_step(sample: Case) -> None:
    """Each step from the same latents: 1e-4 is asked for, and what is there is far below."""
    portable = latents(sample, "portable", lambda _: None)
    native = latents(sample, "native", lambda step: portable[step])
    assert len(portable) == len(native) == 20
    for step, (got, wanted) in enumerate(zip(native, portable, strict=True)):
        assert_close(got, wanted, 1e-4, f"latents after step {step}")
    assert any(not np.array_equal(*pair) for pair in zip(native, portable, strict=True)), "one code ran twice"


def test_a_library_without_the_artifacts_ops_is_said_or_refused(
    dev_like: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An older library: the bodies draw the same picture, and the log says that they do."""
    call = {"seed": 1, "num_inference_steps": 2, "height": 32, "width": 32, "max_sequence_length": 12, "output_type": "latent"}
    expected = dev_like.pipe("cat", **call).images
    offered = {name: 0 if name == "Linear" else version for name, version in native_library.ops().items()}
    monkeypatch.setattr(ort.native_library, "ops", lambda: offered)
    ort._say_lacking.cache_clear()
    with load(dev_like.artifact) as pipe, load(dev_like.artifact) as other:
        assert pipe.session.native_ops == other.session.native_ops == {}
        assert_close(pipe("cat", **call).images, expected, 1e-4, "by the bodies")
    said = [r.getMessage() for r in caplog.records if "portable bodies" in r.getMessage()]
    assert len(said) == 1
    assert "the artifact needs the ops Linear 1 and the op library has Linear 0" in said[0]
    with pytest.raises(BackendError, match="kernels='native' was asked for, but the artifact needs the ops Linear 1"):
        load(dev_like.artifact, kernels="native")
