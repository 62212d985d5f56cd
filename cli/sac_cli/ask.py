"""`sac ask`: a question, or one a line, answered from a library."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import answers, console, fields
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, Json, LibraryFolders, answering, where_of
from sac_cli.shell import command
from sac_rag.errors import ConfigError, SacError
from sac_rag.foreign import parse_object, read_bytes
from sac_rag.records import unicode_of

if TYPE_CHECKING:
    from sac_rag.config import AskConfig
    from sac_rag.pipeline import SacRag
    from sac_rag.warm.client import Warm

SETTINGS = fields.settings_of("sac_rag.config:AskConfig", panel="Answering")

Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Only passages with this metadata: key=value, !=, <, <=, >, >=, or a filter in JSON. A further "
        "key narrows, the same key again with = means either value.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]


@command(
    "ask",
    settings=SETTINGS,
    example="""
    sac ask "Who approves travel above 500 euros?"
    sac ask "Who signs?" --library my.lib -k 3 --where document=handbook/travel.md
    sac ask "Who signs?" --both                     compressed memory and plain text, side by side
    sac ask "Who signs?" -k 5 --fidelity mixed      the best passage as text, four as memory
    sac ask "Who signs?" --fidelity auto --abstain  text where memory is doubtful, and no answer where that is
    sac ask "Who signs, and when?" --schema signature.schema.json --max-new-tokens 128
    sac ask "Who signs?" --library sales.lib,legal.lib   several libraries, read as one
    sac ask - --json < questions.txt > answers.jsonl
    """,
)
def ask(
    question: Annotated[
        str | None,
        typer.Argument(help="The question; - or a pipe reads one a line.", metavar="QUESTION|-"),
    ] = None,
    library: LibraryFolders = DEFAULT_LIBRARY,
    where: Where = None,
    text: Annotated[bool, typer.Option("--text", help="Short for --fidelity text.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Answer both ways and compare times.")] = False,
    schema: Annotated[
        Path | None,
        typer.Option(
            help="File with a JSON schema that answers are held to (extra tools).", metavar="FILE", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    warm: Annotated[
        bool, typer.Option("--warm/--no-warm", help="Let a process that `sac warm` started answer, if there is one.")
    ] = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Answer a question from a library, and say where the answer is from.

    With --json, one line a question: answer, how it was read, how sure it is, sources, usage, timings. --fidelity auto
    and --abstain show an answer only when it is whole and judged.
    """
    from sac_rag.config import AskConfig

    settings = AskConfig(**fields.given(SETTINGS, values))
    conditions = where_of(where or ())
    if both and (text or settings.fidelity == "text"):
        raise ConfigError("--text and --both exclude each other; --both answers from text as well")
    if question is None and sys.stdin.isatty():
        raise ConfigError('no question; write sac ask "…", or - to read them from standard input')
    held = None if schema is None else _schema(schema)
    many = question is None or question == "-"
    questions = _lines() if many else [unicode_of(question or "")]
    with answering(library, device=device, dtype=dtype, warm=warm) as rag:
        failed = _answer(
            rag, questions, settings, conditions, text=text, both=both, as_json=as_json, many=many, schema=held
        )
    if failed:
        raise typer.Exit(1)


def _schema(path: Path) -> dict[str, Any]:
    try:
        return parse_object(read_bytes(path))
    except OSError as error:
        raise ConfigError(f"--schema {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"--schema {path} is no JSON schema: {error}") from error


def _lines() -> Iterable[str]:
    return (line.strip() for line in iter(sys.stdin.readline, "") if line.strip())


def _answer(
    rag: SacRag | Warm,
    questions: Iterable[str],
    settings: AskConfig,
    where: Mapping[str, Any] | None,
    *,
    text: bool,
    both: bool,
    as_json: bool,
    many: bool,
    schema: Mapping[str, Any] | None,
) -> int:
    """Answer all; returns how many could not be. In a batch one bad question does not cost the others."""
    failed = 0
    for number, question in enumerate(questions):
        try:
            if both and not number:
                with console.working("warming up"):
                    answers.warm_up(rag, question, settings, where)
            if number and not as_json:
                console.write("\n")
            if many and not (as_json or console.state.quiet):
                console.table((), [(f"Q {question}",)])
            _one(rag, question, settings, where, text=text, both=both, as_json=as_json, schema=schema)
        except SacError as error:
            if not many:
                raise
            failed += 1
            console.error(f"{question!r}: {error}")
            if as_json:
                console.emit({"question": question, "error": str(error)})
    return failed


def _one(
    rag: SacRag | Warm,
    question: str,
    settings: AskConfig,
    where: Mapping[str, Any] | None,
    *,
    text: bool,
    both: bool,
    as_json: bool,
    schema: Mapping[str, Any] | None,
) -> None:
    given: dict[str, Any] = {"where": where, "schema": schema}
    if both:
        compressed, plain = answers.both_ways(rag, question, settings, **given)
        if as_json:
            console.emit({"question": question, **answers.both_dict(compressed, plain)})
        else:
            answers.show_both(compressed, plain)
            answers.show_sources(compressed)
    elif as_json:
        console.emit({"question": question, **rag.ask(question, settings, text=text, **given).account()})
    else:
        answers.show_sources(answers.speak(rag.stream(question, settings, text=text, **given)))
