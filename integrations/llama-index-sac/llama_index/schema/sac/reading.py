"""Which LLM is about to read nodes: a tag is for a `SacLLM` alone."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.tools import BaseTool
from llama_index_instrumentation import get_dispatcher

_HELD_AS = ("llm", "_llm", "_multi_modal_llm")
"""Under which names synthesizers, agents, engines and postprocessors hold their LLM."""
_UNKNOWN = object()
"""A reader that is no SacLLM, for all one knows."""


@dataclass(eq=False)
class _Work:
    """A component at work, and the one that called it. It may end in another context than it began in."""

    reader: Any
    caller: _Work | None
    over: bool = False


_WORK: ContextVar[_Work | None] = ContextVar("sac_work", default=None)


def is_read(tag: str) -> bool:
    """Whether the LLM of the component at work reads a tag as memory.

    True where none is at work: a user's own prompt. False in postprocessors without an LLM, which want the text, and
    in tools that nobody knows the reader of.
    """
    if (work := _at_work()) is None:
        return True
    from llama_index.llms.sac import SacLLM

    return isinstance(work.reader, SacLLM) and work.reader.reads(tag)


def _at_work() -> _Work | None:
    work = _WORK.get()
    while work is not None and work.over:
        work = work.caller
    return work


def _reader_of(instance: Any) -> Any:
    """The LLM that a component asks, `_UNKNOWN`, or None: that of its caller."""
    # Not getattr: a property may load LlamaIndex's default LLM.
    held = {**(getattr(instance, "__pydantic_private__", None) or {}), **getattr(instance, "__dict__", {})}
    for name in _HELD_AS:
        if held.get(name) is not None:
            return held[name]
    unknown = isinstance(instance, BaseNodePostprocessor) or (isinstance(instance, BaseTool) and _at_work() is None)
    return _UNKNOWN if unknown else None


class _Readers(BaseSpanHandler[BaseSpan]):
    """Follows LlamaIndex's own tracing: a node cannot know who asks for its content."""

    _under_way: dict[str, _Work] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "SacReaders"

    def new_span(self, id_: str, bound_args: Any, instance: Any = None, *args: Any, **kwargs: Any) -> None:
        if (reader := _reader_of(instance)) is not None:
            self._under_way[id_] = work = _Work(reader, _at_work())
            _WORK.set(work)

    def prepare_to_exit_span(self, id_: str, *args: Any, **kwargs: Any) -> None:
        self._leave(id_)

    def prepare_to_drop_span(self, id_: str, *args: Any, **kwargs: Any) -> None:
        self._leave(id_)

    def _leave(self, id_: str) -> None:
        if (work := self._under_way.pop(id_, None)) is not None:
            work.over, work.reader = True, None


def watch() -> None:
    """Follow the components of this process; once is enough."""
    root = get_dispatcher()
    if not any(isinstance(h, _Readers) for h in root.span_handlers):
        root.add_span_handler(_Readers())
