"""What is printed and where: data on standard output; progress, hints and errors on standard error.

People get colours, tables and short numbers; a pipe gets tab-separated lines and nothing that moves.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# C0 without tab and newline, DEL, C1, the marks that reverse or hide what follows them, letters that nobody sees, and
# halves of a surrogate pair, which nothing prints.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


@dataclass
class State:
    """The global flags of this process."""

    quiet: bool = False
    verbose: bool = False


state = State()


def prepare() -> None:
    """Settle the streams and silence the chatter of libraries; before the first command runs."""
    state.quiet = state.verbose = False
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        # A lone surrogate in a file name must not end a run; escaped as \udc80 it is even valid JSON.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=errors)
    for name, value in (("TOKENIZERS_PARALLELISM", "false"), ("TRANSFORMERS_VERBOSITY", "error")):
        os.environ.setdefault(name, value)


def set_flags(*, quiet: bool = False, verbose: bool = False, no_color: bool = False) -> None:
    """Switch global flags on; they may stand before or after the command."""
    state.quiet = state.quiet or quiet
    state.verbose = state.verbose or verbose
    if no_color:
        os.environ["NO_COLOR"] = "1"
        os.environ.pop("FORCE_COLOR", None)


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def out() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def err() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def clean(text: str) -> str:
    """Text without control characters: documents and models must not steer a terminal."""
    return _CONTROL.sub("", text)


def one_line(text: str, width: int | None = None) -> str:
    """Clean text on one line, cut to `width` characters."""
    line = " ".join(clean(text).split())
    return line if width is None or len(line) <= width else line[: width - 1].rstrip() + "…"


def name(uri: str) -> str:
    """A document's name as it is shown, and may be given back: what would not survive printing, such as control
    characters and runs of blanks, makes it a JSON string in ASCII."""
    if uri == one_line(uri) and not uri.startswith('"'):
        return uri
    return json.dumps(uri).replace("  ", " \\u0020").replace("\x7f", "\\u007f")  # a table joins blanks


def named(shown: str) -> str:
    """The name that `name` showed."""
    if len(shown) > 1 and shown.startswith('"') and shown.endswith('"'):
        try:
            value = json.loads(shown)
        except ValueError:
            return shown
        return value if isinstance(value, str) else shown
    return shown


def error(message: str) -> None:
    """One red line on standard error."""
    _line(f"error: {one_line(message)}", "bold red")


def notice(message: str) -> None:
    """What the user should know although it is no error; shown unless --quiet."""
    if not state.quiet:
        _line(one_line(message), "yellow")


def hint(message: str) -> None:
    """A word of help; shown unless --quiet."""
    if not state.quiet:
        _line(one_line(message), "dim")


def _line(text: str, style: str) -> None:
    if not sys.stderr.isatty() and not {"FORCE_COLOR", "TTY_COMPATIBLE"} & set(os.environ):
        print(text, file=sys.stderr)  # as the library of colours does, which need not be imported for it
        return
    from rich.text import Text

    err().print(Text(text, style=style), soft_wrap=True)


def write(text: str) -> None:
    """A piece of an answer, at once; control characters stay only in pipes."""
    sys.stdout.write(clean(text) if is_terminal() else text)
    sys.stdout.flush()


def emit(value: Any) -> None:
    """One line of JSON on standard output, without a character that steers a terminal: the same value, escaped."""
    ascii_only = (sys.stdout.encoding or "ascii").lower().replace("-", "") != "utf8"
    line = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)
    print(_CONTROL.sub(lambda found: json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f"), line), flush=True)


LEAST = 20
"""Characters that a column keeps which gives way to the others."""
GAP = 3
"""Characters between two columns."""


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[str] = (), cut: str | None = None
) -> None:
    """A table for people; the same cells separated by tabs, without a head, for programs.

    numbers: columns that align right. cut: the column whose cells are cut, in place of a second line, where a row is
    longer than the terminal is wide.
    """
    cells = [[clean(_show(cell)) for cell in row] for row in rows]
    if not is_terminal():
        for row in cells:
            print("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if cut is not None:
        _cut(cells, columns, columns.index(cut))
    drawn, right = Table(box=box.SIMPLE_HEAD, pad_edge=False), set(numbers)
    for name in columns:
        drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    out().print(drawn)


def _cut(cells: list[list[str]], columns: Sequence[str], at: int) -> None:
    """Cut the cells of a column to what the others leave of a line."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    room = max(LEAST, out().width - sum(widths) + widths[at] - GAP * len(columns))
    for row in cells:
        if cell_len(row[at]) > room:
            row[at] = set_cell_size(row[at].rstrip("…"), room - 1).rstrip() + "…"


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other."""
    if not is_terminal():
        table((), rows)
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), Text(clean(_show(value)), overflow="fold"))
    out().print(grid)


def _show(cell: object) -> str:
    # Programs that read the tabs want 1234, people 1,234.
    if isinstance(cell, int) and not isinstance(cell, bool) and is_terminal():
        return f"{cell:,}"
    return "" if cell is None else str(cell)


def size(count: float) -> str:
    """Bytes as people read them; the plain number for programs."""
    if not is_terminal():
        return f"{count:.0f}"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on standard error while something loads, for people only."""
    if state.quiet or not sys.stderr.isatty():
        yield
        return
    with err().status(f"[dim]{text}[/dim]"):
        yield


def shows_progress() -> bool:
    return sys.stderr.isatty() and not state.quiet
