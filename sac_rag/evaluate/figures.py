"""Which figures a recorded run has: F1 against ratio and against bytes, and the loss of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sac_rag.evaluate.plots import Level, Line, chart
from sac_rag.evaluate.tasks import is_macro

Row = Mapping[str, Any]
AGAINST = {
    "ratio": ("f1-by-ratio", "source tokens per anchor"),
    "bytes_per_source_token": ("f1-by-bytes", "stored bytes per source token"),
}
"""Column of x -> (ending of the file's name, label)."""


def figures(stem: str, tables: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """File name -> SVG, for every figure that the tables of a record hold; none when nothing can be compared."""
    found = {}
    for name, rows in tables.items():
        for part, drawn in _sets(rows).items():
            for column, (kind, label) in AGAINST.items():
                if svg := _scores(drawn, column, label):
                    found[f"{stem}.{name}.{part}{kind}.svg"] = svg
        if svg := _losses(rows):
            found[f"{stem}.{name}.loss.svg"] = svg
    return found


def is_training(rows: Sequence[Row]) -> bool:
    """Whether rows are the steps of a training run."""
    return bool(rows) and all("loss" in r and "examples" in r for r in rows)


def _sets(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows to draw, by what tells their file's name apart: averages over sets, or those of the only set."""
    scores = [r for r in rows if "f1" in r and "reader" in r]
    names = list(dict.fromkeys(str(r.get("set")) for r in scores))
    drawn = [n for n in names if is_macro(n)] or (names if len(names) == 1 else [])
    return {
        f"{name.replace(' ', '-')}." if len(drawn) > 1 else "": [r for r in scores if str(r.get("set")) == name]
        for name in drawn
    }


def _scores(rows: Sequence[Row], column: str, label: str) -> str | None:
    """F1 in percent: of what has a ratio against a column, by method or adapter and prompt; of all else as a level."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("ratio") and row.get(column):
            series.setdefault(_name(row), []).append(row)
    if len({r[column] for found in series.values() for r in found}) < 2:
        return None
    lines = []
    for name, unsorted in series.items():
        found = sorted(unsorted, key=lambda r: r[column])
        bars = [(100 * r["f1_low"], 100 * r["f1_high"]) for r in found if r.get("f1_low") is not None]
        points = tuple((r[column], 100 * r["f1"]) for r in found)
        lines.append(Line(name, points, tuple(bars) if len(bars) == len(found) else ()))
    levels = [Level(_name(r), 100 * r["f1"]) for r in rows if not r.get("ratio")]
    title = f"F1 on {rows[0].get('set')}"
    return chart(title, label, "F1, percent", lines, levels, log_x=True)


def _name(row: Row) -> str:
    """Who answered, and the prompt if it has a name."""
    method = f" ({row.get('method')})" if row.get("ratio") else ""
    name = row.get("adapter") or f"{row['reader']}{method}"
    return f"{name}, {row['prompt']}" if row.get("prompt") else name


def _losses(rows: Sequence[Row]) -> str | None:
    """Smoothed losses against questions seen; a step that was repeated after a kill counts once."""
    if not is_training(rows) or len({r["examples"] for r in rows}) < 2:
        return None
    names = {"loss": "answers", "recall": "recall of the context"}
    lines = []
    for column, name in names.items():
        points = {r["examples"]: r[column] for r in rows if r.get(column) is not None}
        if len(points) > 1:
            lines.append(Line(name, tuple(sorted(points.items())), marks=False))
    return chart("Loss in training", "questions seen", "loss, nats per token", lines)
