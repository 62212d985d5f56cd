"""How long questions take by several ways side by side: text, memories at several ratios, full KV, llama.cpp.

All ways take turns in each round, and what is told are medians over rounds, of ratios too: a machine that slows down
slows all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from sac_rag.answer.reader import Reader, Sampling
from sac_rag.config import AskConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate.cost import measured
from sac_rag.evaluate.machine import Machine, Work
from sac_rag.pipeline import SacRag
from sac_rag.records import Hit

TEXT = "text"
Listen = Callable[[str, str, int, int], None]
"""(what is measured, by which way, how many, of how many)"""
Row = dict[str, float | str]


@dataclass(frozen=True)
class Took:
    """One answer: seconds to its first token and its last, of which finding and loading; slots read and attended."""

    first_s: float
    total_s: float
    retrieve_s: float
    load_s: float
    passages: int
    source_tokens: int
    prompt_tokens: int
    attended: int
    tokens: int


TimedReader = Callable[[str, AskConfig, Sequence[Hit]], Took]
"""Answers a question; passages are given to those that do not search themselves."""


def memory(rag: SacRag) -> TimedReader:
    """By memories, found and loaded anew for each question."""
    return lambda question, ask, hits: _took(rag, question, ask, None, text=False)


def text(rag: SacRag) -> TimedReader:
    """By the text of the passages that memories were of, without looking for them, which favours it."""
    return lambda question, ask, hits: _took(rag, question, ask, hits, text=True)


def _took(rag: SacRag, question: str, ask: AskConfig, hits: Sequence[Hit] | None, *, text: bool) -> Took:
    a = rag.ask(question, ask, hits=hits, text=text)
    t, u = a.timings, a.usage
    return Took(
        *(t.first_token_s, t.total_s, t.retrieve_s, t.load_s, len(a.sources), u.source_tokens),
        *(u.prompt_tokens, u.attended, u.completion_tokens),
    )


def llama_cpp(rag: SacRag, gguf: str | Path, *, threads: int | None = None) -> TimedReader:
    """By llama.cpp, which reads the same tokens from a .gguf file of the same model. Raises ConfigError without it."""
    try:
        import llama_cpp as package
    except ImportError as error:
        raise ConfigError("llama-cpp-python is not installed: pip install 'sac-rag[llama-cpp]'") from error
    backbone = rag.engine.method.backbone
    model = package.Llama(
        str(gguf), n_ctx=backbone.context_length, n_threads=threads or torch.get_num_threads(), verbose=False
    )

    def way(question: str, ask: AskConfig, hits: Sequence[Hit]) -> Took:
        laid = rag.assemble(hits, question, ask, text=True)
        ids = [t for part in laid.prompt.parts if isinstance(part, Sequence) for t in part]
        model.reset()  # else it goes on from what it read before
        began, pieces, first = time.perf_counter(), 0, 0.0
        for _ in model.create_completion(ids, max_tokens=ask.max_new_tokens, temperature=0.0, stream=True):
            first = first or time.perf_counter() - began
            pieces += 1
        total = time.perf_counter() - began
        return Took(first, total, 0.0, 0.0, len(laid.hits), laid.source_tokens, len(ids), len(ids), pieces)

    return way


def first_tokens(
    ways: Mapping[str, TimedReader],
    finder: SacRag,
    questions: Sequence[str],
    ks: Sequence[int],
    *,
    machine: Machine,
    rounds: int = 7,
    tokens: int = 20,
    listen: Listen | None = None,
) -> list[Row]:
    """Seconds to the first token and to the whole answer, by each way and number of passages.

    finder: finds the passages for ways that are given them. sooner, ended_sooner: how many times sooner than by text.
    read_s: what is left of the first token without finding and loading. floor_s: what reading the prompt needs at least
    on this machine; of_floor: how many times that the first token took. The first round is not counted.
    """
    backbone, rows = finder.engine.method.backbone, list[Row]()
    for k in ks:
        ask = AskConfig(k=k, max_new_tokens=tokens)
        taken: dict[str, list[Took]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            question = questions[turn % len(questions)]
            hits = finder.retrieve(question, ask)
            for name, way in ways.items():
                answer = way(question, ask, hits)
                if turn:
                    taken[name].append(answer)
                if listen:
                    listen(f"{k} passages", name, turn + 1, rounds + 1)
        for name, found in taken.items():
            middle = {f: median(getattr(t, f) for t in found) for f in Took.__dataclass_fields__}
            slots = max(0, round(middle["attended"] - middle["prompt_tokens"]))
            least = Work.of(backbone, round(middle["prompt_tokens"]), slots)
            floor = machine.least(least.bytes_moved, least.flops)
            against = taken.get(TEXT)
            rows.append(
                {
                    **{"passages": round(middle["passages"]), "way": name},
                    **{f: round(middle[f]) for f in ("source_tokens", "attended", "tokens")},
                    **{"first_token_s": middle["first_s"], "answer_s": middle["total_s"]},
                    **{f: middle[f] for f in ("retrieve_s", "load_s")},
                    "read_s": median(t.first_s - t.retrieve_s - t.load_s for t in found),
                    **{"floor_s": floor, "of_floor": middle["first_s"] / floor},
                    "sooner": _ratio(against, found, "first_s"),
                    "ended_sooner": _ratio(against, found, "total_s"),
                }
            )
    return rows


def _ratio(against: Sequence[Took] | None, found: Sequence[Took], name: str) -> float | str:
    """Median of ratios taken round by round."""
    if not against:
        return ""
    return median(getattr(a, name) / getattr(f, name) for a, f in zip(against, found, strict=True))


def cold(rag: SacRag, question: str, *, k: int, tokens: int, rounds: int = 3) -> list[Row]:
    """One question from a process that has to be started, from one that has just opened the library while its files
    are out of the system's cache, and from one that has answered before."""
    ask, where = AskConfig(k=k, max_new_tokens=tokens), str(rag.library.path)
    device, dtype = rag.engine.device.type, str(rag.engine.dtype).removeprefix("torch.")
    script = (
        "import sys; from sac_rag import AskConfig, SacRag\n"
        "rag = SacRag.open(sys.argv[1], device=sys.argv[3], dtype=sys.argv[4])\n"
        "print(rag.ask(sys.argv[2], AskConfig(k=int(sys.argv[5]), max_new_tokens=int(sys.argv[6]))).text)"
    )
    command = [sys.executable, "-c", script, where, question, device, dtype, str(k), str(tokens)]
    seconds: dict[str, list[float]] = {"process": [], "disk": [], "warm": []}
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds["process"].append(time.perf_counter() - began)
        forgotten = _forget(rag.library.path)
        began = time.perf_counter()
        with SacRag.open(where, device=device, dtype=dtype) as other:
            other.ask(question, ask)
            if forgotten:
                seconds["disk"].append(time.perf_counter() - began)
            began = time.perf_counter()
            other.ask(question, ask)
            seconds["warm"].append(time.perf_counter() - began)
    return [{"cold": name, "answer_s": median(found)} for name, found in seconds.items() if found]


