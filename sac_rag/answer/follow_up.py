"""What of a conversation a question takes up: whether it refers back, how far, and what it is then searched for by."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BACK = re.compile(
    r"\b(?:its?|itself|they|them|their|theirs|he|him|his|she|her|hers|this|these|those|then)\b"
    # "That" that points, at either end or behind a preposition or an auxiliary: not "the moon that", "said that".
    r"|\bthat\W*$|^\W*that\b|\b(?:of|in|on|at|to|by|for|from|with|about|after|before|than|is|was|are|were|do|does|did"
    r"|has|have|had|like) that\b"
    r"|\b(?:which|that|this|other|last|first|next) ones?\b|\bones?\W*$"  # not "one of the moons"
    r"|(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )\bthere\b(?! (?:is|are|was|were)\b)",
    re.IGNORECASE,
)
"""Words that stand for something that was named before."""
_NOT_BACK = re.compile(r"\bit (?=true|possible|necessary|known|important|said)\b", re.IGNORECASE)
_OPENINGS = re.compile(r"(and|but|also|or|so|what about|how about|why|who else|what else|which one)\b", re.IGNORECASE)
_TALK = re.compile(
    r"\b(?:did|have|had|do) (?:i|you|we) (?:just )?(?:say|said|ask|asked|tell|told|mention|mentioned|talk|talked)\b"
    r"|\b(?:i|you|we) (?:just )?(?:said|asked|told|mentioned|talked)\b|\b(?:our|this) conversation\b|\bso far\b"
    r"|\b(?:my|mine)\b|\b(?:am|was) i\b",  # what they may have said of themselves: "what is my name?"
    re.IGNORECASE,
)
"""What speaks of the conversation itself, or of who asks."""
_LABEL = re.compile(r"^\s*\w{1,20}(?: \w{1,20})?:(?:\s|$)")
_WORD = re.compile(r"[^\W\d_]+")
SHORT = 4
"""Words of a question so short that it can hardly stand alone, where it begins like a continuation."""


def lines_of(message: str) -> list[str]:
    """The lines of a message that hold words, without labels such as "Question:" in front."""
    lines = (_LABEL.sub("", line).strip() for line in message.splitlines())
    return [line for line in lines if re.search(r"\w", line)]


def refers_back(question: str) -> bool:
    """Whether an English question takes something from what was said before: by a pronoun ("its moon"), as a
    continuation ("and in winter?", "why?"), or because it speaks of the conversation ("what did I ask?"). Of a message
    of several lines: whether one of them does."""
    return any(map(_line_refers_back, lines_of(question)))


def _line_refers_back(line: str) -> bool:
    begins = _OPENINGS.match(line)
    continues = begins and (len(_WORD.findall(line)) <= SHORT or begins[1].lower() in ("and", "but"))
    return bool(continues or _BACK.search(_NOT_BACK.sub("", line)) or _TALK.search(line))


def thread(earlier: Sequence[str], question: str) -> int:
    """How many of the last of `earlier` questions, oldest first, a question takes up: none where it stands by itself,
    all where it speaks of the conversation, else those from the last on that stood by itself."""
    if _TALK.search(question):
        return len(earlier)
    if refers_back(question):
        for count, before in enumerate(reversed(earlier), 1):
            if not refers_back(before):
                return count
        return len(earlier)
    return 0


def searched(question: str, earlier: Sequence[str]) -> str:
    """The search query of a question after `earlier` ones, oldest first: with those that it takes up in front."""
    count = 0 if _TALK.search(question) else thread(earlier, question)
    return " ".join([*earlier[len(earlier) - count :], question])
