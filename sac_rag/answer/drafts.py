"""Guesses at how an answer goes on, looked up in the text it is read from, which one pass of the model then checks.

Prompt lookup decoding: speculative decoding (Leviathan et al., arXiv 2211.17192, section 2.3) whose drafts are copied
from the text, as in LLMA (Yang et al., arXiv 2304.04487, section 3). A draft is never believed: each of its tokens is
chosen as it would be by itself, so that answers stay as they are, token for token, whatever the draft.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from sac_rag.answer.prompt import Prompt
from sac_rag.compress.backbone import Backbone

DRAFT_TOKENS = 7
"""Longest draft; with the token in front of it a pass reads eight, which a CPU's kernels take as one tile."""
SUFFIX_TOKENS = 4
"""Last tokens of an answer that are compared, at most: the longest match wins, then the best passage."""

_END = -1
"""Stands behind the last token of each text."""
_BLANKS = "\u0120\u2581 "
"""How vocabularies write the blank in front of a word (byte-level BPE, SentencePiece)."""


class Drafter:
    """Where the answer to one prompt may come from: the passages its memories stand for, best first, then its tokens.

    What is compared are words: a word that begins an answer has no blank in front of it and often a capital.
    """

    def __init__(self, backbone: Backbone, prompt: Prompt) -> None:
        self._backbone, self._prompt = backbone, prompt
        self._ids: list[int] = []
        self._words: list[str] = []
        self._places: dict[str, list[int]] | None = None

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        """Up to `most` token ids that may follow those of an answer; none where it says nothing that is in the text."""
        if most < 1 or not answer:
            return []
        said = self._words_of(answer[-SUFFIX_TOKENS:])
        places = self._looked_up() if self._places is None else self._places
        best, longest = -1, 0
        for place in places.get(said[-1], ()):
            n = 1
            while n < min(len(said), place + 1) and self._words[place - n] == said[-1 - n]:
                n += 1
            if n > longest:
                best, longest = place, n
        following = self._ids[best + 1 : best + 1 + min(most, DRAFT_TOKENS)] if longest else []
        return list(takewhile(lambda i: i != _END, following))

    def _looked_up(self) -> dict[str, list[int]]:
        """Where each word stands in all that may be copied; made once the first draft is wanted."""
        read = [self._backbone.tokens(text) for text in self._prompt.texts]
        read += [list(part) for part in self._prompt.parts if isinstance(part, Sequence)]
        places = self._places = defaultdict(list)
        for ids in read:
            for place, word in enumerate(self._words_of(ids), len(self._ids)):
                places[word].append(place)
                self._words.append(word)
            self._ids += [*ids, _END]
            self._words.append("")
        return places

    def _words_of(self, ids: Sequence[int]) -> list[str]:
        tokens = self._backbone.tokenizer.convert_ids_to_tokens(list(ids))
        return [(t or "").lstrip(_BLANKS).lower() for t in tokens]
