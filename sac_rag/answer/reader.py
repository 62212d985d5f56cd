"""The decoder's side of a question: prompts in, tokens out, any number of rows under way at once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sac_rag.answer.constrained import Constraint, Guide
from sac_rag.answer.drafts import DRAFT_TOKENS, Drafter
from sac_rag.answer.prompt import Prompt
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.session import BATCH_TOKENS, Session
from sac_rag.config import check_sampling
from sac_rag.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop."""

    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass, used when temperature > 0."""
    seed: int | None = None
    """Seed of sampling, None for a fresh one; a row's draws do not depend on its batch."""
    min_new_tokens: int = 0
    """Tokens before which an answer cannot end."""
    constraint: Constraint | None = None
    """What the answer is held to while it is decoded."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"an answer of {self.max_new_tokens} tokens was asked for; it must have at least 1")
        if self.constraint is not None and self.constraint.shortest > self.max_new_tokens:
            raise ConfigError(
                f"the shortest answer that fits the schema has about {self.constraint.shortest} tokens, and "
                f"{self.max_new_tokens} are allowed: raise the limit"
            )
        check_sampling(self.temperature, self.top_p, self.seed)


@dataclass
class Completion:
    """Token ids without the end token; logprob: mean log-probability (nats) of the chosen tokens, end included."""

    token_ids: list[int]
    logprob: float
    ended: bool
    """False when the length limit cut the answer."""
    broken: bool = False
    """Whether the limit cut it before it fitted its constraint."""
    means: list[float] = field(default_factory=list)
    """What `logprob` was behind each of the chosen tokens."""

    def first(self, count: int) -> Completion:
        """That of the first so many tokens alone; itself where there are no more."""
        if not 0 < count < len(self.token_ids):
            return self
        return Completion(self.token_ids[:count], self.means[count - 1], False, means=self.means[:count])


class Row:
    """One prompt being completed."""

    def __init__(self, sampling: Sampling, drafter: Drafter | None = None) -> None:
        self.completion = Completion([], 0.0, False)
        self.sampling = sampling
        self.last = 0
        """The token that was chosen and not read yet."""
        self.passes = 0
        """Passes of the model behind that of the prompt: fewer than tokens where drafts were right."""
        self._drafter = drafter
        self.error: ConfigError | None = None
        """Why this row, and no other, cannot go on."""
        self._generator = _generator(sampling.seed) if sampling.temperature else None
        self._guide = Guide(sampling.constraint) if sampling.constraint is not None else None

    def choose(self, logprobs: torch.Tensor, best: int, stop_ids: frozenset[int]) -> int:
        """The next token from (vocabulary,) log-probabilities, whose largest is at `best`; noted in `completion`."""
        c, s = self.completion, self.sampling
        early = len(c.token_ids) < s.min_new_tokens
        guide = self._guide if self._guide is not None and self._guide.holds else None
        if guide is not None:
            logprobs, best = guide.limit(logprobs, stop_ids)
        elif early and (best in stop_ids or self._generator is not None):
            logprobs = logprobs.index_fill(0, torch.tensor(sorted(stop_ids), device=logprobs.device), -torch.inf)
            best = int(logprobs.argmax())
        token = best if self._generator is None else _nucleus(logprobs, s, self._generator)
        if guide is not None:
            token = guide.in_time(token, stop_ids, s.max_new_tokens - len(c.token_ids))
        c.logprob += (float(logprobs[token]) - c.logprob) / (len(c.token_ids) + 1)
        c.means.append(c.logprob)
        if token in stop_ids:
            c.ended = True
        else:
            c.token_ids.append(token)
            if self._guide is not None:
                self._guide.take(token)
                c.broken = len(c.token_ids) >= s.max_new_tokens and not self._guide.whole
        self.last = token
        return token

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow the last one; none without a drafter."""
        if self._drafter is None:
            return []
        left = self.sampling.max_new_tokens - len(self.completion.token_ids) - 1
        return self._drafter.draft(self.completion.token_ids, min(most, left))

    @property
    def done(self) -> bool:
        c = self.completion
        return self.error is not None or c.ended or len(c.token_ids) >= self.sampling.max_new_tokens


