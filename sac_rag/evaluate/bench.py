"""Compressed against text, side by side in one process: time to first token, tokens attended, bytes.

`python -m sac_rag.evaluate.bench` (or `make bench`) indexes the sample documents and prints two tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from sac_rag.answer.chat import Message, layout_messages
from sac_rag.answer.reader import Sampling, decode
from sac_rag.config import AskConfig, IndexConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate import cold
from sac_rag.evaluate.metrics import contains
from sac_rag.indexing import IndexReport
from sac_rag.library.codecs import CODECS, get_codec, is_fitted
from sac_rag.models.adapters import codec_state
from sac_rag.pipeline import SacRag
from sac_rag.records import Answer, Hit
from sac_rag.samples import SampleQuestion, documents, questions


@dataclass(frozen=True)
class Latency:
    """Medians over rounds. text_s and memory_s: seconds to the first token; memory_s includes retrieval and loading."""

    passages: int
    source_tokens: int
    text_attended: int
    memory_attended: int
    text_s: float
    memory_s: float
    retrieve_s: float
    load_s: float
    speedup: float
    """Median of the ratios taken pair by pair."""


def pair(rag: SacRag, question: str, hits: Sequence[Hit] | None, ask: AskConfig) -> tuple[Answer, Answer]:
    """The same question answered from memory and from text, over the same passages, one after the other.

    The memory answer retrieves and loads; the text answer is handed the hits, which favours it.
    """
    memory = rag.ask(question, ask, hits=hits)
    return memory, rag.ask(question, ask, hits=memory.sources, text=True)


def latency(rag: SacRag, questions: Sequence[str], *, k: int, rounds: int) -> Latency:
    """Time to first token with k retrieved passages, alternating the two ways; the first pair is not counted."""
    ask = AskConfig(k=k, max_new_tokens=1)
    pair(rag, questions[0], None, ask)
    pairs = [pair(rag, questions[i % len(questions)], None, ask) for i in range(rounds)]
    memory, text = [m for m, _ in pairs], [t for _, t in pairs]
    return Latency(
        passages=round(median(len(m.sources) for m in memory)),
        source_tokens=round(median(m.usage.source_tokens for m in memory)),
        text_attended=round(median(t.usage.attended for t in text)),
        memory_attended=round(median(m.usage.attended for m in memory)),
        text_s=median(t.timings.first_token_s for t in text),
        memory_s=median(m.timings.first_token_s for m in memory),
        retrieve_s=median(m.timings.retrieve_s for m in memory),
        load_s=median(m.timings.load_s for m in memory),
        speedup=median(t.timings.first_token_s / m.timings.first_token_s for m, t in pairs),
    )


def storage(rag: SacRag, ratios: Sequence[float], *, sample: int = 32) -> list[dict[str, float | str]]:
    """Bytes per source token of each codec at each ratio, and the largest relative error of the codec."""
    texts = [p.text for p in rag.library.passages()[:sample]]
    rows: list[dict[str, float | str]] = []
    for ratio in ratios:
        began = time.perf_counter()
        memories = rag.engine.compress(texts, ratio)
        seconds = time.perf_counter() - began
        tokens = sum(m.source_len for m in memories)
        state = codec_state(rag.engine.adapter_path)
        for name in sorted(name for name in CODECS if state or not is_fitted(name)):
            codec = get_codec(name, state)
            stored = [codec.encode(m) for m in memories]
            back = [codec.decode(s) for s in stored]
            error = max(
                float((a.keys.float() - b.keys.float()).norm() / a.keys.float().norm())
                for a, b in zip(memories, back, strict=True)
            )
            size = sum(t.nbytes for s in stored for t in s.values())
            rows.append(
                {
                    "ratio": ratio,
                    "realised": tokens / sum(m.anchors for m in memories),
                    "codec": name,
                    "bytes_per_source_token": size / tokens,
                    "key_error": error,
                    "tokens_per_s": tokens / seconds,
                }
            )
    return rows


def indexing(
    paths: str | Path | Sequence[str],
    workers: Sequence[int | None],
    config: IndexConfig | None = None,
    *,
    rounds: int = 3,
) -> list[dict[str, float | str]]:
    """How fast documents are indexed by child processes of one thread beside this process with its own threads (None),
    in turn. tokens_per_s: from the first passages that are compressed on, when the models are loaded; ids and bytes of
    what is stored are compared with those of the first way."""
    seconds: dict[int | None, list[float]] = {count: [] for count in workers}
    speeds: dict[int | None, list[float]] = {count: [] for count in workers}
    same: dict[int | None, bool] = {}
    first: dict[str, bytes] = {}
    for _ in range(rounds):
        for count in workers:
            heard: list[tuple[float, int]] = []

            def listen(report: IndexReport, heard: list[tuple[float, int]] = heard) -> None:
                if report.tokens and (not heard or report.tokens > heard[-1][1]):
                    heard.append((time.perf_counter(), report.tokens))

            with tempfile.TemporaryDirectory() as folder:
                rag = SacRag.open(Path(folder) / "a.lib", config=config or IndexConfig(), create=True)
                with rag:
                    began = time.perf_counter()
                    rag.add(paths, workers=count, listen=listen)
                    seconds[count].append(time.perf_counter() - began)
                    stored = {d.uri: d for d in rag.library.documents()}
                    found = {f.name: f.read_bytes() for f in sorted(rag.library.path.glob("seg-*"))}
            first = first or found
            same[count] = bool(stored) and found == first
            if len(heard) < 2:
                raise ConfigError(f"{paths} is indexed in one batch: name more documents to measure a speed")
            speeds[count].append((heard[-1][1] - heard[0][1]) / (heard[-1][0] - heard[0][0]))
    return [
        {
            "workers": "this process" if count is None else str(count),
            "threads": str(torch.get_num_threads() if count is None else 1),
            "seconds": median(seconds[count]),
            "tokens_per_s": median(speeds[count]),
            "same_bytes": str(same[count]),
        }
        for count in workers
    ]


def answers(rag: SacRag, asked: Sequence[SampleQuestion], ks: Sequence[int]) -> list[dict[str, float | str]]:
    """How many sample questions are answered right from k passages, from memory and from their text."""
    rows: list[dict[str, float | str]] = []
    for k in ks:
        pairs = [pair(rag, q.question, None, AskConfig(k=k, max_new_tokens=24)) for q in asked]
        rows.append(
            {
                "k": k,
                "questions": len(asked),
                "found": sum(
                    any(contains(h.passage.text, q.answers) for h in m.sources)
                    for q, (m, _) in zip(asked, pairs, strict=True)
                ),
                "right_from_memory": sum(contains(m.text, q.answers) for q, (m, _) in zip(asked, pairs, strict=True)),
                "right_from_text": sum(contains(t.text, q.answers) for q, (_, t) in zip(asked, pairs, strict=True)),
            }
        )
    return rows


def conversation_of(rag: SacRag, question: str) -> list[Message]:
    """A question behind the best passage's tag, as a chat sends it."""
    (hit, *_) = rag.retrieve(question, AskConfig(k=1))
    messages = layout_messages(rag.engine.method, rag.tag(hit.passage.id), question)
    return [Message(role, rag.cite(text)) for role, text in messages]


