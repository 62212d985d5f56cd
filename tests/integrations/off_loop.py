"""Which methods are called on an event loop: those that compute, read files or wait must not be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


class Watched:
    """Names of methods that were called, on a running event loop and elsewhere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *methods: tuple[Any, str]) -> None:
        self.on_loop: set[str] = set()
        self.elsewhere: set[str] = set()
        for owner, name in methods:
            self._watch(monkeypatch, owner, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                asyncio.get_running_loop()
                self.on_loop.add(name)
            except RuntimeError:
                self.elsewhere.add(name)
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)


async def drained(stream: Any) -> list[Any]:
    """All that an async stream gives."""
    return [piece async for piece in stream]
