"""GatedResidual in standard ONNX ops: what a runtime without our library executes."""

# onnxscript reads this source; to a type checker it is pseudo-code.
# A returned name is the output's name.
# mypy: ignore-errors
# ruff: noqa: RET504

from onnxscript import opset23 as op
from onnxscript import script, values

__all__ = ["BODIES"]


@script(values.Opset("vitrify", 1), default_opset=op)
def GatedResidual(x, y, modulation, gate_at: int):  # noqa: N802
    one = op.Constant(value_ints=[1])
    start = op.Reshape(op.Constant(value_int=gate_at), one)
    gate = op.Slice(modulation, start, op.Add(start, op.Shape(x, start=2, end=3)), one)
    out = op.Add(x, op.Mul(op.CastLike(op.Unsqueeze(gate, one), x), y))
    return out


BODIES = {"GatedResidual": GatedResidual}
