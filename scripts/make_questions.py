"""Questions on passages that have none: a trained generator asks for spans of them, and Full-FT must find the same.

    sac train --method full-ft ask:DIR/qa/squad.train.jsonl.gz … --output runs/generator
    python scripts/make_questions.py DIR/lm/train-00.jsonl.gz=0.3 \\
        --titled DIR/qa/hotpotqa.train.jsonl.gz=0.5 --titled DIR/qa/2wikimultihopqa.train.jsonl.gz=0.2 \\
        --not-in DIR/qa/hotpotqa.test.jsonl.gz --not-in DIR/qa/2wikimultihopqa.test.jsonl.gz \\
        --generator runs/generator --count 60000 --output DIR/qa/asked.train.jsonl.gz

Passages are contexts and texts of the files, cut at ends of sentences where they are long, or with --titled the titled
paragraphs that contexts consist of, whole. Of each some names, numbers, dates and noun phrases are asked for, about
half of them out of one sentence, so that its roles must be told apart. A question is kept where Full-FT, asked it on
the passage, agrees with the span (roundtrip consistency, Alberti et al. 2019); its answer comes first, the span second.
Questions that hold their answer, are short, closed (yes/no, "A or B"), asked before, or in a file of --not-in are left
out, and so are passages that share a sentence with such a file.

What has been made lies in OUTPUT.parts: the same command goes on from there, also with another --count.
Prints what was found; the same seed makes the same file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from comparisons import paragraphs
from rich.console import Console
from rich.progress import Progress

from sac_rag.answer.assemble import question_ids
from sac_rag.answer.engine import Engine
from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Reader, Sampling, decode
from sac_rag.compress.adapter import write_atomic
from sac_rag.config import DEFAULT_MODEL, MAX_PASSAGE_TOKENS
from sac_rag.errors import ConfigError, SacError
from sac_rag.evaluate.metrics import contains, normalise, token_f1
from sac_rag.evaluate.prompts import ANSWER_TOKENS
from sac_rag.evaluate.tasks import set_name
from sac_rag.records import Document
from sac_rag.text.passages import offsets_of, split
from sac_rag.train.choices import LONGEST
from sac_rag.train.cloze import sentences, spans_of
from sac_rag.train.data import SHORTEST, read_contexts
from sac_rag.train.generation import instruction, is_open
from sac_rag.train.specs import sources_of

METHOD = "full-ft"
"""What writes questions and what answers them: both read the whole passage."""
GROUP = 4
"""Batches of questions that are written before their part is: a few minutes on a CPU."""
MOST = 8
"""Passages of one text, at most: a book is no better than an article."""
SEVERAL = 3
"""Spans of a sentence from which on several of them are asked for."""
WORDS = 8
"""Words of a sentence by which passages are told to be the same."""
QUESTION_TOKENS = 48

Cut = Callable[[str, bool], list[str]]
"""A text, and whether it is a titled paragraph -> its passages."""


@dataclass(frozen=True)
class File:
    """A file of passages, and how often one of it is drawn. titled: its contexts consist of titled paragraphs."""

    path: Path
    weight: float
    titled: bool = False

    def check(self) -> None:
        if not self.path.is_file():
            raise ConfigError(f"no file of passages at {self.path}; give a .jsonl.gz file of contexts or texts")
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"the weight of {self.path} is {self.weight:g}; it must be above 0")

    def texts(self) -> list[tuple[str, str]]:
        """(text, where it is from) of all of them."""
        if self.titled:
            return [(f"{title}\n{text}", set_name(self.path)) for title, text in paragraphs([self.path])]
        return [(c.text, c.source) for c in read_contexts(self.path) if c.text.strip()]

    def passages(self, cut: Cut, seed: int) -> Iterator[tuple[str, str]]:
        """(passage, where it is from), in an order that follows from the seed."""
        texts, rng = self.texts(), random.Random(f"{seed}/{self.path.name}")
        rng.shuffle(texts)
        for text, source in texts:
            parts = cut(text, self.titled)
            for part in rng.sample(parts, min(MOST, len(parts))):
                yield part, source


@dataclass
class HeldOut:
    """What must not be made: passages and questions of files that are not for training."""

    parts: set[str] = field(default_factory=set)
    questions: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, files: Iterable[Path]) -> HeldOut:
        held = cls()
        for file in files:
            for context in read_contexts(file):
                held.parts |= parts_of(context.text)
                held.questions |= {normalise(q.question) for q in context.questions}
        return held


def parts_of(text: str) -> set[str]:
    """A text as a whole and its longer sentences, normalised."""
    found = (normalise(sentence) for sentence in sentences(text))
    return {normalise(text), *(part for part in found if len(part.split()) >= WORDS)}


def drawn(files: Sequence[File], held: HeldOut, cut: Cut, seed: int) -> Iterator[tuple[str, str]]:
    """Passages of all files, each once: a file is drawn by its weight until it has no more."""
    rng, seen = random.Random(seed), set[str]()
    left = [(file.weight, file.passages(cut, seed)) for file in files]
    while left:
        (at,) = rng.choices(range(len(left)), [weight for weight, _ in left])
        found = next(left[at][1], None)
        if found is None:
            del left[at]
        elif found[0] not in seen and not parts_of(found[0]) & held.parts:
            seen.add(found[0])
            yield found


def candidates(text: str, most: int, rng: random.Random) -> list[str]:
    """Up to so many spans of a passage that can be asked for: half of them of one sentence that has several, where
    there is one, the others of any; no two the same. Phrases are drawn half as readily as names, numbers and dates."""
    found = [
        (sentence, words, kind)
        for sentence in sentences(text)
        for words, kind in spans_of(sentence, short=True)
        if len(words.split()) <= LONGEST
    ]
    found.sort(key=lambda span: rng.random() ** (1.0 if span[2] == "phrase" else 0.5), reverse=True)
    held = Counter(sentence for sentence, _, _ in found)
    full = sorted(sentence for sentence, count in held.items() if count >= SEVERAL)
    one = rng.choice(full) if full else ""
    chosen: dict[str, str] = {}
    for _, words, _ in [*[span for span in found if span[0] == one][: (most + 1) // 2], *found]:
        chosen.setdefault(words.lower(), words)
    return list(chosen.values())[:most]


def fault(question: str, span: str, shortest: int) -> str:
    """What is wrong with a question by itself; "" where nothing is."""
    if len(question.split()) < shortest:
        return "too short"
    if contains(question, [span]):
        return "holds its answer"
    return "" if is_open(question) else "closed"


class Speaker:
    """A Full-FT adapter that says something to each of several things asked of a text, greedily.

    Its LoRA is folded into the weights, a text is read once for all that is asked of it, and all rows take a step
    together: bits may differ with what else is asked, which nothing here depends on.
    """

    def __init__(self, engine: Engine) -> None:
        self.method, self.adapter_sha256 = engine.method, engine.adapter_sha256
        backbone = engine.method.backbone.folded()
        backbone.pack()
        backbone.is_batch_invariant = True
        self.reader = Reader(backbone, sorted(engine.reader.stop_ids))

    def say(self, texts: Sequence[str], asked: Sequence[Sequence[str]], tokens: int, batch: int) -> list[list[str]]:
        """Answers of at most so many tokens, a list for each text; `batch` rows at once, or those of one text."""
        said: dict[int, list[str]] = {}
        rows: list[int] = []
        for at, own in enumerate(asked):
            if rows and sum(len(asked[i]) for i in rows) + len(own) > batch:
                said |= self._say(texts, asked, rows, tokens)
                rows = []
            if own:
                rows.append(at)
        said |= self._say(texts, asked, rows, tokens) if rows else {}
        return [said.get(at, []) for at in range(len(texts))]

    @torch.inference_mode()
    def _say(
        self, texts: Sequence[str], asked: Sequence[Sequence[str]], rows: Sequence[int], tokens: int
    ) -> dict[int, list[str]]:
        method, owners = self.method, [i for i in rows for _ in asked[i]]
        front = method.backbone.template(method.layout.prefix)
        decoding = self.reader.start()
        read = {i: [*front, *method.backbone.tokens(texts[i])] for i in rows}
        session = decoding.read([[ids] for ids in read.values()])
        session.keep([rows.index(i) for i in owners])
        decoding.read([[question_ids(method, question)] for i in rows for question in asked[i]], session)
        made = decoding.enter(session, [Prompt((read[i],)) for i in owners], [Sampling(tokens)] * len(owners))
        while not decoding.done:
            decoding.advance()
        said: dict[int, list[str]] = {i: [] for i in rows}
        for owner, row in zip(owners, made, strict=True):
            said[owner].append(decode(method.backbone.tokenizer, row.completion.token_ids).strip())
        return said


@dataclass
class Maker:
    """What makes questions of passages. held: what must not be made, and in its questions what has been."""

    generator: Speaker
    answerer: Speaker
    held: HeldOut
    given: argparse.Namespace

    def make(self, group: Sequence[tuple[str, str]]) -> tuple[list[dict[str, Any]], Counter[str]]:
        """Lines of a file of questions, for those passages that have some, and how many questions came to what."""
        given, counts = self.given, Counter[str]()
        spans = [candidates(text, given.each, random.Random(f"{given.seed}/{text}")) for text, _ in group]
        texts = [text for text, _ in group]
        asked = self.generator.say(texts, [[*map(instruction, s)] for s in spans], QUESTION_TOKENS, given.batch)
        pairs: list[list[tuple[str, str]]] = [[] for _ in group]
        for kept, questions, own in zip(pairs, asked, spans, strict=True):
            for question, span in zip(questions, own, strict=True):
                wrong = fault(question, span, given.shortest) or self._made(question)
                counts[wrong or "asked"] += 1
                if not wrong:
                    kept.append((question, span))
        answers = self.answerer.say(texts, [[q for q, _ in p] for p in pairs], ANSWER_TOKENS, given.batch)
        rows = []
        for (text, source), own_pairs, found in zip(group, pairs, answers, strict=True):
            qas = []
            for (question, span), answer in zip(own_pairs, found, strict=True):
                wrong = self._made(question) or ("" if token_f1(answer, span) >= given.agreement else "other answer")
                counts[wrong or "kept"] += 1
                if not wrong:
                    self.held.questions.add(normalise(question))
                    qas.append({"question": question, "answers": list(dict.fromkeys(a for a in (answer, span) if a))})
            if qas:
                rows.append({"context": text, "qas": qas, "source": source})
        return rows, counts

    def _made(self, question: str) -> str:
        return "asked before" if normalise(question) in self.held.questions else ""


class Parts:
    """Lines of finished groups, each with the passages drawn so far, behind a first one with the settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.passages = 0
        self.counts = Counter[str]()
        self.rows: list[dict[str, Any]] = []
        if not path.exists():
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            return
        whole = path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]  # a last line that was being written is made again
        first, *lines = whole.splitlines() or [b"{}"]
        before = json.loads(first)
        if changed := [name for name in settings if before.get(name) != settings[name]]:
            told = ", ".join(f"{name} {before.get(name)!r}, now {settings[name]!r}" for name in changed)
            raise ConfigError(f"{path} was begun with {told}: give the same settings, or delete it to begin anew")
        path.write_bytes(whole)
        for line in lines:
            self._take(json.loads(line))

    @property
    def kept(self) -> int:
        return self.counts["kept"]

    def add(self, passages: int, rows: list[dict[str, Any]], counts: Counter[str]) -> None:
        part = {"passages": self.passages + passages, "counts": counts, "rows": rows}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(part, ensure_ascii=False) + "\n")
        self._take(part)

    def _take(self, part: dict[str, Any]) -> None:
        self.passages = part["passages"]
        self.counts.update(part["counts"])
        self.rows += part["rows"]

    def first(self, count: int) -> list[dict[str, Any]]:
        """Lines with so many questions, or all."""
        lines = []
        for row in self.rows:
            if count <= 0:
                break
            lines.append({**row, "qas": row["qas"][:count]})
            count -= len(row["qas"])
        return lines


