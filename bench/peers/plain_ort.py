"""ONNX Runtime as a user of PyTorch comes by it: the whole transformer through torch.onnx.export, all inputs in every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitrify.bench.cases import Case
from vitrify.bench.inputs import CaseInputs, draw_inputs
from vitrify.bench.peers.peer import STEP, Peer
from vitrify.engine.errors import BackendError
from vitrify.engine.session import Array

__all__ = ["PLAIN", "PlainOrt", "export_plain"]

PLAIN = "plain"
_MODEL = "model.onnx"


def export_plain(case: Case, source: Path, folder: Path) -> None:
    """Write `folder`/model.onnx: diffusers' transformer in float32, exporter and opset at their defaults, sizes fixed.

    Nothing of it is ours: the rotary embedding is computed inside, in float64, as diffusers does it.
    """
    import torch

    from vitrify.bench.peers.eager import load_transformer, tensors

    model = load_transformer(source, torch.float32)
    arguments = tensors(draw_inputs(case, seed=0), 0, torch.float32)
    with torch.no_grad():
        program = torch.onnx.export(model, (), kwargs={**arguments, "return_dict": False}, dynamo=True)
    if program is None:
        raise BackendError("torch.onnx.export gave no program")
    folder.mkdir()
    program.save(folder / _MODEL, external_data=True)


class PlainOrt(Peer):
    """Default session options but for the thread count; `session.run` on numpy arrays."""

    def open(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self._session: Any = onnxruntime.InferenceSession(self.build(PLAIN) / _MODEL, options, providers=["CPUExecutionProvider"])
        self._names = {node.name for node in self._session.get_inputs()}

    def give(self, inputs: CaseInputs) -> None:
        self._feeds = inputs.feeds()
        if self._names != set(self._feeds[0]):
            raise BackendError(f"the unsplit export takes {sorted(self._names)}, expected {sorted(self._feeds[0])}")

    def predict(self, index: int) -> Array:
        result: Array = self._step(index)[0]
        return result

    def calls(self) -> Mapping[str, Callable[[int], object]]:
        return {STEP: self._step}

    def _step(self, index: int) -> Any:
        return self._session.run(None, self._feeds[index % len(self._feeds)])
