"""docs/results.md from recorded JSON: `python -m sac_rag.evaluate.report docs/results > docs/results.md`.

Each file of the folder is one recorded run: {"title", "command", "note", "tables": {name: [row, ...]}}, as
`record` writes it. Rows are flat objects; columns are those of the first row.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sac_rag.errors import ConfigError

HEAD = """# Results

Generated from the recorded runs in [results/](results/) by `python -m sac_rag.evaluate.report docs/results`;
a test keeps the two alike. Each section names the command that printed its figures.
"""
PERCENT = frozenset({"f1", "em", "rouge1", "em_raw", "recall"})


def record(folder: Path, name: str, title: str, command: str, note: str, tables: Mapping[str, Any]) -> None:
    """Store one run beside the others. Keys of `tables` that do not hold rows are left out."""
    rows = {k: v for k, v in tables.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    text = json.dumps({"title": title, "command": command, "note": note, "tables": rows}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def render(folder: Path) -> str:
    """The whole page; raises ConfigError naming a file that is no recorded run."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.json")):
        try:
            run = json.loads(path.read_text("utf-8"))
            parts.append(f"## {run['title']}\n\n```bash\n{run['command']}\n```\n\n{run['note']}".rstrip() + "\n")
            parts += [table(rows) for rows in run["tables"].values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no recorded run (title, command, note, tables): {error}") from error
    return "\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table; scores in percent, other numbers to four digits."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(c, r.get(c)) for c in columns) + " |" for r in rows]
    return "\n".join(lines) + "\n"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{100 * value:.1f}" if column in PERCENT else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page of a folder, or with `record NAME TITLE COMMAND NOTE` store JSON from standard input there."""
    args = list(sys.argv[1:] if argv is None else argv)
    if len(args) == 1:
        sys.stdout.write(render(Path(args[0])))
        return 0
    if len(args) == 6 and args[1] == "record":
        folder, _, name, title, command, note = args
        record(Path(folder), name, title, command, note, json.load(sys.stdin))
        return 0
    sys.stderr.write("usage: report FOLDER | report FOLDER record NAME TITLE COMMAND NOTE < run.json\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
