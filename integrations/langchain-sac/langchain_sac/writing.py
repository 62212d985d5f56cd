"""One answer while it is written: tokens to text, its settings and its account."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.answer.prompt import Prompt
    from sac_rag.answer.reader import Sampling


@dataclass(frozen=True)
class Call:
    """Settings of one call."""

    sampling: Sampling
    stop: tuple[str, ...]
    timeout: float | None
    wheres: tuple[dict[str, Any] | None, ...]
    allowed: tuple[Sequence[str] | None, ...]


class Writing:
    """Turns tokens into pieces of text until the answer is over."""

    def __init__(self, rag: SacRag, prompt: Prompt, call: Call) -> None:
        from sac_rag.answer.reader import TextStream

        self._stream = TextStream(rag.engine.method.backbone, call.stop)
        self._rag, self._prompt, self._call = rag, prompt, call
        self._tokens, self._began = 0, time.monotonic()

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence was written: no more tokens are needed."""
        return self._stream.stopped

    def push(self, token: int) -> str:
        """The text that a token completes; TimeoutError when the time is over."""
        self._tokens += 1
        piece = self._stream.push(token)
        limit = self._call.timeout
        if limit is not None and time.monotonic() - self._began > limit:
            raise TimeoutError(f"no whole answer within timeout={limit} s: allow more time or lower max_tokens")
        return piece

    def end(self, reused: int) -> tuple[str, UsageMetadata, dict[str, Any]]:
        """(the last piece of text, usage, response metadata). reused: cache slots that an earlier turn had read."""
        rest, p = self._stream.flush(), self._prompt
        usage = UsageMetadata(
            input_tokens=p.tokens + p.slots,
            output_tokens=self._tokens,
            total_tokens=p.tokens + p.slots + self._tokens,
            input_token_details=InputTokenDetails(cache_read=p.slots),
        )
        cut = not self.stopped and self._tokens >= self._call.sampling.max_new_tokens
        metadata = {
            "model_name": model_name(self._rag),
            "model_provider": "sac",
            "finish_reason": "length" if cut else "stop",
            "source_tokens": p.source_tokens,
            "reused_tokens": reused,
        }
        return rest, usage, metadata


def model_name(rag: SacRag) -> str:
    """The base model's name; of a folder, its last part."""
    return Path(rag.engine.model_name).name
