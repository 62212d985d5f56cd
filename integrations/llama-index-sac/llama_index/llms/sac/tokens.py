"""Counting with tags in the text: a tag counts as the positions that its memory takes up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.schema.sac.opening import Source

_OPENING = "[[sac:1:"
MEMORY = -1
"""Stands for one position of a memory."""


class SacTokenizer:
    """For `Settings.tokenizer`: text to ids of the base model; a tag gives as many `MEMORY` as its passage has tokens.

    That is what a tag takes of the context window, which is counted in positions: less, and a splitter would fill a
    prompt with more than the model takes; more, and it would leave passages out that fit.
    """

    def __init__(self, source: Source, where: Mapping[str, Any] | None = None) -> None:
        self._source, self._where = source, where

    def __call__(self, text: str) -> list[int]:
        rag = self._source.rag
        parts = rag.cite(text, where=self._where) if _OPENING in text else (text,)
        ids: list[int] = []
        for part in parts:
            if isinstance(part, str):
                ids += rag.token_ids(part)
            else:
                ((_, positions),) = rag.extents([part.id])
                ids += [MEMORY] * positions
        return ids
