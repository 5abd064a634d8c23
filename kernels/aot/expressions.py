"""The small arithmetic in which a manifest states grids, sizes and arguments: `cdiv(tokens, BLOCK_M) * heads`.

Whole numbers, names, parentheses, `+ - * / %` and cdiv(a, b), min(a, b), max(a, b), power(a). `/` must divide exactly;
`cdiv` rounds up; `power` is the smallest power of two that is not below a. `kernels/native/expression.h` reads the same
language in C++: an expression is checked here once, before it is written down.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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


_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "%": _remainder,
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., int]]] = {
    "cdiv": (2, _cdiv),
    "min": (2, min),
    "max": (2, max),
    "power": (1, _power),
}

_TOKEN = re.compile(r" *(?:([0-9]+)(?![0-9A-Za-z_.])|([A-Za-z_][0-9A-Za-z_]*)|([-+*/%(),]))")


@dataclass(frozen=True)
class _Apply:
    """An operator or a function of parts, each a number, a name or one of these."""

    function: Callable[..., int]
    parts: tuple[int | str | _Apply, ...]


_Tree = int | str | _Apply


def evaluate(expression: str, values: Mapping[str, int]) -> int:
    """The value of `expression`. Raises SpecError for a form outside the language, an unknown name, an inexact division."""
    try:
        return _value(_Parser(expression).whole(), values)
    except (KeyError, ValueError) as error:
        what = f"name {error} is unknown; known: {', '.join(sorted(values))}" if isinstance(error, KeyError) else str(error)
        raise SpecError(f"expression {expression!r}: {what}") from None


def names(expression: str) -> frozenset[str]:
    """The names that `expression` needs values for. Raises SpecError for a form outside the language."""
    try:
        return frozenset(_names(_Parser(expression).whole()))
    except ValueError as error:
        raise SpecError(f"expression {expression!r}: {error}") from None


def _value(tree: _Tree, values: Mapping[str, int]) -> int:
    if isinstance(tree, _Apply):
        return tree.function(*(_value(part, values) for part in tree.parts))
    return values[tree] if isinstance(tree, str) else tree


def _names(tree: _Tree) -> set[str]:
    if isinstance(tree, _Apply):
        return set().union(*(_names(part) for part in tree.parts))
    return {tree} if isinstance(tree, str) else set()


class _Parser:
    """Recursive descent: sum = product {+|- product}, product = factor {*|/|% factor}, factor = number | name | call | (sum)."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while text[at:].strip(" "):
            token = _TOKEN.match(text, at)
            if token is None:
                raise ValueError(f"{text[at:].strip()!r} is outside the language")
            self._tokens.append(token[0].strip(" "))
            at = token.end()

    def whole(self) -> _Tree:
        tree = self._sum()
        if self._tokens:
            raise ValueError(f"{''.join(self._tokens)!r} is outside the language")
        return tree

    def _take(self, *wanted: str) -> str:
        """The next token if it is one of these, else nothing."""
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in wanted else ""

    def _sum(self) -> _Tree:
        tree = self._product()
        while sign := self._take("+", "-"):
            tree = _Apply(_OPERATORS[sign], (tree, self._product()))
        return tree

    def _product(self) -> _Tree:
        tree = self._factor()
        while sign := self._take("*", "/", "%"):
            tree = _Apply(_OPERATORS[sign], (tree, self._factor()))
        return tree

    def _factor(self) -> _Tree:
        if self._take("("):
            tree = self._sum()
            self._close()
            return tree
        word = self._tokens.pop(0) if self._tokens else ""
        if word.isdigit():
            return int(word)
        if not word.isidentifier():
            raise ValueError("a number or a name is missing" + (f" before {word!r}" if word else ""))
        return self._call(word) if self._take("(") else word

    def _call(self, name: str) -> _Tree:
        parts = [self._sum()]
        while self._take(","):
            parts.append(self._sum())
        self._close()
        if name not in _FUNCTIONS:
            raise ValueError(f"function {name!r} is unknown; known: {', '.join(_FUNCTIONS)}")
        count, function = _FUNCTIONS[name]
        if len(parts) != count:
            raise ValueError(f"{name} takes {count} arguments, got {len(parts)}")
        return _Apply(function, tuple(parts))

    def _close(self) -> None:
        if not self._take(")"):
            raise ValueError("a parenthesis is not closed")
