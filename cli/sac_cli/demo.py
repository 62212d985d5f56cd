"""`sac demo`: sample documents, six questions, and what compression saves."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import answers, console, indexing, serve
from sac_cli.options import Device, Dtype, Json, opened
from sac_cli.shell import command

if TYPE_CHECKING:
    from sac_rag.config import IndexConfig
    from sac_rag.pipeline import SacRag
    from sac_rag.records import Answer
    from sac_rag.samples import SampleQuestion

QUESTIONS = 6


@command(
    "demo",
    example="""
    sac demo
    sac demo --library demo.lib        then: sac chat --library demo.lib
    sac demo --serve                   ends with the address of a page to ask
    sac demo --json | jq .summary
    """,
)
def demo(
    library: Annotated[
        str | None, typer.Option("--library", "-l", help="Put the library here and leave it there.", metavar="DIR")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the library where it is and print its folder.")] = False,
    served: Annotated[bool, typer.Option("--serve", help="Then serve it, with a page, until Ctrl-C.")] = False,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Index sample documents, ask them six questions, and compare with reading the text.

    The first run fetches the default models (about 180 MB).
    """
    run(library, keep=keep, as_json=as_json, served=served, device=device, dtype=dtype)


def run(
    library: str | None,
    *,
    keep: bool,
    as_json: bool,
    device: str,
    dtype: str,
    served: bool = False,
    config: IndexConfig | None = None,
) -> None:
    """The demonstration; `config` chooses other models for a new library."""
    from sac_rag import samples

    asked = samples.questions()[:QUESTIONS]
    with _place(library, keep) as folder:
        with opened(folder, config=config, write=True, create=True, device=device, dtype=dtype) as rag:
            report = indexing.compress(rag, [str(samples.documents())])
            if not as_json:
                console.hint(
                    f"{report.added + report.unchanged} documents, {rag.stats().source_tokens:,} tokens "
                    f"in {report.seconds:.1f} s"
                )
            results = _ask(rag, asked, as_json)
            _finish(rag, folder, report, asked, results, as_json)
        if keep and not as_json:
            console.hint(f"the library stays in {folder}: sac chat --library {folder}")
        if served:
            from sac_rag.serve.settings import ServeConfig

            serve.run([f"demo={folder}"], (), None, ServeConfig(), device=device, dtype=dtype)


@contextlib.contextmanager
def _place(library: str | None, keep: bool) -> Iterator[str]:
    if library:
        yield library
    elif keep:
        yield tempfile.mkdtemp(prefix="sac-demo-")
    else:
        with tempfile.TemporaryDirectory(prefix="sac-demo-") as folder:
            yield folder


def _ask(rag: SacRag, asked: Sequence[SampleQuestion], as_json: bool) -> list[tuple[Answer, Answer]]:
    from sac_rag.config import AskConfig
    from sac_rag.evaluate.metrics import contains

    ask, found = AskConfig(), []
    with console.working("warming up"):
        answers.warm_up(rag, asked[0].question, ask)
    for sample in asked:
        compressed, text = answers.both_ways(rag, sample.question, ask)
        found.append((compressed, text))
        if not as_json:
            source = compressed.sources[0].passage.document.rpartition("/")[2] if compressed.sources else "no source"
            verdict = "right" if contains(compressed.text, sample.answers) else f"wrong, it is {sample.answers[0]}"
            console.table((), [(f"Q {sample.question}",), (f"A {compressed.text}",), (f"  {verdict}; from {source}",)])
    return found


def _finish(
    rag: SacRag,
    folder: str,
    report: Any,
    asked: Sequence[SampleQuestion],
    results: Sequence[tuple[Answer, Answer]],
    as_json: bool,
) -> None:
    from sac_rag.evaluate.metrics import contains

    right = [[contains(answer.text, s.answers) for answer in pair] for s, pair in zip(asked, results, strict=True)]
    compressed, text = (
        answers.summary([pair[side] for pair in results], sum(r[side] for r in right), rag.slot_bytes)
        for side in (0, 1)
    )
    if as_json:
        questions = [
            {"question": s.question, "accepted": list(s.answers), "right": r[0], "text_right": r[1]}
            | answers.both_dict(*pair)
            for s, pair, r in zip(asked, results, right, strict=True)
        ]
        index = indexing.report_dict(rag, report)
        summary = {"compressed": compressed, "text": text}
        console.emit({"library": folder, "index": index, "questions": questions, "summary": summary})
        return

    def row(title: str, name: str, show: Callable[[Any], str]) -> tuple[str, ...]:
        gain = f"{text[name] / compressed[name]:.1f}x less" if compressed[name] else ""
        return title, show(compressed[name]), show(text[name]), gain

    console.table(
        ("median", "compressed", "text", ""),
        [
            row("time to first token (s)", "first_token_s", "{:.3f}".format),
            row("tokens attended", "tokens_attended", "{:.0f}".format),
            row("bytes in memory", "kv_bytes", console.size),
            ("right answers", *(f"{side['right']} of {side['questions']}" for side in (compressed, text)), ""),
        ],
    )
