"""A library of three documents on tiny random models, by methods whose memories differ in what heads keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sac_rag import AskConfig, SacRag
from sac_rag.answer.reader import Sampling
from sac_rag.records import Document, Hit

WHERE = {"device": "cpu", "dtype": "float32"}
TEXTS = {
    "tides.md": "The tides follow the Moon. Spring tides come when the Sun and the Moon are lined up.",
    "canal.md": "The Erie Canal spans 363 miles. It joins the Hudson to the Great Lakes.",
    "bridge.md": "Emily Roebling crossed the Brooklyn Bridge first. She carried a rooster.",
}
QUESTION = "Who crossed the bridge?"
TOKENS = 24
METHODS: dict[str, dict[str, Any]] = {
    "sac": {"method": "sac", "adapter": "none"},
    "full-kv": {"method": "full-kv", "adapter": "default"},
    "kvzip": {"method": "kvzip", "adapter": "default", "ratio": 3.0},
    "attention-matching": {"method": "attention-matching", "adapter": "default", "ratio": 3.0},
}
EVEN = ("sac", "full-kv")


@contextmanager
def library(base: Path, method: str, tiny_config: Any, folder: Path, **more: Any) -> Iterator[SacRag]:
    config = dataclasses.replace(tiny_config, model=str(base), **{**METHODS[method], **more})
    with SacRag.index([], folder / "a.lib", config, **WHERE) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
        yield rag


def ours(rag: SacRag, hits: tuple[Hit, ...], tokens: int = TOKENS, **ask: Any) -> list[int]:
    """What the library's own reader says from these passages."""
    with rag.engine.busy(), torch.inference_mode():
        prompt = rag.assemble(hits, QUESTION, AskConfig(**ask)).prompt
        return rag.engine.reader.generate([prompt], Sampling(tokens))[0].token_ids
