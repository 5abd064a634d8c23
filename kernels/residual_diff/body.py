"""ResidualDiff in standard ONNX ops: what a runtime without our library executes."""

# onnxscript reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

from onnxscript import opset18 as op
from onnxscript import script, values

__all__ = ["BODIES"]


@script(values.Opset("vitrify", 1), default_opset=op)
def ResidualDiff(h1, h0, r_ref):  # noqa: N802
    r = op.Sub(h1, h0)
    width = op.Constant(value_ints=[2])
    tokens = op.Constant(value_ints=[1])
    moved = op.ReduceSum(op.ReduceL1(op.Sub(r, r_ref), width, keepdims=0), tokens, keepdims=1)
    size = op.ReduceSum(op.ReduceL1(r_ref, width, keepdims=0), tokens, keepdims=1)
    sums = op.Concat(moved, size, axis=1)
    return r, sums


BODIES = {"ResidualDiff": ResidualDiff}
