"""BLEU-4 of a corpus (Papineni et al., 2002), with the tokens of mteval-13a, exact: sacrebleu's score without its
smoothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

ORDER = 4
_ENTITIES = (("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPLIT = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def words(text: str) -> list[str]:
    """The tokens that are compared: as mteval-13a splits western languages."""
    for old, new in _ENTITIES:
        text = text.replace(old, new)
    text = f" {text} "
    for pattern, parts in _SPLIT:
        text = pattern.sub(parts, text)
    return text.split()


def bleu4(said: Sequence[str], meant: Sequence[str]) -> float:
    """0..100: the geometric mean of the precisions of 1- to 4-grams, each counted at most as often as in its reference,
    times a penalty for what is too short; 0 where a precision is."""
    found, offered = [0] * ORDER, [0] * ORDER
    lengths = [0, 0]
    for given, wanted in zip(said, meant, strict=True):
        a, b = words(given), words(wanted)
        lengths = [lengths[0] + len(a), lengths[1] + len(b)]
        for n in range(1, ORDER + 1):
            grams, there = _grams(a, n), _grams(b, n)
            found[n - 1] += sum((grams & there).values())
            offered[n - 1] += sum(grams.values())
    if not all(found):
        return 0.0
    short = min(1.0, math.exp(1 - lengths[1] / lengths[0]))
    mean = sum(math.log(f / o) for f, o in zip(found, offered, strict=True)) / ORDER
    return 100 * short * math.exp(mean)


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
