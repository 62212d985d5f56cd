"""Documents as text for a prompt: their memory's tag where a model reads it, their text everywhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.prompts import StringPromptTemplate
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import Field

from sac_rag.answer.tags import text_digest

if TYPE_CHECKING:
    from langchain_sac.chat_models import ChatSac
    from sac_rag import SacRag

SAC_KEYS = ("sac_id", "sac_tag", "sac_text_sha")
"""Metadata that leads from a document to its memory: plain strings, which survive every store and checkpoint."""


def sac_metadata(rag: SacRag, passage_id: str, text: str) -> dict[str, str]:
    """Metadata of a document whose text is this passage."""
    return {"sac_id": passage_id, "sac_tag": rag.tag(passage_id), "sac_text_sha": text_digest(text)}


def passage_text(page_content: str, metadata: dict[str, Any], llm: Any = None) -> str:
    """What stands for a document in a prompt for `llm`.

    The tag if `llm` is a ChatSac (bound settings included) that would read this very memory, and the text is still
    the one that was compressed. Else the text: for another model, for an edited document, for a foreign library.
    """
    tag, digest = metadata.get("sac_tag"), metadata.get("sac_text_sha")
    if not isinstance(tag, str) or not tag or digest != text_digest(page_content):
        return page_content
    chat, settings = chat_of(llm)
    return tag if chat is not None and chat.reads(tag, **settings) else page_content


def format_docs_sac(docs: Iterable[Document], llm: Any = None, *, separator: str = "\n\n") -> str:
    """Documents joined for a prompt. llm: the model that will read it; tags are written for a ChatSac alone."""
    return separator.join(passage_text(d.page_content, d.metadata, llm) for d in docs)


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
    """The ChatSac that alone would read a prompt for `llm`, and the settings bound to it."""
    from langchain_sac.chat_models import ChatSac

    settings: dict[str, Any] = {}
    while isinstance(llm, RunnableBindingBase):
        settings = {**llm.kwargs, **settings}
        llm = llm.bound
    return (llm, settings) if isinstance(llm, ChatSac) else (None, {})
