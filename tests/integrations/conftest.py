"""A library of three short documents on tiny random models, shared by the tests of all integrations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.records import Document

TEXTS = {
    "tides.md": "The tides follow the Moon. Spring tides come when the Sun and the Moon are lined up.",
    "canal.md": "The Erie Canal spans 363 miles. It joins the Hudson to the Great Lakes.",
    "bridge.md": "Emily Roebling crossed the Brooklyn Bridge first. She carried a rooster.",
}


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that any embedder reads as passages from here on."""
    from sac_rag.models.embedder import Embedder

    texts: list[str] = []
    encode = Embedder.encode

    def listening(self: Embedder, given: Any, *, kind: str = "passage", **settings: Any) -> Any:
        texts.extend(given if kind == "passage" else [])
        return encode(self, given, kind=kind, **settings)

    monkeypatch.setattr(Embedder, "encode", listening)
    return texts


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path) -> Iterator[SacRag]:
    with SacRag.open(tmp_path / "three.lib", config=tiny_config, write=True, create=True) as opened:
        headings = ((0, "Facts"),)
        opened.put([Document(uri, text, headings=headings, meta={"kind": uri[0]}) for uri, text in TEXTS.items()])
        yield opened
