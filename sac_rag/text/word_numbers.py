"""Numbers of Word's lists, as Word shows them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

from sac_rag.text.markup import attribute, child, local, whole
from sac_rag.text.numerals import numeral

OFF = ("0", "false", "off")
"""Values of a property that is switched off."""


class Numbers:
    """Numbers of list paragraphs, counted in the order of the text."""

    def __init__(self, abstract: list[Any], used: list[Any]) -> None:
        levels = {
            attribute(a, "abstractNumId"): {attribute(v, "ilvl"): v for v in a if local(v) == "lvl"} for a in abstract
        }
        named = {
            link: levels[attribute(a, "abstractNumId")]
            for a in abstract
            if (link := attribute(child(a, "styleLink"), "val"))
        }
        for a in abstract:
            if (link := attribute(child(a, "numStyleLink"), "val")) in named:
                levels[attribute(a, "abstractNumId")] = named[link]
        self.lists = {attribute(n, "numId"): (attribute(child(n, "abstractNumId"), "val"), n) for n in used}
        self.levels = levels
        self.counts: dict[str | None, Counter[int]] = defaultdict(Counter)
        self.begun: set[tuple[str | None, int]] = set()

    def label(self, properties: Any) -> str:
        """What Word writes before a paragraph with these numbering properties; "-" for bullets, "" for nothing."""
        number = attribute(child(properties, "numId"), "val")
        depth = whole(attribute(child(properties, "ilvl"), "val"), 0)
        key, used = self.lists.get(number, (None, None))
        levels = self.levels.get(key, {})
        level = levels.get(str(depth))
        if level is None:
            return ""
        if _format(level) in ("bullet", "none"):
            return "-" if _format(level) == "bullet" else ""
        counts = self.counts[key]
        for above in range(depth):
            counts[above] = counts[above] or self._start(levels.get(str(above)), None, above)
        start = self._start(level, used, depth)
        if (number, depth) not in self.begun and start != self._start(level, None, depth):
            counts[depth] = 0  # a list that begins anew
        self.begun.add((number, depth))
        counts[depth] = counts[depth] + 1 if counts[depth] else start
        for deeper in [d for d in counts if d > depth]:
            del counts[deeper]

        legal = child(level, "isLgl") is not None and attribute(child(level, "isLgl"), "val") not in OFF

        def shown(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            return numeral(counts[at], "decimal" if legal else _format(levels.get(str(at))))

        pattern = attribute(child(level, "lvlText"), "val") or ""
        return re.sub(r"%([1-9])", shown, pattern[:50]).strip()

    def _start(self, level: Any | None, used: Any | None, depth: int) -> int:
        """The first number of a level; that of the list itself, if it says so."""
        for override in used if used is not None else ():
            if local(override) == "lvlOverride" and attribute(override, "ilvl") == str(depth):
                return whole(attribute(child(override, "startOverride"), "val"), 1)
        return whole(attribute(child(level, "start"), "val"), 1)


def _format(level: Any | None) -> str:
    return attribute(child(level, "numFmt"), "val") or "decimal"
