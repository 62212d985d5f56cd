"""Which texts of a file are most alike: what a search would put beside the right passage."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 8
"""Neighbours of a text."""
QUERY_WORDS = 120
"""First words of a text that its neighbours are searched by."""


class Neighbours:
    """BM25 over the texts of a file, each text as a query; equal texts are no neighbours."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._texts = texts
        self._tokens = bm25s.tokenize([*texts], stopwords="en", return_ids=False, show_progress=False)
        self._index = bm25s.BM25()
        self._index.index(self._tokens, show_progress=False)

    def of(self, index: int) -> list[int]:
        """Indices of up to `MOST` texts, the most alike first."""
        import numpy as np

        words = self._tokens[index][:QUERY_WORDS]
        if not words:
            return []
        scores = self._index.get_scores(words)
        order = np.argsort(-scores, kind="stable")[: 4 * MOST]
        seen, found = {self._texts[index]}, []
        for i in order.tolist():
            if scores[i] > 0 and self._texts[i] not in seen:
                seen.add(self._texts[i])
                found.append(i)
        return found[:MOST]
