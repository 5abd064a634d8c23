"""QkNormRope in standard ONNX ops: what a runtime without our library executes."""

# onnxscript reads this source; to a type checker it is pseudo-code.
# A returned name is the output's name.
# mypy: ignore-errors
# ruff: noqa: RET504

from onnxscript import opset23 as op
from onnxscript import script, values

__all__ = ["BODIES"]


@script(values.Opset("vitrify", 1), default_opset=op)
def QkNormRope(x, norm, cos, sin, num_heads: int, epsilon: float):  # noqa: N802
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    rows = op.RMSNormalization(op.Reshape(x, split), norm, epsilon=epsilon)
    spread = op.Concat(op.Shape(x, start=0, end=1), op.Constant(value_ints=[1, 1]), axis=0)
    joined = op.Reshape(rows, op.Constant(value_ints=[0, 0, -1]))
    y = op.RotaryEmbedding(joined, op.Expand(cos, spread), op.Expand(sin, spread), interleaved=1, num_heads=num_heads)
    return y


BODIES = {"QkNormRope": QkNormRope}
