"""Metadata filters: which passages may be found, or read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def values_of(wanted: Any) -> tuple[Any, ...]:
    """What an entry of a filter allows: one value, or any of a list, tuple or set."""
    return tuple(wanted) if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)


def fitting(where: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    """Whether metadata fit every entry of a filter; a key that is missing counts as None."""
    tests = [(key, values_of(wanted)) for key, wanted in where.items()]
    return lambda meta: all(meta.get(key) in wanted for key, wanted in tests)
