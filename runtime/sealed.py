"""What a family reads from a manifest whose hash is right, though an older or another writer may have left it out.

Every failure is an ArtifactError: the artifact must be exported again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vitrify.engine.errors import ArtifactError
from vitrify.engine.specs import ComponentSpec

__all__ = ["check_named", "config_number", "config_numbers"]


def config_number(spec: ComponentSpec, key: str) -> int:
    """The whole number of at least 1 that the component's config.json holds under `key`; else ArtifactError."""
    value = _field(spec, key)
    if not _is_count(value):
        raise _unfit(spec, key, value, "a whole number of at least 1")
    return int(value)


def config_numbers(spec: ComponentSpec, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The list of whole numbers of at least 1, not empty, under `key`; else ArtifactError.

    default: what the source's class takes where its config.json leaves the field out.
    """
    value = default if default is not None and key not in spec.config else _field(spec, key)
    if not isinstance(value, list | tuple) or not value or not all(_is_count(item) for item in value):
        raise _unfit(spec, key, value, "a list of whole numbers of at least 1")
    return tuple(int(item) for item in value)


def check_named(kind: str, found: Collection[str], wanted: Collection[str]) -> None:
    """Raises ArtifactError unless all the `wanted` names are among the `found` ones. kind: what they are names of, plural."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ArtifactError(
            f"the manifest's {kind} lack {', '.join(missing)}; it has: {', '.join(found) or 'none'}; export the artifact again"
        )


def _field(spec: ComponentSpec, key: str) -> Any:
    if key not in spec.config:
        raise ArtifactError(f"{spec.name}: its config has no {key!r}; export the artifact again")
    return spec.config[key]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _unfit(spec: ComponentSpec, key: str, value: Any, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{spec.name}: {key} is {str(value)[:60]!r} in its config, expected {expected}; export the artifact again"
    )