def _forget(folder: Path) -> bool:
    """Put a library's files out of the system's cache; False where the system cannot be told to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return True


def serving(
    rag: SacRag,
    questions: Sequence[str],
    in_flight: Sequence[int],
    *,
    k: int,
    tokens: int,
    listen: Listen | None = None,
) -> list[Row]:
    """Questions a second with so many under way at the same time, from memory and from text."""
    ask, rows = AskConfig(k=k, max_new_tokens=tokens), list[Row]()
    for count in in_flight:
        asked = [questions[i % len(questions)] for i in range(max(count, 2) * 2)]
        row: Row = {"in_flight": count, "questions": len(asked), "passages": k}
        for name in ("memory", TEXT):

            def one(question: str, text: bool = name == TEXT) -> str:
                return rag.ask(question, ask, text=text).text

            one(asked[0])
            began = time.perf_counter()
            with ThreadPoolExecutor(count) as pool, measured(rag.engine.device) as cost:
                list(pool.map(one, asked))
            row[f"{name}_per_s"] = len(asked) / (time.perf_counter() - began)
            row[f"{name}_peak_mib"] = cost.peak_mib or 0.0
            if listen:
                listen("in flight", f"{count} by {name}", 1, 1)
        row["times"] = float(row["memory_per_s"]) / float(row["text_per_s"])
        rows.append(row)
    return rows


def compressing(
    rag: SacRag, ratios: Sequence[float], machine: Machine, *, passages: int = 32, rounds: int = 5
) -> list[Row]:
    """Compressing against a plain prefill of the same tokens by the same model, in turn: tokens a second of both."""
    texts = [p.text for p in rag.library.passages()[:passages]]
    backbone = rag.engine.method.backbone
    chunks = [torch.tensor(backbone.tokens(t)) for t in texts]
    tokens = sum(map(len, chunks))
    least = Work.of(backbone, tokens, scored=False)
    # Chunks see themselves alone, and are read in several passes.
    floor = machine.least(least.bytes_moved, sum(Work.of(backbone, len(c), scored=False).flops for c in chunks))

    def prefill() -> None:
        with rag.engine.busy(), torch.inference_mode():
            for at in range(0, len(chunks), 8):
                part = chunks[at : at + 8]
                picks = [backbone.even(torch.arange(len(c))) for c in part]
                backbone.encode(part, picks, causal=True, use_lora=False)

    rows = []
    for ratio in ratios:
        compressed, read = list[float](), list[float]()
        for turn in range(rounds + 1):
            for work, seconds in ((lambda: rag.engine.compress(texts, ratio), compressed), (prefill, read)):  # noqa: B023
                began = time.perf_counter()
                work()
                if turn:
                    seconds.append(time.perf_counter() - began)
        rows.append(
            Row(
                ratio=ratio,
                tokens=tokens,
                compressing_per_s=tokens / median(compressed),
                prefill_per_s=tokens / median(read),
                of_prefill=median(r / c for r, c in zip(read, compressed, strict=True)),
                floor_per_s=tokens / floor,
            )
        )
    return rows


def decoding(
    rag: SacRag, questions: Sequence[str], machine: Machine, *, k: int, tokens: int, rounds: int = 5
) -> list[Row]:
    """Tokens a second behind the first, of answers as they end by themselves and of one that goes on for `tokens`, one
    by one, without drafts and with them; and the passes a second that reading the weights allows."""
    usual = rag.engine.reader
    plain = Reader(usual.backbone, sorted(usual.stop_ids), use_lora=usual.use_lora, draft_tokens=0)
    free = Sampling(max_new_tokens=tokens)
    cases = {"answers": (questions, free), "long": (questions[:1], replace(free, min_new_tokens=tokens))}
    prompts = {
        q: rag.assemble(rag.retrieve(q, AskConfig(k=k)), q, AskConfig(k=k, max_new_tokens=tokens)).prompt
        for q in questions
    }
    rows: list[Row] = []
    for name, (asked, sampling) in cases.items():
        for reader in (plain, usual):
            seconds, written, passes = list[float](), 0, 0
            for turn in range(rounds + 1):
                spent, written, passes = 0.0, 0, 0
                for question in asked:
                    with rag.engine.busy():
                        running = reader.start()
                        (row,) = running.admit([prompts[question]], [sampling])
                        began = time.perf_counter()
                        while not running.done:
                            running.advance()
                    spent += time.perf_counter() - began
                    written += len(row.completion.token_ids) + row.completion.ended - 1
                    passes += row.passes
                if turn:
                    seconds.append(spent)
            slots = sum(prompts[q].slots + prompts[q].tokens for q in asked) // len(asked)
            least = Work.of(usual.backbone, 1, slots)
            rows.append(
                {
                    "text": name,
                    "drafts of": reader.draft_tokens,
                    "questions": len(asked),
                    "tokens": written,
                    "passes": passes,
                    "tokens_per_s": written / median(seconds) if seconds else 0.0,
                    "floor_passes_per_s": 1 / machine.least(least.bytes_moved, least.flops),
                }
            )
    return rows
