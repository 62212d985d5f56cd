"""Prompts packed out of whole passages: one that is cut in two is no passage any more, and is read as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.indices.prompt_helper import DEFAULT_PADDING, PromptHelper
from llama_index.core.prompts import BasePromptTemplate

_BETWEEN = "\n\n"


class SacPromptHelper(PromptHelper):
    """For `Settings.prompt_helper`: only texts that are longer than a whole prompt are cut."""

    def repack(
        self,
        prompt: BasePromptTemplate,
        text_chunks: Sequence[str],
        padding: int = DEFAULT_PADDING,
        llm: Any = None,
        tools: Any = None,
    ) -> list[str]:
        """Chunks joined as far as they fit, with room for the answer so far that a refining prompt holds."""
        room = self._get_available_chunk_size(prompt, padding=padding + self.num_output, llm=llm, tools=tools)
        packed: list[str] = []
        used = 0
        for chunk in filter(None, (c.strip() for c in text_chunks)):
            size = self._count(_BETWEEN + chunk)
            if packed and used + size <= room:
                packed[-1], used = packed[-1] + _BETWEEN + chunk, used + size
            elif size <= room:
                packed.append(chunk)
                used = size
            else:
                parts = super().repack(prompt, [chunk], padding=padding, llm=llm, tools=tools)
                packed += parts
                used = self._count(parts[-1])
        return packed

    def truncate(
        self,
        prompt: BasePromptTemplate,
        text_chunks: Sequence[str],
        padding: int = DEFAULT_PADDING,
        llm: Any = None,
        tools: Any = None,
    ) -> list[str]:
        """The first chunks, as many as fit; of the first alone, what fits."""
        if not text_chunks:
            return []
        # The one response mode that truncates prints the list of chunks, with quotes and escapes.
        padding += self._count(repr(list(text_chunks))) - self._count("".join(text_chunks))
        left = self._get_available_chunk_size(prompt, padding=padding, llm=llm, tools=tools)
        kept: list[str] = []
        for chunk in text_chunks:
            left -= self._count(chunk + _BETWEEN)
            if left < 0:
                break
            kept.append(chunk)
        if not kept:
            return super().truncate(prompt, text_chunks[:1], padding=padding, llm=llm, tools=tools)
        return kept

    def _count(self, text: str) -> int:
        return int(self._token_counter.get_string_tokens(text))
