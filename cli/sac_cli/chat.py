"""`sac chat`: questions to a library, one after the other."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from sac_cli import answers, console, fields
from sac_cli.ask import SETTINGS, Where
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, LibraryFolder, opened, where_of
from sac_cli.shell import command
from sac_rag.errors import SacError

if TYPE_CHECKING:
    from sac_rag.records import Answer

HELP = "/sources shows where the last answer is from, /text switches plain text on and off, /quit ends"
READING = {
    "memory": "compressed memory",
    "mixed": "text and compressed memory",
    "auto": "compressed memory, or text",
    "text": "plain text",
}


@command(
    "chat",
    settings=SETTINGS,
    example="""
    sac chat
    sac chat --library my.lib -k 3 --temperature 0.7
    sac chat --fidelity auto --abstain
    """,
)
def chat(
    library: LibraryFolder = DEFAULT_LIBRARY,
    where: Where = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Ask a library question after question.

    Each question stands for itself in this version: earlier ones are not remembered.
    """
    from sac_rag.config import AskConfig

    settings, conditions = AskConfig(**fields.given(SETTINGS, values)), where_of(where or ())
    text = False
    last: Answer | None = None
    with opened(library, device=device, dtype=dtype) as rag:
        console.hint(f"each question stands for itself; {HELP}")
        while (line := _read()) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    return
                case "/sources":
                    if last:
                        answers.show_sources(last)
                    else:
                        console.hint("no answer yet")
                case "/text":
                    text = not text
                    console.hint(f"answering from {'plain text' if text else READING[settings.fidelity]}")
                case question if question.startswith("/"):
                    console.hint(HELP)
                case question:
                    try:
                        last = answers.speak(rag.stream(question, settings, where=conditions, text=text))
                    except SacError as error:
                        console.error(str(error))


def _read() -> str | None:
    """The next line; None at the end of input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  editing and history of lines, where the platform has it
    try:
        return input("> ")
    except EOFError:
        print()
        return None