class Decoding:
    """Rows being completed as one batch: new ones join while others are under way, done ones leave.

    Nothing runs between two calls; dropping the object ends the work. draft_tokens: longest draft of a row.
    """

    def __init__(
        self,
        backbone: Backbone,
        stop_ids: frozenset[int],
        *,
        use_lora: bool = False,
        draft_tokens: int = DRAFT_TOKENS,
    ) -> None:
        self.rows: list[Row] = []
        self._backbone, self._stop_ids, self._use_lora = backbone, stop_ids, use_lora
        self._draft_tokens = draft_tokens
        self._session: Session | None = None

    @property
    def done(self) -> bool:
        return not self.rows

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> list[Row]:
        """Read prompts and choose their first tokens; the rows are under way from then on, unless done at once."""
        return self.enter(self.read([p.after(0) for p in prompts]), prompts, samplings)

    @torch.inference_mode()
    def read(self, parts: Sequence[Sequence[object]], onto: Session | None = None) -> Session:
        """A session that has read these parts, one list a row; `onto` goes on with what is read already."""
        if onto is None:
            return Session(self._backbone, parts, use_lora=self._use_lora)  # type: ignore[arg-type]
        onto.read(parts)  # type: ignore[arg-type]
        return onto

    @torch.inference_mode()
    def enter(self, session: Session, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> list[Row]:
        """Take the rows of a session in, which has read these prompts, and choose their first tokens."""
        rows = [Row(s, Drafter(self._backbone, p)) for p, s in zip(prompts, samplings, strict=True)]
        self._choose(rows, session.logits, [()] * len(rows))
        if self._session is None or not self.rows:
            self._session = session
        else:
            self._session.join(session)
        self.rows = [*self.rows, *rows]
        return rows

    @torch.inference_mode()
    def advance(self) -> list[Row]:
        """One more token for every row under way, and as many as a draft of it was right about; those rows, each with
        its new tokens or at its end."""
        self.leave([r for r in self.rows if r.done])
        if self._session is None or not self.rows:
            return []
        most = min(self._draft_tokens, BATCH_TOKENS // len(self.rows) - 1)
        drafts = [row.draft(most) for row in self.rows]
        for row in self.rows:
            row.passes += 1
        if not any(drafts):
            logits = self._session.step(torch.tensor([r.last for r in self.rows], device=self._backbone.device))
            self._choose(self.rows, logits, drafts)
        else:
            ends = self._session.positions
            logits = self._session.extend([[r.last, *draft] for r, draft in zip(self.rows, drafts, strict=True)])
            chosen = self._choose(self.rows, logits, drafts)
            self._session.rewind([end + count for end, count in zip(ends, chosen, strict=True)])
        return list(self.rows)

    @torch.inference_mode()
    def leave(self, rows: Sequence[Row]) -> None:
        """Take rows out, done or not."""
        gone = set(map(id, rows))
        kept = [i for i, r in enumerate(self.rows) if id(r) not in gone]
        if len(kept) == len(self.rows):
            return
        if kept and self._session is not None:
            self._session.keep(kept)
        else:
            self._session = None
        self.rows = [self.rows[i] for i in kept]

    def session_of(self, row: Row) -> Session | None:
        """A copy of a row's session, for a conversation to go on with; None when it has left."""
        index = next((i for i, r in enumerate(self.rows) if r is row), None)
        return None if index is None or self._session is None else self._session.row(index)

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor, drafts: Sequence[Sequence[int]]) -> list[int]:
        """Choose the tokens of each row behind its last one and those of its draft, as long as they are the draft's;
        how many. logits: (1 + draft of each row, vocabulary)."""
        logprobs = logits.float().log_softmax(-1)
        sizes = [1 + len(draft) for draft in drafts]
        best = iter(logprobs.argmax(-1).split(sizes))
        lines = zip(rows, logprobs.split(sizes), best, drafts, strict=True)
        return [self._taken(row, own, first.tolist(), draft) for row, own, first, draft in lines]

    def _taken(self, row: Row, logprobs: torch.Tensor, best: Sequence[int], draft: Sequence[int]) -> int:
        """Choose a row's tokens one by one until it is done or one is another than the draft's; how many."""
        taken, token = 0, -1
        while True:
            try:
                token = row.choose(logprobs[taken], best[taken], self._stop_ids)
            except ConfigError as error:  # of its constraint
                row.error = error
            taken += 1
            if row.done or taken > len(draft) or token != draft[taken - 1]:
                return taken


class Reader:
    """Generates from one backbone; `stop_ids` end an answer. Callers see to it that one thread at a time is inside."""

    def __init__(
        self,
        backbone: Backbone,
        stop_ids: Sequence[int],
        *,
        use_lora: bool = False,
        draft_tokens: int = DRAFT_TOKENS,
    ) -> None:
        self.backbone, self.stop_ids, self.use_lora = backbone, frozenset(stop_ids), use_lora
        self.draft_tokens = draft_tokens

    def start(self) -> Decoding:
        """An empty decoding of this reader."""
        return Decoding(self.backbone, self.stop_ids, use_lora=self.use_lora, draft_tokens=self.draft_tokens)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Complete all prompts as one batch."""
        decoding = self.start()
        rows = decoding.admit(prompts, [sampling] * len(prompts))
        while not decoding.done:
            decoding.advance()
        if failed := next((r.error for r in rows if r.error), None):
            raise failed
        return [r.completion for r in rows]


def _generator(seed: int | None) -> torch.Generator:
    return torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)


def _nucleus(logprobs: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Nucleus sampling (Holtzman et al., 2020)."""
    p = (logprobs.cpu() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, index = p.sort(descending=True)
        ordered[ordered.cumsum(-1) - ordered > sampling.top_p] = 0
        p = torch.zeros_like(p).scatter_(0, index, ordered)
    return int(torch.multinomial(p, 1, generator=generator))


class TextStream:
    """Token ids to text pieces, never cutting a character in half: joined pieces equal the whole decoding.

    stop: strings that end the text; the first one found and all after it is held back, and `stopped` is set.
    """

    def __init__(self, backbone: Backbone, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._shown = backbone.tokenizer, 0
        self._ids: list[int] = []
        self._stop = tuple(s for s in stop if s)
        self.stopped = False

    def push(self, token: int) -> str:
        if self.stopped:
            return ""
        self._ids.append(token)
        text = decode(self._tokenizer, self._ids)
        if text.endswith("\ufffd"):
            return ""
        return self._show(text, len(text) - _begun(text, self._stop))

    def flush(self) -> str:
        """What an unfinished character or the beginning of a stop string held back."""
        text = decode(self._tokenizer, self._ids)
        return "" if self.stopped else self._show(text, len(text))

    def _show(self, text: str, upto: int) -> str:
        found = [at for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            upto, self.stopped = min(found), True
        piece, self._shown = text[self._shown : upto], max(self._shown, upto)
        return piece


def _begun(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a stop string."""
    sizes = (n for s in stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n]))
    return max(sizes, default=0)


def decode(tokenizer: object, ids: Sequence[int]) -> str:
    """Text of generated ids; special tokens are dropped."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)  # type: ignore[attr-defined]
