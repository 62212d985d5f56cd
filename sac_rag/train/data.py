"""Training data: MRQA-style lines, SQuAD JSON, summaries and plain text become token ids in a resumable random order.

Questions come with the file, as they are, with two answers offered (`choice:` in front of its path) or turned round
(`ask:`), or are made out of its texts (`cloze:`), or the texts themselves are to be said again (`quote:`).
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.errors import TrainingError
from sac_rag.train.choices import offered
from sac_rag.train.cloze import cloze_questions
from sac_rag.train.generation import turned
from sac_rag.train.neighbours import Neighbours
from sac_rag.train.specs import ASK, CHOICE, CLOZE, QUOTE

Encode = Callable[[str], list[int]]

CLOZES = 5
"""Cloze questions of one text."""
CLOZE_TOKENS = 320
"""Length of the windows of longer texts that they are made of."""

SHORTEST = 32
"""Tokens of a text, at least, that something is learned from without questions of its own."""

SUMMARISE = "Summarise the text in one sentence."
"""The question of a summary that has no query of its own."""


@dataclass(frozen=True)
class Question:
    """A question and its accepted answers, as text."""

    qid: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """A context with its questions (none for plain text)."""

    text: str
    questions: tuple[Question, ...]
    source: str


def read_contexts(path: str | Path) -> Iterator[Context]:
    """Contexts of a file: .jsonl[.gz] (MRQA-style, summaries or {"text"}), SQuAD .json[.gz], or .txt.

    Raises TrainingError naming the file, the line and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError(f"no data file at {path}; give a .jsonl, .json or .txt file (or .gz of one)")
    name = path.name.removesuffix(".gz")
    with _open(path) as handle:
        try:
            if name.endswith(".txt"):
                yield Context(handle.read(), (), name.removesuffix(".txt"))
            elif name.endswith(".json"):
                yield from _squad(json.load(handle), name.removesuffix(".json"))
            elif name.endswith(".jsonl"):
                for number, line in enumerate(handle, 1):
                    if line.strip():
                        yield _mrqa(json.loads(line), f"{path}:{number}", name.removesuffix(".jsonl"))
            else:
                raise TrainingError(f"{path}: unknown kind of data; use .jsonl, .json or .txt (or .gz of one)")
        except (json.JSONDecodeError, UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TrainingError(f"{path} does not parse: {error}") from error
        except RecursionError:
            raise TrainingError(f"{path} does not parse: it is nested too deep") from None


def _open(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")  # type: ignore[return-value]
    return path.open(encoding="utf-8")


def _mrqa(row: Any, where: str, source: str) -> Context:
    if not isinstance(row, dict):
        raise TrainingError(f"{where}: expected a JSON object, got {type(row).__name__}")
    if "header" in row:
        return Context("", (), source)
    if isinstance(row.get("text"), str) and "qas" not in row:
        return Context(row["text"], (), row.get("source", source))
    if isinstance(row.get("document"), str) and isinstance(row.get("items"), list):
        return _summaries(row, source)
    context, qas = row.get("context"), row.get("qas")
    if not isinstance(context, str) or not isinstance(qas, list):
        raise TrainingError(
            f'{where}: expected {{"context": text, "qas": [...]}}, {{"document": text, "items": [...]}} or '
            f'{{"text": ...}}, got {sorted(row)}'
        )
    questions = []
    for qa in qas:
        if not isinstance(qa, dict):
            raise TrainingError(f"{where}: a question is {qa!r}; expected an object with question and answers")
        answers = _texts(qa.get("answers"), where)
        if isinstance(qa.get("question"), str) and answers:
            questions.append(Question(str(qa.get("qid", "")), qa["question"].strip(), answers))
    return Context(context, tuple(questions), row.get("source", source))


def _texts(given: Any, where: str) -> tuple[str, ...]:
    """Answers as texts, or as SQuAD and Hugging Face's datasets write them."""
    given = given.get("text") if isinstance(given, dict) else given
    given = [given] if isinstance(given, str) else given or []
    answers = [a.get("text") if isinstance(a, dict) else a for a in given] if isinstance(given, list) else [None]
    texts = tuple(a for a in answers if isinstance(a, str))
    if len(texts) != len(answers):
        raise TrainingError(f"{where}: answers are {given!r}; expected a list of texts")
    return tuple(text for text in texts if text.strip())


def _summaries(row: Mapping[str, Any], source: str) -> Context:
    """A document with summaries: what is asked is the query, or a summary in one sentence."""
    questions = []
    for number, item in enumerate(row["items"]):
        texts = [item.get("summary"), *(item.get("references") or ())] if isinstance(item, dict) else []
        answers = tuple(dict.fromkeys(t for t in texts if isinstance(t, str) and t.strip()))
        if answers:
            query = item.get("query")
            asked = query.strip() if isinstance(query, str) else ""
            questions.append(Question(str(number), asked or SUMMARISE, answers))
    return Context(row["document"], tuple(questions), row.get("source", source))


def _squad(root: Any, source: str) -> Iterator[Context]:
    try:
        for article in root["data"]:
            for paragraph in article["paragraphs"]:
                asked = (
                    Question(
                        str(qa["id"]),
                        qa["question"].strip(),
                        tuple(a["text"] for a in qa["answers"] if a["text"].strip()),
                    )
                    for qa in paragraph["qas"]
                )
                yield Context(paragraph["context"], tuple(q for q in asked if q.answers), source)
    except (KeyError, TypeError) as error:
        raise TrainingError(f"{source}: not SQuAD-style JSON (data/paragraphs/qas): missing {error}") from error


@dataclass(frozen=True)
class TokenisedContext:
    """One training context: token ids, and (question ids, answer ids without the end) pairs."""

    ids: Sequence[int]
    pairs: tuple[tuple[list[int], list[int]], ...]
    quoted: bool = False
    """Whether the text itself is asked for, in pieces."""
    texts: int = 1
    """How many texts of the files it holds."""
    cluster: int = 0
    """Which draw of neighbours it came with; 0 for one that was drawn alone."""

    def joined(self, other: TokenisedContext, gap: Sequence[int]) -> TokenisedContext:
        """Both as one text, with the questions of both."""
        ids, pairs = [*self.ids, *gap, *other.ids], (*self.pairs, *other.pairs)
        return TokenisedContext(ids, pairs, texts=self.texts + other.texts, cluster=self.cluster)


class Source:
    """A data file in an endless, seeded, resumable order; tokenised when drawn.

    kind: CLOZE or QUOTE leave whatever questions the file has aside: new ones are made out of its texts in each epoch,
    or windows of its texts are to be quoted; CHOICE asks them with other answers offered in each epoch; ASK turns them
    round and leaves out what has none to turn. plain: the texts alone are wanted, not the questions that stand with
    them.
    """

    def __init__(
        self,
        path: str | Path,
        encode: Encode,
        *,
        weight: float = 1.0,
        seed: int = 0,
        kind: str = "",
        plain: bool = False,
    ) -> None:
        self.name = kind + Path(path).name
        self._plain = plain
        self.weight, self.seed, self.kind, self._encode = weight, seed, kind, encode
        self._rows = [c for c in read_contexts(path) if c.text.strip()]
        if not self._rows:
            raise TrainingError(f"{path} holds no contexts")
        if kind == ASK:
            self._rows = [row for row in map(_turned, self._rows) if row.questions]
            if not self._rows:
                raise TrainingError(
                    f"{self.name}: it has no question that can be turned round; {ASK} needs answers that stand in the "
                    "text, to questions that are neither yes/no nor a choice"
                )
        self.drawn = 0
        self._lengths: dict[int, int] = {}  # of contexts that were too long: not to be tokenised again and again
        self._order: list[int] = []
        self._epoch = -1
        self._neighbours: Neighbours | None = None

    def draw(self, max_tokens: int) -> TokenisedContext:
        """The next context; plain text and contexts that are longer give a window of `max_tokens`, without
        its questions; a question-answering source skips longer ones instead."""
        for _ in range(10 * len(self._rows)):
            row = self._next()
            if self.kind == QUOTE:
                ids = self._encode(_window(row.text, max_tokens, self.drawn))[: self._length(max_tokens)]
                if len(ids) >= SHORTEST:
                    return TokenisedContext(ids, (), quoted=True)
                continue
            if self.kind == CLOZE:
                made = self._made(row.text, max_tokens)
                if made.pairs:
                    return made
                continue
            asked = bool(row.questions) and not self._plain
            if asked and self._lengths.get(id(row), 0) > max_tokens:
                continue
            ids = self._encode(row.text if asked else _window(row.text, max_tokens, self.drawn))
            if asked and len(ids) <= max_tokens:
                return self._asked(row, ids)
            self._lengths[id(row)] = len(ids)
            if not asked and len(ids) >= SHORTEST:
                return TokenisedContext(ids[:max_tokens], ())
        if self.kind == CLOZE:
            raise TrainingError(
                f"{self.name}: no questions can be made of its texts; cloze questions need English prose of {SHORTEST} "
                "tokens or more"
            )
        if max_tokens >= SHORTEST and max(self._lengths.values(), default=0) <= max_tokens:
            raise TrainingError(
                f"{self.name}: no text of at least {SHORTEST} tokens, as those without questions need; give longer ones"
            )
        raise TrainingError(
            f"{self.name}: no context of at most {max_tokens} tokens; raise --first-context and --max-context"
        )

    def neighbours(self, count: int, max_tokens: int) -> list[TokenisedContext]:
        """Up to `count` contexts of the file that are most like the one drawn last (BM25), with their own questions:
        none of plain texts, of texts that are asked or quoted otherwise, and of longer ones."""
        last = self._order[(self.drawn - 1) % len(self._rows)]
        if self.kind in (CLOZE, QUOTE) or self._plain or not self._rows[last].questions:
            return []
        if self._neighbours is None:
            self._neighbours = Neighbours([row.text for row in self._rows])
        found: list[TokenisedContext] = []
        for index in self._neighbours.of(last):
            row = self._rows[index]
            if len(found) == count:
                break
            if row.questions and len(ids := self._encode(row.text)) <= max_tokens:
                found.append(self._asked(row, ids))
        return found

    def _asked(self, row: Context, ids: list[int]) -> TokenisedContext:
        pairs = [(q.question, q.answers[0].strip()) for q in row.questions]
        if self.kind == CHOICE:
            pairs = offered(row.text, pairs, random.Random(f"{self.seed}/{self.name}/choice/{self.drawn}"))
        return TokenisedContext(ids, tuple((self._encode(q), self._encode(a)) for q, a in pairs))

    def _length(self, most: int) -> int:
        """Of a text to be quoted: short ones and long ones."""
        return random.Random(f"{self.seed}/{self.name}/length/{self.drawn}").randint(min(64, most), most)

    def _made(self, text: str, max_tokens: int) -> TokenisedContext:
        rng = random.Random(f"{self.seed}/{self.name}/cloze/{self.drawn}")
        max_tokens = min(max_tokens, CLOZE_TOKENS)
        text = _window(text, max_tokens, self.drawn)
        while len(ids := self._encode(text)) > max_tokens:
            text = _whole_sentences(text[: int(len(text) * max_tokens / len(ids))])
        pairs = cloze_questions(text, CLOZES, rng) if len(ids) >= SHORTEST else []
        return TokenisedContext(ids, tuple((self._encode(q), self._encode(a)) for q, a in pairs))

    def _next(self) -> Context:
        epoch, index = divmod(self.drawn, len(self._rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._rows)))
            random.Random(f"{self.seed}/{self.name}/{epoch}").shuffle(self._order)
        self.drawn += 1
        return self._rows[self._order[index]]


def _turned(context: Context) -> Context:
    """With those of its questions that can be turned round: an instruction, and the question as its answer."""
    pairs = ((q.qid, turned(context.text, q.question, q.answers)) for q in context.questions)
    questions = (Question(qid, pair[0], (pair[1],)) for qid, pair in pairs if pair)
    return dataclasses.replace(context, questions=tuple(questions))


def _whole_sentences(text: str) -> str:
    """Without the sentence that was cut at the end, unless hardly anything else is there."""
    end = max(text.rfind(mark) for mark in (". ", "? ", "! ", "\n"))
    return text[: end + 1] if end > len(text) // 2 else text[: max(1, int(len(text) * 0.95))]


def _window(text: str, max_tokens: int, salt: int) -> str:
    """A piece of a long text that surely holds `max_tokens` tokens, so that books are not tokenised whole."""
    size = 8 * max_tokens
    if len(text) <= size:
        return text
    start = random.Random(salt).randrange(len(text) - size)
    return text[text.find(" ", start, start + size) + 1 or start : start + size]


class Mixture:
    """Draws contexts from sources by weight. Its state is a few integers, saved in every checkpoint."""

    def __init__(self, sources: Sequence[Source], *, seed: int = 0) -> None:
        if not sources:
            raise TrainingError("no training data; give at least one file")
        self.sources, self.seed, self.draws = list(sources), seed, 0

    def draw(self, max_tokens: int) -> TokenisedContext:
        return self.cluster(max_tokens, 1)[0]

    def cluster(self, max_tokens: int, size: int) -> list[TokenisedContext]:
        """A context and up to size - 1 of its neighbours in its file; just it where it has none."""
        rng = random.Random(f"{self.seed}/{self.draws}")
        self.draws += 1
        (source,) = rng.choices(self.sources, [s.weight for s in self.sources])
        first = source.draw(max_tokens)
        near = source.neighbours(size - 1, max_tokens) if size > 1 else []
        return [dataclasses.replace(c, cluster=self.draws) for c in (first, *near)] if near else [first]

    def state(self) -> dict[str, Any]:
        return {"draws": self.draws, "sources": {s.name: s.drawn for s in self.sources}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; raises TrainingError when the sources differ."""
        names = {s.name for s in self.sources}
        if names != set(state["sources"]):
            raise TrainingError(
                f"the checkpoint was made on {sorted(state['sources'])}, this run reads {sorted(names)}"
            )
        self.draws = state["draws"]
        for s in self.sources:
            s.drawn = state["sources"][s.name]
