"""Documents to passages: whole sentences packed up to a number of tokens, with exact character spans."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sac_rag.errors import ConfigError, DocumentError, ModelError
from sac_rag.records import Document, Passage
from sac_rag.text.breaks import INK, Breaks, find_breaks, last_at_most
from sac_rag.text.cleaning import moved
from sac_rag.text.formats import is_code

Offsets = Callable[[str], Sequence[tuple[int, int]]]
"""text -> (start, end) characters of each token, in order."""

_BLOCK = 32_768
"""Characters tokenised together: bounds memory, and time for tokenisers that are slow on long words."""


def split(document: Document, count_offsets: Offsets, *, max_tokens: int = 256, overlap: int = 0) -> list[Passage]:
    """Passages in order, none longer than `max_tokens` when tokenised alone.

    A passage holds whole sentences (lines of source code) as long as they fit. It ends where a section does if
    that leaves it at least half full, else at the end of a paragraph under the same condition, else of a
    sentence. A sentence longer than a passage is cut at a line end, a space, or between two tokens. With
    `overlap`, a passage starts up to that many tokens before the end of the one before it. Without, passages
    share nothing and leave out white space alone.

    Raises ConfigError for sizes out of range; DocumentError if the text is not valid Unicode or one character
    takes more than `max_tokens`.
    """
    if max_tokens < 1 or not 0 <= overlap < max_tokens:
        raise ConfigError(f"max_tokens is {max_tokens} and overlap {overlap}; needed: 0 <= overlap < max_tokens")
    try:
        document.text.encode()
    except UnicodeEncodeError:
        raise DocumentError(document.uri, "text is not valid unicode") from None

    heading_starts = [at for at, _ in document.headings]
    pages = document.meta.get("pages")  # offsets of a reader, unless somebody else calls something so
    if not isinstance(pages, list) or not all(isinstance(at, int) for at in pages):
        pages = []
    seen: Counter[str] = Counter()
    passages: list[Passage] = []
    for start, end, tokens in _Spans(document, count_offsets, max_tokens, overlap):
        text = document.text[start:end]
        i = bisect_right(heading_starts, start)
        passages.append(
            Passage(
                id=passage_id(document.uri, text, seen[text]),
                document=document.uri,
                ordinal=len(passages),
                text=text,
                start=moved(start, document.shifts),
                end=moved(end, document.shifts),
                heading=document.headings[i - 1][1] if i else "",
                tokens=tokens,
                meta={"page": bisect_right(pages, start)} if pages else {},
            )
        )
        seen[text] += 1
    return passages


def passage_id(uri: str, text: str, occurrence: int) -> str:
    """32 hex digits; `occurrence` counts equal texts in the document from 0."""
    return hashlib.sha256("\0".join((uri, text, str(occurrence))).encode()).hexdigest()[:32]


def offsets_of(tokenizer: Any) -> Offsets:
    """The `count_offsets` of a fast Hugging Face tokenizer. Special tokens spelled out in a text stay plain text.

    Raises ModelError for a tokenizer without offsets. The result is no safer under threads than the tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")

    def count_offsets(text: str) -> Sequence[tuple[int, int]]:
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            split_special_tokens=True,
            truncation=False,
            verbose=False,
        )
        offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"]
        return offsets

    return count_offsets


class _Spans:
    """Iterates over (start, end, tokens) of the passages of one document."""

    def __init__(self, document: Document, count_offsets: Offsets, max_tokens: int, overlap: int) -> None:
        self.text, self.uri = document.text, document.uri
        self.count_offsets, self.max_tokens, self.overlap = count_offsets, max_tokens, overlap
        # Ends tell tokens of a span from those of the white space and the word before it, starts do not.
        self.ends = _token_ends(self.text, count_offsets)
        starts = (at for at, _ in document.headings)
        self.breaks: Breaks = find_breaks(self.text, starts, lines=is_code(document.media_type))

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        at, done = self._ink(0), 0
        while at < len(self.text):
            end, tokens = self._passage(at)
            if end <= done:  # the overlap left no room for anything new
                at = self._ink(done)
                continue
            yield at, end, tokens
            done = end
            following = self._ink(end)
            at = self._overlap(at, end) if self.overlap and following < len(self.text) else following

    def _passage(self, start: int) -> tuple[int, int]:
        """(end, tokens) of the passage at `start`; tokenised alone, because the cut can change tokens."""
        budget, cut = self.max_tokens, len(self.text)
        while True:
            cut = min(cut, self._cut(start, budget))
            end = start + len(self.text[start:cut].rstrip())
            tokens = len(self.count_offsets(self.text[start:end]))
            if tokens <= self.max_tokens:
                return end, tokens
            if end - start == 1:
                raise DocumentError(self.uri, f"one character takes {tokens} tokens, over {self.max_tokens}")
            if budget > 1:
                budget = max(1, min(budget - (tokens - self.max_tokens), 7 * budget // 8))
            else:
                cut = start + (end - start) // 2

    def _cut(self, start: int, budget: int) -> int:
        """Where the passage at `start` should end if it may hold `budget` tokens of the whole text."""
        first = bisect_right(self.ends, start)
        last = first + budget - 1
        if last + 1 >= len(self.ends):
            return len(self.text)
        if self.ends[last] == self.ends[last + 1]:  # do not cut a character that takes several tokens
            last = bisect_left(self.ends, self.ends[last]) - 1
        if last < first:
            return start + 1
        limit = self._ink(self.ends[last])
        half = max(self.ends[min(last, first + budget // 2)], start + 1)
        for kind in (self.breaks.headings, self.breaks.paragraphs, self.breaks.units):
            if (found := last_at_most(kind, limit)) >= half:
                return found
        found = last_at_most(self.breaks.units, limit)
        if found > start and self._fits_alone(found):
            return found
        for separator in ("\n", " "):
            if (found := self.text.rfind(separator, half, limit)) >= 0:
                return found
        return limit

    def _fits_alone(self, start: int) -> bool:
        """Whether the unit at `start` fits in a passage: then it is better kept whole."""
        i = bisect_right(self.breaks.units, start)
        end = self.breaks.units[i] if i < len(self.breaks.units) else len(self.text)
        return bisect_right(self.ends, end) - bisect_right(self.ends, start) <= self.max_tokens

    def _overlap(self, start: int, end: int) -> int:
        """Where the passage after start..end begins: a unit, a word or a token, at most `overlap` tokens before end."""
        earliest = max(self.ends[max(bisect_right(self.ends, end) - self.overlap - 1, 0)], start + 1)
        i = bisect_left(self.breaks.units, earliest)
        if i < len(self.breaks.units) and self.breaks.units[i] < end:
            return self.breaks.units[i]
        space = self.text.find(" ", earliest - 1, end)
        return self._ink(space if space >= 0 else earliest)

    def _ink(self, at: int) -> int:
        match = INK.search(self.text, at)
        return match.start() if match else len(self.text)


def _token_ends(text: str, count_offsets: Offsets) -> array[int]:
    """End of every token, ascending. Tokenised in blocks cut at a line end or a space where there is one."""
    ends = array("q")
    start = highest = 0
    while start < len(text):
        stop = start + _BLOCK
        if stop < len(text):
            for separator in ("\n", " "):
                found = text.rfind(separator, start + _BLOCK // 2, stop)
                if found >= 0:
                    stop = found
                    break
        for _, end in count_offsets(text[start:stop]):
            highest = max(highest, start + end)
            ends.append(highest)
        start = stop
    return ends
