"""Runs seen at once: scores, a row a set, a column a reader at its ratio; first tokens, a row a number of passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sac_rag.evaluate.tasks import is_macro

CORNER = "F1 / EM"
"""Head of the first column, which holds the sets' names; cells are these two, in percent."""
SHARE = "share of full-ft's F1"
SHARES = {"retention": SHARE, "of_text": "share of the text's F1"}
METHOD = "method"


def crossed(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows {CORNER: set, column: "F1 / EM", ...}, below each average one with its share of the full-ft reader's F1, and
    one with that of the frozen model's on the text.

    Empty where there is nothing to see at once: of one set, of one column, or of runs that two columns do not tell
    apart.
    """
    if not all({"set", "reader", "f1", "em"} <= set(r) for r in runs):
        return []
    varied = [name for name in ("prompt", "k") if len({r.get(name) for r in runs}) > 1]
    made_by = {(r["reader"], r.get(METHOD)) for r in runs if r.get("ratio")}
    if len(made_by) > len({reader for reader, _ in made_by}):
        varied.append(METHOD)
    cells = {(str(r["set"]), _column(r, varied)): r for r in runs}
    sets, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in range(2))
    if len(cells) < len(runs) or len(sets) < 2 or len(columns) < 2:
        return []
    rows = []
    for name in sets:
        found = {column: cells[name, column] for column in columns if (name, column) in cells}
        rows.append({CORNER: name, **{c: f"{100 * r['f1']:.1f} / {100 * r['em']:.1f}" for c, r in found.items()}})
        for field, called in SHARES.items():
            shares = {c: f"{100 * r[field]:.0f} %" for c, r in found.items() if r.get(field) is not None}
            if is_macro(name) and shares:
                rows.append({CORNER: f"{name}, {called}", **shares})
    whole = dict.fromkeys((CORNER, *columns), "")
    return [{**whole, **row} for row in rows]


def crossed_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows {passages: "10 of 256 tokens", way: "0.20 s (9.6x)", ...}: seconds to the first token, and how many times
    sooner than from text. Empty where rows are no first tokens."""
    if not all({"way", "passages", "passage_tokens", "first_token_s", "sooner"} <= set(r) for r in rows):
        return []
    found: dict[str, dict[str, str]] = {}
    for r in rows:
        place = f"{r['passages']} of at most {r['passage_tokens']} tokens"
        cell = f"{r['first_token_s']:.2f} s" + (f" ({r['sooner']:.1f}x)" if r["sooner"] != 1 else "")
        found.setdefault(place, {})[str(r["way"])] = cell
    return [{"passages": place, **cells} for place, cells in found.items()]


def _column(run: Mapping[str, Any], varied: Sequence[str]) -> str:
    """Who answered: the adapter's name among several, else the reader's, the ratio, and what else tells runs apart. Of
    several methods each has its own name."""
    ratio = [f"{run['ratio']:g}x"] if run.get("ratio") else []
    more = [n for n in varied if n != METHOD and run.get(n) is not None]
    who = run.get("adapter") or run["reader"]
    if METHOD in varied and ratio:
        who = f"{run[METHOD]} {run['adapter']}" if run.get("adapter") else run[METHOD]
    return " ".join((str(who), *ratio, *(f"{n} {run[n]}" if n == "k" else str(run[n]) for n in more)))
