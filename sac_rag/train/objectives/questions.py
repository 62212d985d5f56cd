"""Questions are answered from memory, alone or among other passages, with pieces of the text to be recalled."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Method
from sac_rag.compress.reader_adapter import ReaderAdapter
from sac_rag.compress.selectors import anchor_count
from sac_rag.compress.templates import evidence_ids, layout_of
from sac_rag.config import MAX_EVIDENCE, MAX_PASSAGE_TOKENS
from sac_rag.errors import ConfigError
from sac_rag.records import NO_ANSWER
from sac_rag.text.evidence import evidence_text
from sac_rag.train.batch import Batch, Row, asking, joined
from sac_rag.train.config import TrainConfig
from sac_rag.train.data import Mixture, TokenisedContext
from sac_rag.train.objectives.base import QUESTIONS, TRIES, Loss, ReadingSettings, Reads, loss_of
from sac_rag.train.objectives.texts import CUE, quote, quotes
from sac_rag.train.teacher import Teacher

RECALLED = 24
"""Tokens to continue from memory in one recall reading."""
MARGIN = 256
"""Positions left for prefix, separators and an answer behind the passages of one memory."""
GAP = "\n\n"
"""Between texts that are joined to one passage."""


@dataclass(frozen=True)
class QuestionSettings(ReadingSettings):
    """Questions behind memories (qa, summarise, budget)"""

    recall_weight: float = 0.25
    """Loss weight of continuing a quoted piece of the context from memory; falls to a fifth over the stage."""
    quote_weight: float = 0.3
    """Loss weight of a token of a text to be quoted (quote:PATH); one of an answer has 1, or less by `length_norm`."""
    length_norm: float = 0.0
    """A token of an answer of n tokens has weight n to the power of -length_norm: at 0 all tokens are alike and long
    answers weigh most, at 1 all answers are."""
    distractor_share: float = 0.5
    """Share of contexts whose memory also holds others of the micro-batch, shuffled."""
    max_distractors: int = 4
    """Most distractors in one memory; from one to this many are drawn."""
    distractors_from: float = 0.5
    """Share of the stage after which distractors begin; 0 for an adapter that already reads one passage."""
    near_share: float = 0.0
    """Share of draws that bring neighbours: contexts of the same file that are most like the one drawn (BM25), with
    their own questions. They stand in one memory before others do."""
    near_most: int = 4
    """Most neighbours of one draw; from one to this many are drawn."""
    rank_decay: float = 1.0
    """The passage that answers has rank r among those of its memory with a probability that falls as rank_decay ** r,
    as a search would place it: 1 is any rank. What a rank does is the adapter's placing."""
    joined_share: float = 0.0
    """Share of contexts that are joined with the next of the micro-batch to one passage, where both fit into one: each
    time with another one, as passages of a document lie together."""
    joined_texts: int = 2
    """Most contexts that are joined to one passage."""
    prompts: tuple[str, ...] = ()
    """Names of other prompts than the adapter's own layout, of `sac_rag.compress.templates`."""
    prompt_share: float = 0.5
    """Share of contexts that are read in one of `prompts`."""
    evidence_share: float = 0.0
    """Share of contexts whose questions stand behind sentences of the texts in memory as well, as an answer with
    `AskConfig.evidence` is read; what is trained then reads so, where a question does not say."""
    most_evidence: int = 3
    """Most such sentences; from one to this many are drawn."""
    mismatch_share: float = 0.0
    """Share of contexts whose questions stand behind other passages, with "The passages do not say." as the answer."""
    distil_weight: float = 0.0
    """Weight of the divergence from a --teacher on the answers' tokens, beside the cross-entropy."""

    def check(self, steps: int) -> None:
        super().check(steps)
        if self.max_distractors < 1 or self.joined_texts < 2:
            raise ConfigError(f"max_distractors {self.max_distractors} (>= 1), joined_texts {self.joined_texts} (>= 2)")
        if not 0 <= self.length_norm <= 1:
            raise ConfigError(f"length_norm is {self.length_norm:g}; it must lie in 0..1")
        if self.near_most < 1 or not 0 < self.rank_decay <= 1:
            raise ConfigError(f"near_most {self.near_most} (>= 1), rank_decay {self.rank_decay:g} (above 0, at most 1)")
        if not 1 <= self.most_evidence <= MAX_EVIDENCE:
            raise ConfigError(f"most_evidence is {self.most_evidence}; use 1..{MAX_EVIDENCE}")
        if not 0 <= self.distil_weight < math.inf:
            raise ConfigError(f"distil_weight is {self.distil_weight:g}; it is at least 0")

    def after(self, done: float) -> QuestionSettings:
        """As they are when a share `done` of the stage is over."""
        begun = done >= self.distractors_from
        return replace(
            self,
            recall_weight=self.recall_weight * (1 - 0.8 * done),
            distractor_share=self.distractor_share if begun else 0.0,
        )


