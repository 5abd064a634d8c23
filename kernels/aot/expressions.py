"""The small arithmetic in which a manifest states grids, sizes and arguments: `cdiv(tokens, BLOCK_M) * heads`.

Whole numbers, names, parentheses, `+ - * / %` and cdiv(a, b), min(a, b), max(a, b), power(a). `/` must divide exactly;
`cdiv` rounds up; `power` is the smallest power of two that is not below a. `kernels/native/expression.h` reads the same
language in C++: an expression is checked here once, before it is written down.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from vitrify.engine.errors import SpecError

__all__ = ["evaluate", "names"]


def _divide(a: int, b: int) -> int:
    if b <= 0 or a % b:
        raise ValueError(f"{a} / {b} is no whole number")
    return a // b


def _remainder(a: int, b: int) -> int:
    if a < 0 or b <= 0:
        raise ValueError(f"{a} % {b}: the sides must be positive")
    return a % b


def _cdiv(a: int, b: int) -> int:
    if a < 0 or b <= 0:
        raise ValueError(f"cdiv({a}, {b}): the sides must be positive")
    return -(-a // b)


def _power(a: int) -> int:
    if a < 1:
        raise ValueError(f"power({a}): the number must be positive")
    return 1 << (a - 1).bit_length()


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Mod: _remainder,
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., int]]] = {
    "cdiv": (2, _cdiv),
    "min": (2, min),
    "max": (2, max),
    "power": (1, _power),
}


def evaluate(expression: str, values: Mapping[str, int]) -> int:
    """The value of `expression`. Raises SpecError for a form outside the language, an unknown name, an inexact division."""
    try:
        return _value(_parse(expression), values)
    except (KeyError, ValueError) as error:
        what = f"name {error} is unknown; known: {', '.join(sorted(values))}" if isinstance(error, KeyError) else str(error)
        raise SpecError(f"expression {expression!r}: {what}") from None


def names(expression: str) -> frozenset[str]:
    """The names that `expression` needs values for. Raises SpecError for a form outside the language."""
    tree = _parse(expression)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called)


def _parse(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise SpecError(f"expression {expression!r}: {error.msg}") from None


def _value(node: ast.expr, values: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            count, function = _FUNCTIONS[name]
            if len(arguments) == count:
                return function(*(_value(argument, values) for argument in arguments))
            raise ValueError(f"{name} takes {count} arguments, got {len(arguments)}")
    raise ValueError(f"{ast.unparse(node)!r} is outside the language (numbers, names, + - * / %, {', '.join(_FUNCTIONS)})")
