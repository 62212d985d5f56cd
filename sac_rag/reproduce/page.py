"""Markdown of a group: tables, what was compared with the paper, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sac_rag.evaluate.report import escaped, grid
from sac_rag.reproduce.drawing import Picture
from sac_rag.reproduce.order import AGREES, DISAGREES, OPEN, Pair


@dataclass
class Section:
    """A part of a page. rows: cells by column, None where nothing is known."""

    title: str
    text: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def markdown(self, folder: str) -> str:
        pictures = [f"![{p.shown}]({folder}/{p.name})" for p in self.pictures]
        return paragraphs(f"## {self.title}", self.text, table(self.rows), order(self.pairs), *pictures) + "\n"


def paragraphs(*parts: str) -> str:
    """Parts of a page below each other; empty ones are left out."""
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of all columns that any row has; unknown cells stay empty."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return grid(names, ([cell(row.get(name)) for name in names] for row in rows))


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return escaped(value)


def order(pairs: Sequence[Pair]) -> str:
    """How many pairs stand as in the paper, and those that do not by name."""
    if not pairs:
        return ""
    counts = {verdict: sum(p.verdict == verdict for p in pairs) for verdict in (AGREES, DISAGREES, OPEN)}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    lines = [f"Order: of {len(pairs)} pairs {told} (95 % intervals of paired differences; open: they hold 0)."]
    for p in (p for p in pairs if p.verdict != AGREES):
        lines.append(
            f"* {p.first} before {p.second}: {p.verdict} (paper {p.paper:+.2f}, here {p.difference:+.2f}, "
            f"{p.low:+.2f} to {p.high:+.2f})"
        )
    return "\n".join(lines)


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """A value with the ends of its interval."""
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
