"""Scored runs seen at once: a row a set, a column a reader at its ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sac_rag.evaluate.tasks import is_macro

CORNER = "F1 / EM"
"""Head of the first column, which holds the sets' names; cells are these two, in percent."""
SHARE = "share of full-ft's F1"


def crossed(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows {CORNER: set, column: "F1 / EM", ...}, below each average one with its share of the full-ft reader's F1.

    Empty where there is nothing to see at once: of one set, of one column, or of runs that two columns do not tell
    apart.
    """
    if not all({"set", "reader", "f1", "em"} <= set(r) for r in runs):
        return []
    varied = [name for name in ("prompt", "k") if len({r.get(name) for r in runs}) > 1]
    cells = {(str(r["set"]), _column(r, varied)): r for r in runs}
    sets, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in range(2))
    if len(cells) < len(runs) or len(sets) < 2 or len(columns) < 2:
        return []
    rows = []
    for name in sets:
        found = {column: cells[name, column] for column in columns if (name, column) in cells}
        rows.append({CORNER: name, **{c: f"{100 * r['f1']:.1f} / {100 * r['em']:.1f}" for c, r in found.items()}})
        shares = {c: f"{100 * r['retention']:.0f} %" for c, r in found.items() if r.get("retention") is not None}
        if is_macro(name) and shares:
            rows.append({CORNER: f"{name}, {SHARE}", **shares})
    whole = dict.fromkeys((CORNER, *columns), "")
    return [{**whole, **row} for row in rows]


def _column(run: Mapping[str, Any], varied: Sequence[str]) -> str:
    """Who answered: the adapter's name among several, else the reader's, the ratio, and what else tells runs apart."""
    ratio = [f"{run['ratio']:g}x"] if run.get("ratio") else []
    more = [f"{name} {run[name]}" if name == "k" else str(run[name]) for name in varied if run.get(name) is not None]
    return " ".join((str(run.get("adapter") or run["reader"]), *ratio, *more))
