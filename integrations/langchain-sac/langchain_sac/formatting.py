"""Documents as text for a prompt: their memory's tag where a model reads it, their text everywhere else."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.prompts import StringPromptTemplate
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import RunnableConfigurableAlternatives, RunnableConfigurableFields
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from pydantic import Field

from sac_rag.answer.tags import text_digest

if TYPE_CHECKING:
    from langchain_sac.chat_models import ChatSac
    from sac_rag import SacRag

_DECIDING = {"rag", "library", "where", "allowed_ids"}
"""Fields of a ChatSac that decide which memories it reads."""


def sac_metadata(rag: SacRag, passage_id: str, text: str) -> dict[str, str]:
    """Metadata that leads from a document to the memory of its text, which is this passage: plain strings, which
    survive every store and checkpoint. A ChatSac knows the text again from now on."""
    tag = rag.tag(passage_id)
    rag.offer(text, tag)
    return {"sac_id": passage_id, "sac_tag": tag, "sac_text_sha": text_digest(text)}


class TextWarning(UserWarning):
    """Documents are read as text, which takes longer, though a ChatSac is to answer from them."""


_WARNED: set[str] = set()


def warn_text(count: int, why: str) -> None:
    """Say once a process, for each reason, that documents are read as text."""
    if why not in _WARNED:
        _WARNED.add(why)
        warnings.warn(f"answers from {count} document(s) as text, because {why}", TextWarning, stacklevel=3)


def passage_text(page_content: str, metadata: dict[str, Any], llm: Any = None, name: str | None = None) -> str:
    """What stands for a document in a prompt for `llm`.

    The tag if `llm` is a ChatSac (bound settings included) that would read this very memory, and the text is still
    the one that was compressed. Else the text: for another model, for an edited document, for a foreign library.
    name: the document's id, by which the library may hold its text though no tag comes with it.
    """
    chat, settings = chat_of(llm)
    if chat is None:
        return page_content
    tag, digest = metadata.get("sac_tag"), metadata.get("sac_text_sha")
    if not isinstance(tag, str) or not tag or digest != text_digest(page_content):
        tag = chat.opened().stored_tag(name, page_content) if name else None
    if tag and chat.reads(tag, **settings):
        return tag
    return page_content


def format_docs_sac(docs: Iterable[Document], llm: Any = None, *, separator: str = "\n\n", quiet: bool = False) -> str:
    """Documents joined for a prompt. llm: the model that will read it; tags are written for a ChatSac alone.

    Where a ChatSac is to read documents as text, a TextWarning says why, once, unless `quiet`.
    """
    given = list(docs)
    texts = [passage_text(d.page_content, d.metadata, llm, d.id) for d in given]
    plain = [d for d, text in zip(given, texts, strict=True) if text == d.page_content and text.strip()]
    chat, _ = chat_of(llm)
    if quiet or not plain:
        pass
    elif chat is not None:
        warn_text(
            len(plain),
            f"{chat.library} holds no memory of their text that may be read here: add them to it, or let a "
            "SacDocumentCompressor of the same library compress them on their way",
        )
    elif why := reads_text(llm):
        warn_text(len(plain), why)
    return separator.join(texts)


class SacDocumentPrompt(StringPromptTemplate):
    """The `document_prompt` of stock chains and retriever tools: one document as `format_docs_sac` renders it.

    Such chains want the same metadata of every document; run those without memory through a SacDocumentCompressor.
    """

    input_variables: list[str] = Field(default_factory=lambda: ["page_content", "sac_tag", "sac_text_sha"])
    llm: Any = Field(default=None, repr=False)
    """The model that will read the prompt; without a ChatSac documents are rendered as text."""

    @property
    def _prompt_type(self) -> str:
        return "sac-document"

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        return ["langchain_sac", "formatting"]

    def format(self, **kwargs: Any) -> str:
        """The tag or the text of a document given by its text and metadata."""
        return passage_text(kwargs["page_content"], kwargs, self.llm)

    async def aformat(self, **kwargs: Any) -> str:
        return await asyncio.to_thread(self.format, **kwargs)


def chat_of(llm: Any) -> tuple[ChatSac | None, dict[str, Any]]:
    """The ChatSac that alone would read a prompt for `llm`, and the settings bound to it.

    Seen through bindings, retries, fallbacks to ChatSacs of the same library and filters, and fields that may be
    configured, as long as these do not decide what may be read.
    """
    from langchain_sac.chat_models import ChatSac

    settings: dict[str, Any] = {}
    while True:
        if isinstance(llm, RunnableBindingBase):
            settings = {**llm.kwargs, **settings}
            llm = llm.bound
        elif isinstance(llm, RunnableWithFallbacks) and _alike([llm.runnable, *llm.fallbacks]):
            llm = llm.runnable
        elif isinstance(llm, RunnableConfigurableFields) and not set(llm.fields) & _DECIDING:
            llm = llm.default
        else:
            return (llm, settings) if isinstance(llm, ChatSac) else (None, {})


def reads_text(llm: Any) -> str:
    """Why a ChatSac within `llm` is given text; empty where there is none."""
    while isinstance(llm, RunnableBindingBase):
        llm = llm.bound
    if isinstance(llm, RunnableWithFallbacks):
        inner, why = (
            [llm.runnable, *llm.fallbacks],
            "a fallback of the model may read a prompt that tags mean nothing to",
        )
    elif isinstance(llm, RunnableConfigurableFields):
        fields = ", ".join(sorted(set(llm.fields) & _DECIDING))
        inner, why = [llm.default], f"{fields} of the model may be configured, which decides what it reads"
    elif isinstance(llm, RunnableConfigurableAlternatives):
        inner, why = [llm.default], "an alternative of the model may read a prompt that tags mean nothing to"
    else:
        return ""
    return why if any(chat_of(m)[0] is not None for m in inner) else ""


def _alike(models: Iterable[Any]) -> bool:
    """Whether all are ChatSacs that read the same memories."""
    found = [chat_of(m) for m in models]
    return len({repr(_scope(chat, settings)) for chat, settings in found}) == 1 and found[0][0] is not None


def _scope(chat: ChatSac | None, settings: dict[str, Any]) -> Any:
    names = ("where", "allowed_ids")
    own = {n: (getattr(chat, n), settings.get(n)) for n in names} if chat is not None else None
    return chat and os.path.abspath(str(chat.library)), own
