"""One answer, piece by piece: retrieved, laid out, read, and judged where that was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from sac_rag.answer.assemble import Assembled
from sac_rag.answer.confidence import Thresholds, reader_name
from sac_rag.answer.constrained import Constraint
from sac_rag.answer.conversation import Conversation
from sac_rag.answer.engine import Engine
from sac_rag.answer.reader import Sampling
from sac_rag.answer.reply import Reply
from sac_rag.answer.steps import Steps
from sac_rag.config import AskConfig
from sac_rag.errors import MemoryDamaged, PassageGone
from sac_rag.records import NO_ANSWER, Answer, Heat, Hit, Timings, Usage

RETRIES = 8
"""How often passages are looked for anew because one that was found has been removed meanwhile, or is damaged."""


@dataclass(frozen=True)
class AnswerPlan:
    """How one question is answered.

    find: the hits. assemble: hits -> prompt, as `ask.fidelity` says or, when True, as text. thresholds: needed for
    fidelity "auto" and for abstaining; where there are none, no answer is marked as doubtful. conversation: where the
    answer is kept for the next question. warn: what a user should know of the passages that were read.
    """

    find: Callable[[], Sequence[Hit]]
    assemble: Callable[[Sequence[Hit], bool], Assembled]
    ask: AskConfig
    thresholds: Thresholds | None = None
    conversation: Conversation | None = None
    warn: Callable[[Sequence[Hit]], Sequence[str]] = lambda read: ()
    stop: Sequence[str] = ()
    """Strings that end the answer and are no part of it."""
    searches: bool = True
    """Whether passages are looked for."""
    constraint: Constraint | None = None
    """What the answer is held to."""
    heat: Callable[[Assembled, Sequence[int]], Heat | None] | None = None
    """What was attended: prompt and tokens of the answer -> heat; None where nobody asks."""
    steps: Steps = field(default_factory=Steps)
    """Where its steps are noted."""


@dataclass(frozen=True)
class _Attempt:
    """One reading of the passages; `first` is when its first token was there."""

    assembled: Assembled
    text: str
    usage: Usage
    confidence: float
    loaded_s: float
    first: float
    finish_reason: str = "stop"
    token_ids: Sequence[int] = ()
    asked: bool = True
    """Whether the model was: without passages it is not, unless `closed_book` says so."""


@dataclass(eq=False)
class _UnderWay:
    """What a stream and those who make its pieces have in common."""

    began: float
    answer: Answer | None = None
    reply: Reply | None = None
    cancelled: bool = False


class Stream(Iterator[str]):
    """Pieces of one answer as they are made. Dropping it stops the work.

    What may yet be thrown away is not shown: with "auto" the answer from memory, with `abstain` any answer is held
    back until it is whole and judged. Its first piece then comes as late as its last token would have; where "auto"
    falls back, text is read after that, so the first piece waits for the whole answer from memory and for the reading
    of the text. An "auto" whose calibration says that text is never better holds nothing back.
    """

    def __init__(self, engine: Engine, plan: AnswerPlan) -> None:
        # What makes the pieces does not know this object: a circle would keep it, and the work, until Python looks for
        # circles.
        self._under_way = _UnderWay(time.perf_counter())
        self.steps = plan.steps
        """What has been done for this answer so far."""
        self._pieces = _run(self._under_way, engine, plan)

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Write no more. Any thread may say so: the one that reads sees the end, and there is no `answer`."""
        self._under_way.cancelled = True
        if (reply := self._under_way.reply) is not None:
            reply.cancel()

    @property
    def answer(self) -> Answer:
        """The whole answer; RuntimeError while the stream is not read to its end."""
        if self._under_way.answer is None:
            raise RuntimeError("the answer is not complete: read the stream to its end first")
        return self._under_way.answer


