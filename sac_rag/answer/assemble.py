"""Hits to one prompt: as memory (placed KV), as plain text, or the best as text and the rest as memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sac_rag.answer.prompt import Prompt
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.base import Method
from sac_rag.compress.placing import Placing
from sac_rag.compress.templates import evidence_ids
from sac_rag.errors import ConfigError
from sac_rag.records import Evidence, Hit
from sac_rag.text.evidence import evidence_lines, quoted


@dataclass(frozen=True)
class Assembled:
    """A prompt, the hits that are in it (best first), how they are read, and what had to stay out."""

    prompt: Prompt
    hits: tuple[Hit, ...]
    source_tokens: int
    fidelity: str
    """"memory", "mixed" or "text"."""
    notices: tuple[str, ...] = ()
    earlier: bool = False
    """Whether passages of earlier turns stand in the prompt."""
    forgotten: int = 0
    """Earlier turns that had to stay out."""
    texts: int = 0
    """How many of the best hits are read as text."""

    @property
    def anchors(self) -> int:
        return self.prompt.slots


def question_ids(method: Method, question: str, evidence: str = "") -> list[int]:
    """Ids of the question in its template, behind what is read as text beside memory; neither text ever becomes a
    special token."""
    backbone, layout = method.backbone, method.layout
    asked = [*backbone.template(layout.before), *backbone.tokens(question), *backbone.template(layout.after)]
    return [*evidence_ids(backbone, layout, evidence), *asked]


def memory_prompt(
    method: Method,
    hits: Sequence[Hit],
    memories: Sequence[AnchorKV],
    question: str,
    *,
    evidence: int = 0,
    placing: Placing | None = None,
    reserve: int = 64,
) -> Assembled:
    """The question behind the memories of the hits (given best first); the lowest ranked are dropped when they do not
    fit.

    evidence: sentences of these that are read as text, too, as far as they fit. placing: in place of the method's own.
    reserve: tokens kept free for the answer. Raises ConfigError when the question alone is too long.
    """
    own, ahead = placing or method.placing, method.ahead()
    sizes = [own.span([m]) for m in memories]
    kept, ids, found = _quoting(method, hits, 0, sizes, own.span(ahead), question, evidence, reserve)
    parts = [[m.to(device=method.backbone.device)] for m in memories[:kept]]
    front = (method.passages(parts, placing=own),) if parts or ahead else ()
    source = sum(m.source_len for m in memories[:kept])
    prompt = Prompt((*front, ids), texts=_texts(hits[:kept]), evidence=found)
    return Assembled(prompt, tuple(hits[:kept]), source, "memory", _notices(len(hits), kept))


def text_prompt(method: Method, hits: Sequence[Hit], question: str, *, reserve: int = 64) -> Assembled:
    """The same question behind the same passages as plain text, read token by token by the frozen model."""
    backbone, layout = method.backbone, method.layout
    prefix, ids = backbone.template(layout.prefix), question_ids(method, question)
    gap = backbone.template(layout.separator)
    texts = [backbone.tokens(h.passage.text) for h in hits]
    kept = _fitting(method, [len(t) + len(gap) for t in texts], len(prefix) + len(ids), reserve)
    body = _joined(texts[:kept], gap)
    prompt = Prompt(([*prefix, *body, *ids],))
    return Assembled(prompt, tuple(hits[:kept]), len(body), "text", _notices(len(hits), kept), texts=kept)


def mixed_prompt(
    method: Method,
    hits: Sequence[Hit],
    texts: int,
    memories: Sequence[AnchorKV],
    question: str,
    *,
    evidence: int = 0,
    placing: Placing | None = None,
    reserve: int = 64,
) -> Assembled:
    """The first `texts` hits as plain text, the others as their memories, then the question.

    The text stands where it stands in a text prompt: behind the prefix, a separator after each passage; positions go
    on through text and memory alike. The memory begins with the adapter's own prefix, as in any prompt. Where all that
    fits is text, or none is, the prompt is that of `text_prompt` or `memory_prompt`.
    """
    if not texts:
        return memory_prompt(method, hits, memories, question, evidence=evidence, placing=placing, reserve=reserve)
    backbone, layout = method.backbone, method.layout
    head = backbone.template(layout.prefix)
    gap = backbone.template(layout.separator)
    read = [backbone.tokens(h.passage.text) for h in hits[:texts]]
    policy = placing or method.placing
    sizes = [len(t) + len(gap) for t in read] + [policy.span([m]) for m in memories]
    own = policy.span(method.ahead(start=1))  # behind text
    kept, ids, found = _quoting(method, hits, texts, sizes, len(head) + own, question, evidence, reserve)
    if kept <= texts:
        short = text_prompt(method, hits[:texts], question, reserve=reserve)
        return replace(short, notices=_notices(len(hits), len(short.hits)))
    parts = [[m.to(device=backbone.device)] for m in memories[: kept - texts]]
    body = _joined(read, gap)
    front = [*head, *body, *gap]
    tail = method.passages(parts, placing=policy, start=len(front))
    source = len(body) + sum(m.source_len for m in memories[: kept - texts])
    prompt = Prompt((front, tail, ids), texts=_texts(hits[texts:kept]), evidence=found)
    return Assembled(prompt, tuple(hits[:kept]), source, "mixed", _notices(len(hits), kept), texts=texts)


def texts_of(method: Method, hits: Sequence[Hit], *, passages: int, tokens: int, score: float | None = None) -> int:
    """How many of the best hits to read as text: at most `passages`, of `tokens` in all, with a cosine of `score`."""
    count = 0
    for hit in hits[:passages]:
        tokens -= len(method.backbone.tokens(hit.passage.text))
        if tokens < 0 or (score is not None and (hit.dense is None or hit.dense < score)):
            break
        count += 1
    return count


def _texts(hits: Sequence[Hit]) -> tuple[str, ...]:
    return tuple(h.passage.text for h in hits)


def _joined(texts: Sequence[Sequence[int]], gap: Sequence[int]) -> list[int]:
    """Passages as text, the separator between them."""
    body: list[int] = []
    for text in texts:
        body += [*gap, *text] if body else text
    return body


def _quoting(
    method: Method,
    hits: Sequence[Hit],
    texts: int,
    sizes: Sequence[int],
    fixed: int,
    question: str,
    evidence: int,
    reserve: int,
) -> tuple[int, list[int], tuple[Evidence, ...]]:
    """How many leading hits fit the context, ids of the question behind sentences of those that are memories, all but
    the first `texts`, and these sentences.

    Sentences are those of passages that are read. The lowest ranked passage gives way to them, the last memory does
    not: there are fewer then.
    """
    limit = method.backbone.context_length
    most = _fitting(method, sizes, fixed + len(question_ids(method, question)), reserve)
    least = min(most, texts + 1)
    ways = [(n, evidence) for n in range(most, least, -1)] + [(least, n) for n in range(evidence, -1, -1)]
    for kept, count in ways:
        found = quoted([(h.passage.id, h.passage.text) for h in hits[texts:kept]], question, count)
        ids = question_ids(method, question, evidence_lines(found))
        if sum(sizes[:kept]) + fixed + len(ids) + reserve <= limit:
            break
    return kept, ids, found


def _fitting(method: Method, sizes: Sequence[int], fixed: int, reserve: int) -> int:
    """How many leading passages fit the context."""
    limit = method.backbone.context_length
    if fixed + reserve > limit:
        raise ConfigError(
            f"the question needs {fixed} tokens and the answer {reserve}, but the model reads {limit}: "
            "ask a shorter question or lower max_new_tokens"
        )
    room, kept = limit - fixed - reserve, 0
    for size in sizes:
        if size > room:
            break
        room -= size
        kept += 1
    return kept


def _notices(found: int, kept: int) -> tuple[str, ...]:
    if kept == found:
        return ()
    return (f"{found - kept} of {found} passages did not fit the model's context; the lowest ranked were left out",)