def make(given: argparse.Namespace) -> dict[str, Any]:
    """Write the file of questions; what was found."""
    how = {"device": given.device, "dtype": given.dtype}
    generator, answerer = (Speaker(Engine(given.model, METHOD, at, **how)) for at in (given.generator, given.answerer))
    aside = ("output", "count", "generator", "answerer")
    settings = {name: value for name, value in vars(given).items() if name not in aside}
    settings = {name: [*map(str, value)] if isinstance(value, list) else value for name, value in settings.items()}
    settings |= {"generator": generator.adapter_sha256, "answerer": answerer.adapter_sha256}
    parts = Parts(given.output.with_name(given.output.name + ".parts"), settings)
    files = [File(Path(path), weight) for path, weight in sources_of(given.files)]
    files += [File(Path(path), weight, titled=True) for path, weight in sources_of(given.titled)]
    for file in files:
        file.check()
    held, offsets = HeldOut.of(given.not_in), offsets_of(generator.method.backbone.tokenizer)
    held.questions |= {normalise(qa["question"]) for row in parts.rows for qa in row["qas"]}

    def cut(text: str, titled: bool) -> list[str]:
        most = MAX_PASSAGE_TOKENS if titled else given.passage_tokens  # a piece without its title says of nobody
        found = split(Document("", text), offsets, max_tokens=most)
        return [passage.text for passage in found if passage.tokens >= SHORTEST]

    size = max(1, GROUP * given.batch // given.each)
    maker = Maker(generator, answerer, held, given)
    stream = islice(drawn(files, held, cut, given.seed), parts.passages, None)
    console = Console(stderr=True)
    with Progress(console=console) as bar:
        task = bar.add_task("questions", total=given.count, completed=min(parts.kept, given.count))
        while parts.kept < given.count and (group := list(islice(stream, size))):
            begun = time.monotonic()
            rows, counts = maker.make(group)
            parts.add(len(group), rows, counts)
            bar.update(task, completed=min(parts.kept, given.count))
            if not console.is_terminal:
                speed = counts["kept"] / (time.monotonic() - begun)
                console.print(f"{parts.kept:,} of {given.count:,} questions, {speed:.2f} a second")
    lines = parts.first(given.count)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(given.output, gzip.compress(text.encode(), mtime=0))
    return {
        "passages": parts.passages,
        **dict(sorted(parts.counts.items())),
        "contexts": len(lines),
        "questions": sum(len(line["qas"]) for line in lines),
        "from": dict(Counter(line["source"] for line in lines)),
    }


def settings_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="PATH[=WEIGHT]", help="contexts or texts")
    parser.add_argument("--titled", action="append", default=[], metavar="PATH[=WEIGHT]", help="titled paragraphs")
    parser.add_argument("--not-in", action="append", default=[], type=Path, metavar="PATH")
    parser.add_argument("--generator", required=True, metavar="ADAPTER", help="Full-FT adapter trained on ask:PATH")
    parser.add_argument("--answerer", default="default", metavar="ADAPTER", help="Full-FT adapter; the one of a clone")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--count", type=int, default=60_000, help="questions to keep")
    parser.add_argument("--each", type=int, default=6, help="questions to try on a passage, at most")
    parser.add_argument("--agreement", type=float, default=0.8, help="token F1 of answer and span, at least")
    parser.add_argument("--shortest", type=int, default=4, help="words of a question, at least")
    parser.add_argument("--passage-tokens", type=int, default=200, help="tokens of a passage, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="questions decoded together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args(arguments)
    if not given.files and not given.titled:
        parser.error("there is no file to take passages from: give a PATH or --titled PATH")
    for name in ("count", "each", "shortest", "batch"):
        if (value := getattr(given, name)) < 1:
            parser.error(f"--{name} is {value}; it must be 1 or more")
    if not 0 <= given.agreement <= 1:
        parser.error(f"--agreement is {given.agreement:g}; it must lie in 0..1")
    if not SHORTEST <= given.passage_tokens <= MAX_PASSAGE_TOKENS:
        parser.error(f"--passage-tokens is {given.passage_tokens}; it must lie in {SHORTEST}..{MAX_PASSAGE_TOKENS}")
    return given


if __name__ == "__main__":
    try:
        print(make(settings_of()))
    except SacError as error:
        sys.exit(f"make_questions.py: {error}")
