"""Names to classes, imported only when asked for: `Registry({"sac": "sac_rag.compress.methods.sac:Sac"})`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from sac_rag.errors import ConfigError, did_you_mean


class Registry(Mapping[str, str]):
    """A read-only table of `name -> "module:attribute"` with lazy loading and "did you mean"."""

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind, self._entries = kind, dict(entries)

    def __getitem__(self, name: str) -> str:
        if name not in self._entries:
            hint = did_you_mean(name, self._entries)
            raise ConfigError(f"unknown {self.kind} {name!r}.{hint} Known: {', '.join(sorted(self._entries))}.")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, name: str) -> Any:
        """The object behind `name`; raises ConfigError for an unknown name."""
        module, _, attribute = self[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