def _run(under_way: _UnderWay, engine: Engine, plan: AnswerPlan) -> Iterator[str]:
    ask, thresholds = plan.ask, plan.thresholds
    found = _found(plan)
    retrieved = time.perf_counter()
    doubtful = thresholds.fallback if thresholds and ask.fidelity == "auto" and found else None
    held = ask.abstain or doubtful is not None
    for again in range(RETRIES, -1, -1):
        try:
            attempt = yield from _attempt(under_way, engine, plan, found, text=False, held=held)
            break
        # Removed by another thread since it was found, or damaged: a search leaves it out from now on.
        except (PassageGone, MemoryDamaged):
            if not again:
                raise
            found = _found(plan)
    if under_way.cancelled:
        return
    usage, loaded_s, notices = attempt.usage, attempt.loaded_s, list(attempt.assembled.notices)
    fell_back = doubtful is not None and bool(attempt.assembled.hits) and attempt.confidence < doubtful
    if fell_back:
        doubt = f"confidence {attempt.confidence:.2f}, below {doubtful:.2f}"
        held = ask.abstain
        attempt = yield from _attempt(under_way, engine, plan, found, text=True, held=held)
        if under_way.cancelled:
            return
        usage, loaded_s = _both(usage, attempt.usage), loaded_s + attempt.loaded_s
        notices = [f"the answer from memory was doubtful ({doubt}); this one is from text"]
        notices += attempt.assembled.notices
    fidelity, text, withheld = attempt.assembled.fidelity, attempt.text, None
    reader = reader_name(ask, fidelity)
    hits, earlier = attempt.assembled.hits, attempt.assembled.earlier
    unasked = not attempt.asked
    if not unasked and ask.abstain:
        bare = not hits and not earlier
        if bare or (thresholds and thresholds.abstains(reader, attempt.confidence, text)):
            text, withheld = NO_ANSWER, text
    given = not unasked and withheld is None
    alone = ""
    if given:
        alone = f"; the answer comes from {'earlier passages' if earlier else 'the model alone'}"
    if plan.searches and not found:
        notices.insert(0, f"no passage matched{alone}")
    elif plan.searches and not hits:
        notices.append(f"no passage was read{alone}")
    notices += plan.warn(hits)
    heat = None
    if plan.heat is not None and attempt.asked:
        with plan.steps.step("heat"), engine.busy():
            heat = plan.heat(attempt.assembled, attempt.token_ids)
    first = time.perf_counter() if held else attempt.first
    if held and text:
        yield text
    under_way.answer = Answer(
        text,
        hits,
        usage,
        Timings(retrieved - under_way.began, loaded_s, first - under_way.began, time.perf_counter() - under_way.began),
        tuple(notices),
        fidelity=fidelity,
        confidence=attempt.confidence,
        doubtful=bool(thresholds and given and hits and thresholds.doubts(reader, attempt.confidence, text)),
        fell_back=fell_back,
        abstained=unasked or withheld is not None,
        withheld=withheld,
        finish_reason=attempt.finish_reason,
        left_out=len(found) - len(hits),
        forgotten=attempt.assembled.forgotten,
        heat=heat,
        evidence=attempt.assembled.prompt.evidence if attempt.asked else (),
    )
    if plan.conversation is not None:
        plan.conversation.add(text)


def _found(plan: AnswerPlan) -> Sequence[Hit]:
    if not plan.searches:
        return plan.find()
    with plan.steps.step("search") as step:
        found = plan.find()
        step.counts["passages"] = len(found)
    return found


def _attempt(
    under_way: _UnderWay, engine: Engine, plan: AnswerPlan, found: Sequence[Hit], *, text: bool, held: bool
) -> Generator[str, None, _Attempt]:
    """Read and answer once; the pieces are yielded unless `held`."""
    began, ask = time.perf_counter(), plan.ask
    turn = plan.steps.begin("wait")
    with engine.busy(), torch.inference_mode():
        turn.ended = time.perf_counter()
        assembled = plan.assemble(found, text)
    loaded_s = time.perf_counter() - began
    if not (assembled.hits or assembled.earlier or ask.closed_book):
        if not held:
            yield NO_ANSWER
        return _Attempt(assembled, NO_ANSWER, Usage(0, 0, 0, 0), 0.0, loaded_s, time.perf_counter(), asked=False)
    sampling = Sampling(ask.max_new_tokens, ask.temperature, ask.top_p, ask.seed, constraint=plan.constraint)
    service, keep = engine.service_of(ask.reader), plan.conversation is not None
    reply = Reply.begin(service, assembled.prompt, sampling, stop=plan.stop, keep=keep, steps=plan.steps)
    under_way.reply = reply
    if under_way.cancelled:  # while the passages were loaded
        reply.cancel()
    for piece in reply:
        if not held:
            yield piece
    assembled = replace(assembled, notices=(*assembled.notices, *reply.notices[len(assembled.prompt.notices) :]))
    first = reply.first or time.perf_counter()
    usage = replace(reply.usage, source_tokens=assembled.source_tokens)
    said, sure = reply.text.strip(), reply.completion.logprob
    ids = tuple(reply.completion.token_ids)
    return _Attempt(assembled, said, usage, sure, loaded_s, first, reply.finish_reason, ids)


def _both(a: Usage, b: Usage) -> Usage:
    """What two answers took; the source tokens are those of the second."""
    return replace(
        b,
        anchors=a.anchors + b.anchors,
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
        reused=a.reused + b.reused,
    )
