"""Which LLM is about to read nodes: a tag is for a `SacLLM` alone."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar, Token
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index_instrumentation import get_dispatcher

_READER: ContextVar[Any] = ContextVar("sac_reader", default=None)


def is_read(tag: str) -> bool:
    """Whether the LLM of the synthesizer at work reads a tag as memory; True where no synthesizer is at work."""
    llm = _READER.get()
    if llm is None:
        return True
    from llama_index.llms.sac import SacLLM

    return isinstance(llm, SacLLM) and llm.reads(tag)


class _Readers(BaseSpanHandler[BaseSpan]):
    """Follows LlamaIndex's own tracing: a node cannot know who asks for its content."""

    _before: dict[str, Token[Any]] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "SacReaders"

    def new_span(self, id_: str, bound_args: Any, instance: Any = None, *args: Any, **kwargs: Any) -> None:
        if isinstance(instance, BaseSynthesizer):
            self._before[id_] = _READER.set(instance._llm)

    def prepare_to_exit_span(self, id_: str, *args: Any, **kwargs: Any) -> None:
        self._leave(id_)

    def prepare_to_drop_span(self, id_: str, *args: Any, **kwargs: Any) -> None:
        self._leave(id_)

    def _leave(self, id_: str) -> None:
        if (before := self._before.pop(id_, None)) is not None:
            with contextlib.suppress(ValueError):  # of another context, which has ended
                _READER.reset(before)


def watch() -> None:
    """Follow the synthesizers of this process; once is enough."""
    root = get_dispatcher()
    if not any(isinstance(h, _Readers) for h in root.span_handlers):
        root.add_span_handler(_Readers())