class Questions(Reads):
    """Answers and their ends are scored, and the recall of pieces of the text."""

    Settings = QuestionSettings
    takes_teacher = True
    records = ("loss", "recall", "distil")
    own: QuestionSettings

    def __init__(self, config: TrainConfig, method: Method, teacher: Teacher | None = None) -> None:
        super().__init__(config, method, teacher)
        prompts, weight = self.own.prompts, self.own.distil_weight
        self._layouts = tuple(layout_of(method.backbone.tokenizer, name) for name in prompts)
        if prompts and method.reads_with_lora:
            raise ConfigError(f"{method.name} reads in its own layout; leave the prompts {', '.join(prompts)} out")
        if (teacher is None) == bool(weight):
            raise ConfigError(
                f"distil_weight is {weight:g} with{'out' if teacher is None else ''} a teacher; "
                "give a teacher and a weight above 0, or neither"
            )
        for name, layout in zip(prompts, self._layouts, strict=True):
            if teacher and layout.end != method.layout.end:
                raise ConfigError(
                    f"prompt {name!r} ends an answer with {layout.end!r}, the teacher with {method.layout.end!r}; "
                    "leave the prompt out"
                )
        if self.own.evidence_share:
            self.reads().evidence = (1 + self.own.most_evidence) // 2

    def reads(self) -> Method | ReaderAdapter:
        """What is trained to read as many sentences beside memory."""
        return self.method

    def contexts(self, mixture: Mixture, longest: int, rng: random.Random) -> list[TokenisedContext]:
        near = self.own.near_share and rng.random() < self.own.near_share
        return mixture.cluster(longest, 1 + rng.randint(1, self.own.near_most) if near else 1)

    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch | None:
        settings = self.own.after(step / self.config.steps)
        if settings.joined_share:
            gap = self.method.backbone.tokens(GAP)
            contexts = _joined(contexts, settings.joined_share, settings.joined_texts, gap, rng)
        ratios = self.ratios(len(contexts), rng)
        batch = question_batch(contexts, ratios, self.method, settings, rng, self._layouts)
        return batch if any(batch.readings) else None

    def nothing(self) -> str:
        why = "recall_weight is 0"
        if self.own.recall_weight:
            least, mismatch = RECALLED + 2 * CUE, self.own.mismatch_share
            why = f"recall takes texts of more than {least} tokens in their own memory (mismatch_share is {mismatch:g})"
        return (
            f"the last {TRIES} micro-batches have no questions, and {why}; write cloze: in front of their path to make "
            "questions out of them, or use --objective lm"
        )

    def loss(self, batch: Batch, step: int) -> Loss:
        own = self.own
        return loss_of(
            batch, self.method, future_bias=own.future(step), teacher=self.teacher, distil_weight=own.distil_weight
        )


@dataclass(frozen=True)
class SummarySettings(QuestionSettings):
    """As those of questions, but for two defaults."""

    recall_weight: float = 0.0
    distractor_share: float = 0.0


class Summaries(Questions):
    """A document's summaries are scored, each asked for by its query behind the document alone: nothing else in the
    memory, and no recall, unless they are asked for."""

    Settings = SummarySettings


