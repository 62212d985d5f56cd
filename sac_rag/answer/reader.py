"""The decoder's side of a question: memory and prompt in, tokens out, one by one or batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.backbone import Backbone, Session


@dataclass(frozen=True)
class Prompt:
    """What the decoder reads: `token_ids` behind `memory` (or behind nothing)."""

    token_ids: list[int]
    memory: Memory | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop."""

    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass, used when temperature > 0."""
    seed: int = 0
    """Seed of sampling; a row's draws do not depend on its batch."""


@dataclass
class Completion:
    """Token ids without the end token; logprob: mean log-probability (nats) of the chosen tokens, end included."""

    token_ids: list[int]
    logprob: float
    ended: bool
    """False when the length limit cut the answer."""


class Decoding:
    """Prompts being completed as one left-padded batch; rows leave it as they end.

    Cancelling is dropping the object: nothing runs between two calls of `advance`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        stop_ids: frozenset[int],
        *,
        use_lora: bool = False,
    ) -> None:
        self.completions = [Completion([], 0.0, False) for _ in prompts]
        self._backbone, self._sampling, self._stop_ids = backbone, sampling, stop_ids
        self._choosers = [_Chooser(sampling) for _ in prompts]
        self._rows = list(range(len(prompts)))
        self._last: list[int] = []
        self._session: Session | None = None
        self._start = ([p.memory for p in prompts], [p.token_ids for p in prompts], use_lora)

    @property
    def done(self) -> bool:
        return not self._rows

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, int]]:
        """One more token for every row under way: (row, token id), end tokens left out."""
        if self._session is None:
            memories, texts, use_lora = self._start
            self._session = self._backbone.start(memories, texts, use_lora=use_lora)
        else:
            self._session.step(torch.tensor(self._last, device=self._backbone.device))
        logprobs = self._session.logits.float().log_softmax(-1)
        greedy = self._sampling.temperature == 0
        best = logprobs.argmax(-1).tolist() if greedy else []
        tokens = best if greedy else [self._choosers[r](logprobs[i]) for i, r in enumerate(self._rows)]
        new, going = [], []
        for i, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            c = self.completions[row]
            length = len(c.token_ids) + 1
            c.logprob += (float(logprobs[i, token]) - c.logprob) / length
            if token in self._stop_ids:
                c.ended = True
                continue
            c.token_ids.append(token)
            new.append((row, token))
            if length < self._sampling.max_new_tokens:
                going.append(i)
        if going and len(going) < len(self._rows):
            self._session.keep(torch.tensor(going, device=self._backbone.device))
        self._rows, self._last = [self._rows[i] for i in going], [tokens[i] for i in going]
        return new


class Reader:
    """Generates from one backbone; `stop_ids` end an answer. Callers see to it that one thread at a time is inside."""

    def __init__(self, backbone: Backbone, stop_ids: Sequence[int], *, use_lora: bool = False) -> None:
        self.backbone, self.stop_ids, self.use_lora = backbone, frozenset(stop_ids), use_lora

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Decoding:
        """Begin completing `prompts`; each `advance` of the result is one step."""
        return Decoding(self.backbone, prompts, sampling, self.stop_ids, use_lora=self.use_lora)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Complete all prompts as one batch."""
        decoding = self.start(prompts, sampling)
        while not decoding.done:
            decoding.advance()
        return decoding.completions


class _Chooser:
    """Nucleus sampling (Holtzman et al., 2020) with a generator of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logprobs: torch.Tensor) -> int:
        p = (logprobs.cpu() / self._sampling.temperature).softmax(-1)
        if self._sampling.top_p < 1:
            ordered, index = p.sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered > self._sampling.top_p] = 0
            p = torch.zeros_like(p).scatter_(0, index, ordered)
        return int(torch.multinomial(p, 1, generator=self._generator))


class TextStream:
    """Token ids to text pieces, never cutting a character in half: joined pieces equal the whole decoding."""

    def __init__(self, backbone: Backbone) -> None:
        self._tokenizer, self._shown = backbone.tokenizer, 0
        self._ids: list[int] = []

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = decode(self._tokenizer, self._ids)
        if text.endswith("\ufffd"):
            return ""
        piece, self._shown = text[self._shown :], len(text)
        return piece

    def flush(self) -> str:
        """What an unfinished character left behind."""
        piece = decode(self._tokenizer, self._ids)[self._shown :]
        self._shown += len(piece)
        return piece


def decode(tokenizer: object, ids: Sequence[int]) -> str:
    """Text of generated ids; special tokens are dropped."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)  # type: ignore[attr-defined]
