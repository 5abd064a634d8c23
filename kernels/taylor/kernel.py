"""The Taylor family in Triton: element by element, in float32. `y` has the dtype of the activations, the factors are float32."""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

__all__ = ["taylor_predict", "taylor_update"]


@triton.jit
def taylor_update(y, f0, f1, inverse, elements, g0, g1, g2, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    """g0 = y, g1 = (y − f0) · inverse[0] and, with ORDER 2, g2 = (g1 − f1) · inverse[1]. All are [elements]. Grid: (blocks,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    new_0 = tl.load(y + at, inside).to(tl.float32)
    new_1 = (new_0 - tl.load(f0 + at, inside)) * tl.load(inverse)
    tl.store(g0 + at, new_0, inside)
    tl.store(g1 + at, new_1, inside)
    if ORDER == 2:
        new_2 = (new_1 - tl.load(f1 + at, inside)) * tl.load(inverse + 1)
        tl.store(g2 + at, new_2, inside)


@triton.jit
def taylor_predict(f0, f1, f2, ahead, elements, y, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    """y = f0 + ahead[0] · f1 or, with ORDER 2, f0 + ahead[0] · (f1 + ahead[1] · f2). All are [elements]. Grid: (blocks,)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    slope = tl.load(f1 + at, inside)
    if ORDER == 2:
        slope += tl.load(ahead + 1) * tl.load(f2 + at, inside)
    tl.store(y + at, (tl.load(f0 + at, inside) + tl.load(ahead) * slope).to(y.dtype.element_ty), inside)