def question_batch(
    contexts: Sequence[TokenisedContext],
    ratios: Sequence[float],
    method: Method,
    settings: QuestionSettings,
    rng: random.Random,
    layouts: Sequence[PromptLayout] = (),
) -> Batch:
    """Questions of each context behind its memory; loss on answer and end only (SAC, section 4.1).

    A recall reading per context quotes a few tokens of it and scores their continuation: many more scored
    tokens for the price of one question, all of which must come from the memory. A text to be quoted is asked for
    piece by piece: autoencoding (ICAE, section 2.1), but from anywhere in the text. A method that reads with its own
    weights (Full-FT) gets several passages as one text. Texts without questions may leave a batch without readings.
    """
    backbone = method.backbone
    batch = Batch()
    for i, (c, ratio) in enumerate(zip(contexts, ratios, strict=True)):
        other = rng.choice(layouts) if layouts and rng.random() < settings.prompt_share else None
        layout = other or method.layout
        ask, end = asking(backbone, layout, own=other is None), backbone.template(layout.end)
        batch.layouts.append(other)
        front = _front(i, contexts, settings, rng)
        if settings.evidence_share and rng.random() < settings.evidence_share:
            texts = [backbone.tokenizer.decode(list(contexts[j].ids)) for j in front]
            shown = _behind_evidence(backbone, layout, ask, texts, rng.randint(1, settings.most_evidence))
        else:
            shown = ask
        pairs = rng.sample(c.pairs, min(QUESTIONS * c.texts, len(c.pairs)))
        if c.quoted:
            front, rows = [i], [r._replace(weight=settings.quote_weight, recall=True) for r in quotes(ask, c.ids, rng)]
        elif i in front:
            rows = [_answer(shown(q), [*a, *end], settings.length_norm, pair=(q, a)) for q, a in pairs]
        else:
            rows = [_answer(shown(q), [*backbone.tokens(NO_ANSWER), *end], settings.length_norm) for q, _ in pairs[:1]]
        batch.examples += 1 if c.quoted else len(rows)
        if settings.recall_weight and not c.quoted and i in front and len(c.ids) > RECALLED + 2 * CUE:
            start = rng.randrange(len(c.ids) - RECALLED - CUE)
            piece = c.ids[start : start + CUE + RECALLED]
            rows.append(quote(ask, piece)._replace(weight=settings.recall_weight, recall=True))
        room = backbone.context_length - max((len(r.ids) for r in rows), default=0)
        front = _fitting(front, i, [_extent(method, c, r) for c, r in zip(contexts, ratios, strict=True)], room)
        order, biases = method.placing.arranged(len(front))
        front = [front[r] for r in order]
        if method.reads_with_lora:
            text = joined([contexts[j].ids for j in front], backbone.template(layout.separator))
            batch.add([text], ratio, [i], rows)
        else:
            batch.add(method.pieces(c.ids), ratio, front, rows, biases)
    return batch


def _behind_evidence(
    backbone: Backbone,
    layout: PromptLayout,
    ask: Callable[[Sequence[int]], list[int]],
    texts: Sequence[str],
    count: int,
) -> Callable[[Sequence[int]], list[int]]:
    """As `ask`, behind the sentences of texts, given best first, that fit the question."""

    def shown(question: Sequence[int]) -> list[int]:
        words = backbone.tokenizer.decode(list(question))
        return [*evidence_ids(backbone, layout, evidence_text(texts, words, count)), *ask(question)]

    return shown


def _answer(
    head: Sequence[int], said: Sequence[int], norm: float, pair: tuple[list[int], list[int]] | None = None
) -> Row:
    """A question with what is to be said."""
    return Row([*head, *said], len(head), len(said) ** -norm, pair=pair)


def _front(i: int, contexts: Sequence[TokenisedContext], settings: QuestionSettings, rng: random.Random) -> list[int]:
    """Whose memories stand in front of context i's questions, by rank; without i where the passage is missing.

    Neighbours of i come before others.
    """
    others = [j for j in range(len(contexts)) if j != i]
    if others and rng.random() < settings.mismatch_share:
        return rng.sample(others, rng.randint(1, min(settings.max_distractors, len(others))))
    if not others or rng.random() >= settings.distractor_share:
        return [i]
    rng.shuffle(others)
    near = contexts[i].cluster
    others.sort(key=lambda j: not near or contexts[j].cluster != near)
    beside = others[: rng.randint(1, min(settings.max_distractors, len(others)))]
    rng.shuffle(beside)
    (rank,) = rng.choices(range(len(beside) + 1), [settings.rank_decay**r for r in range(len(beside) + 1)])
    return [*beside[:rank], i, *beside[rank:]]


def _extent(method: Method, context: TokenisedContext, ratio: float) -> int:
    """Positions that a context takes up as memory, as the method is placed."""
    length = len(context.ids)
    return method.placing.extent(anchor_count(length, ratio), length)


def _fitting(front: list[int], i: int, extents: Sequence[int], room: int) -> list[int]:
    """Without the last distractors that would push a question beyond the positions of the model."""
    kept, spare = list(front), room - MARGIN
    while len(kept) > 1 and sum(extents[j] for j in kept) > spare:
        kept.remove(next(j for j in reversed(kept) if j != i))
    return kept


def _joined(
    contexts: Sequence[TokenisedContext], share: float, most: int, gap: Sequence[int], rng: random.Random
) -> list[TokenisedContext]:
    """Some contexts as one with the next, of at most so many, where that is a passage still."""
    made: list[TokenisedContext] = []
    for c in contexts:
        last = made[-1] if made else None
        if last and last.pairs and c.pairs and last.texts < most and rng.random() < share:
            both = last.joined(c, gap)
            if len(both.ids) <= MAX_PASSAGE_TOKENS:
                made[-1] = both
                continue
        made.append(c)
    return made
