"""Contexts and questions to prompts, prompts to answers: what every reader of an evaluation goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from sac_rag.answer.assemble import question_ids
from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Completion, Reader, Sampling, decode
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Method
from sac_rag.compress.templates import evidence_ids, joined_ids
from sac_rag.errors import ConfigError
from sac_rag.evaluate.readers import QuestionReader
from sac_rag.library.codecs import get_codec
from sac_rag.text.evidence import evidence_text
from sac_rag.train.data import Question

ANSWER_TOKENS = 32
"""Longest answer generated in an evaluation; extractive answers are far shorter."""
BATCH_TOKENS = 32_768
"""Cache slots of one decoding batch, at most, unless one prompt alone needs more."""


@dataclass
class Asked:
    """Prompts with their questions, and the places of these among all of a task.

    cut: contexts (given) or prompts (retrieved) of which something did not fit the positions that the model has.
    held: whether an accepted answer stands in what was retrieved. stored_bytes, source_tokens: of compressed contexts,
    as a library would store them.
    """

    prompts: list[Prompt] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    cut: int = 0
    stored_bytes: int = 0
    source_tokens: int = 0


def prompts_of(
    method: Method,
    contexts: Sequence[tuple[str, tuple[Question, ...]]],
    reader: QuestionReader,
    ratio: float | None,
    layout: PromptLayout | None = None,
) -> Asked:
    """Prompts of all questions of some contexts; each context is encoded once.

    Long contexts are compressed as consecutive sub-contexts. All readers cut a context at the end to what the
    model reads beside question and answer: compressed or not, its tokens keep their positions (SAC, section 3.3), and
    the model knows none beyond its length. layout: another prompt than the adapter's own. Raises ConfigError when a
    question alone is too long.
    """
    backbone, asked = method.backbone, Asked()

    def asking(text: str, question: str) -> list[int]:
        beside = evidence_ids(backbone, layout or method.layout, evidence_text((text,), question, reader.evidence))
        return [*beside, *(joined_ids(backbone, layout, question) if layout else question_ids(method, question))]

    tails = [[asking(text, q.question) for q in questions] for text, questions in contexts]
    prefix = backbone.template((layout or method.layout).prefix)
    ahead = len(prefix) + (method.placing.span([method.prefix]) if layout and method.prefix else 0)
    ids: list[list[int]] = [[] for _ in contexts]
    if reader.looks:
        ids = [backbone.tokens(text) for text, _ in contexts]
        rooms = [_room(method, ahead, max(map(len, tail))) for tail in tails]
        asked.cut = sum(len(i) > room for i, room in zip(ids, rooms, strict=True))
        ids = [i[:room] for i, room in zip(ids, rooms, strict=True)]
    compressed = reader.write(method, ids, ratio)
    memories = None
    if compressed is not None:
        if reader.compressed:
            codec, made = get_codec("bf16"), [kv for kvs in compressed for kv in kvs]
            asked.stored_bytes = sum(t.nbytes for kv in made for t in codec.encode(kv).values())
            asked.source_tokens = sum(kv.source_len for kv in made)
        with torch.inference_mode():
            memories = [method.memory(parts, layout=layout) for parts in compressed]
    for i, (text, questions) in enumerate(contexts):
        for question, tail in zip(questions, tails[i], strict=True):
            front = (memories[i], tail) if memories else ([*prefix, *ids[i], *tail],)
            asked.prompts.append(Prompt(front, texts=(text,) if memories else ()))
            asked.questions.append(question)
    return asked


def _room(method: Method, prefix: int, question: int) -> int:
    """Tokens of a context that fit beside prefix, question and answer."""
    limit = method.backbone.context_length
    room = limit - prefix - question - ANSWER_TOKENS
    if room < 1:
        raise ConfigError(
            f"a question needs {prefix + question} tokens and its answer {ANSWER_TOKENS}, but the model reads {limit}: "
            "leave the question out, or choose a model with a longer context"
        )
    return room


def answers_of(
    reader: Reader,
    prompts: Sequence[Prompt],
    batch: int,
    sampling: Sampling | None = None,
    done: Callable[[int], None] | None = None,
) -> list[tuple[str, float]]:
    """(answer, mean log-probability) of all prompts, in order; greedy unless `sampling` says otherwise.

    Prompts of like length are decoded together, at most `batch` of them. done: called with the number answered.
    """
    sampling = sampling or Sampling(max_new_tokens=ANSWER_TOKENS)
    completions: dict[int, Completion] = {}
    for rows in decoding_batches([p.tokens + p.slots for p in prompts], batch):
        completions |= zip(rows, reader.generate([prompts[i] for i in rows], sampling), strict=True)
        if done:
            done(len(completions))
    found = (completions[i] for i in range(len(prompts)))
    return [(decode(reader.backbone.tokenizer, c.token_ids).strip(), c.logprob) for c in found]


def decoding_batches(sizes: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Indices in batches, by size: at most `batch` rows, and rows times the longest at most BATCH_TOKENS."""
    rows: list[int] = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        if rows and (len(rows) == batch or (len(rows) + 1) * sizes[i] > BATCH_TOKENS):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows
