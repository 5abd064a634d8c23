"""Rules of the house that no linter has."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "kernels", "export", "runtime", "bench")
MODULES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "manager"}
LONGEST = 600


def _id(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", MODULES, ids=_id)
def test_a_module_says_what_it_offers(file: Path) -> None:
    """One `__all__`, without repetition, and every name in it is defined there. A package file without code needs none."""
    tree = ast.parse(file.read_text())
    if all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body):
        return
    lists = [node.value for node in tree.body if _assigns(node, "__all__") and node.value is not None]
    assert len(lists) == 1
    offered = ast.literal_eval(lists[0])
    assert len(set(offered)) == len(offered)
    if not any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        assert set(offered) <= _defined(tree), sorted(set(offered) - _defined(tree))


def _assigns(node: ast.stmt, name: str) -> TypeGuard[ast.Assign | ast.AnnAssign]:
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _defined(tree: ast.Module) -> set[str]:
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    return defined


@pytest.mark.parametrize("file", MODULES, ids=_id)
def test_a_module_is_short_and_named_for_its_idea(file: Path) -> None:
    assert file.stem not in FORBIDDEN_NAMES
    assert len(file.read_text().splitlines()) <= LONGEST


def test_test_files_have_names_of_their_own() -> None:
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_kernels_is_light_and_versionless() -> None:
    """transformers imports any top-level `kernels` that it finds and reads its version."""
    assert "__version__" not in (ROOT / "kernels" / "__init__.py").read_text()