def together(rag: SacRag, questions: Sequence[str], *, tokens: int = 48) -> dict[str, float | str]:
    """Conversations one after the other against all at once, each answer of exactly `tokens` tokens."""
    asked = [conversation_of(rag, q) for q in questions]
    sampling = Sampling(max_new_tokens=tokens, min_new_tokens=tokens)
    service, prompts = rag.engine.service, [rag.conversation(m, sampling) for m in asked]
    list(service.submit(prompts[0], sampling))
    began = time.perf_counter()
    serial = [list(service.submit(p, sampling)) for p in prompts]
    between = time.perf_counter()
    parallel = [list(g) for g in [service.submit(p, sampling) for p in prompts]]
    ended = time.perf_counter()
    return {
        "calls": len(prompts),
        "tokens": tokens,
        "serial_s": between - began,
        "parallel_s": ended - between,
        "throughput": (between - began) / (ended - between),
        "equal_answers": sum(a == b for a, b in zip(serial, parallel, strict=True)),
    }


def turns(rag: SacRag, question: str, count: int = 8) -> list[dict[str, float | str]]:
    """Time to first token of each turn of a conversation, and what it found read already."""
    messages, rows = conversation_of(rag, question), list[dict[str, float | str]]()
    for turn in range(1, count + 1):
        began = time.perf_counter()
        generation = rag.converse(messages, Sampling(max_new_tokens=16, min_new_tokens=4))
        ids = [next(generation)]
        first = time.perf_counter() - began
        ids += generation
        rows.append({"turn": turn, "first_token_s": first, "slots_reused": generation.reused})
        text = decode(rag.engine.method.backbone.tokenizer, ids)
        messages += [Message("assistant", (text,)), Message("user", ("What else does the text say about it?",))]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or one JSON object with --json."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m sac_rag.evaluate.bench", description=__doc__)
    parser.add_argument("--library", help="an existing library (default: index the sample documents)")
    parser.add_argument("-k", type=int, default=10, help="passages per question (default 10)")
    parser.add_argument("--rounds", type=int, default=7, help="pairs timed per ratio (default 7)")
    parser.add_argument("--ratio", type=float, action="append", help="ratios to index at (default 5 and 15)")
    parser.add_argument("--answers", action="store_true", help="also answer all sample questions with 1, 3, 5 passages")
    parser.add_argument("--serving", action="store_true", help="also 16 conversations at once, and 8 turns of one")
    parser.add_argument("--indexing", action="store_true", help="only index, in this process and in 1 and 2 workers")
    parser.add_argument("--cold", action="store_true", help="only time whole processes")
    parser.add_argument("--documents", help="what --indexing indexes (default: the sample documents)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    ratios = args.ratio or [5.0, 15.0]
    asked = questions()
    results: dict[str, list[dict[str, float | str]]] = {"latency": [], "storage": [], "answers": []}
    if args.indexing:
        results["indexing"] = indexing(args.documents or documents(), (None, 1, 2))
        ratios = []
    with tempfile.TemporaryDirectory() as folder:
        if args.cold:
            library, ratios = args.library or str(Path(folder) / "cold.lib"), []
            if not args.library:
                SacRag.index(documents(), library).close()
            results["processes"] = cold.processes(library, asked[0].question, args.rounds)
            results["seconds of a cold question"] = cold.seconds(library, asked[0].question)
        for ratio in ratios:
            if args.library:
                rag = SacRag.open(args.library)
            else:
                print(f"indexing the sample documents at {ratio:g}x ...", file=sys.stderr)
                rag = SacRag.index(documents(), Path(folder) / f"{ratio:g}.lib", IndexConfig(ratio=ratio))
            with rag:
                row = dataclasses.asdict(latency(rag, [q.question for q in asked], k=args.k, rounds=args.rounds))
                results["latency"].append({"ratio": rag.config.ratio, **row})
                if not results["storage"]:
                    results["storage"] = storage(rag, ratios)
                if args.answers:
                    results["answers"] += [{"ratio": rag.config.ratio, **r} for r in answers(rag, asked, (1, 3, 5))]
                if args.serving and ratio == ratios[0]:
                    results["together"] = [together(rag, [q.question for q in asked[:16]])]
                    results["turns"] = turns(rag, asked[0].question)
            if args.library:
                break
    if args.json:
        print(json.dumps(results))
        return 0
    console = Console()
    for name, rows in results.items():
        if not rows:
            continue
        table = Table(title=name)
        for column in rows[0]:
            table.add_column(column.replace("_", " "), justify="right")
        for r in rows:
            table.add_row(*(v if isinstance(v, str) else f"{v:,.4g}" for v in r.values()))
        console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
