"""`sac chat`: a conversation with a library."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from sac_cli import answers, console, fields
from sac_cli.ask import SETTINGS, Where
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, LibraryFolders, opened, where_of
from sac_cli.shell import command
from sac_rag.errors import SacError

if TYPE_CHECKING:
    from sac_rag.records import Answer

HELP = "/new starts afresh, /sources shows where the answer is from, /text turns plain text on and off, /quit ends"
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
    library: LibraryFolders = DEFAULT_LIBRARY,
    where: Where = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Talk with a library, question after question.

    A question that stands by itself is asked as by `sac ask`. One that refers back ("its moon?") is searched for by the
    words of the question before it too, and asked behind that turn, which is not read again; --history all asks every
    question behind all turns. When the model's context is full, the oldest turns go. A greeting, or thanks, is answered
    by the model alone.

    /new starts afresh; /sources shows where the last answer is from; /text switches between plain text and memory;
    /quit or the end of input ends.
    """
    from sac_rag.answer.conversation import Conversation
    from sac_rag.config import AskConfig

    settings, conditions = AskConfig(**fields.given(SETTINGS, values)), where_of(where or ())
    text, conversation = False, Conversation()
    last: Answer | None = None
    with opened(library, device=device, dtype=dtype) as rag:
        console.hint(HELP)
        while (line := _read()) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    return
                case "/new":
                    conversation.clear()
                    console.hint("what was said so far is forgotten")
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
                        stream = rag.stream(question, settings, where=conditions, text=text, conversation=conversation)
                        last = answers.speak(stream)
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
