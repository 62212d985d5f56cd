"""LangChain documents as documents of a library and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from sac_rag.errors import ConfigError
from sac_rag.records import Document as Stored
from sac_rag.records import Passage

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.library.library import StoredDocument

RESERVED = ("document", "pages")
"""Metadata keys with a meaning of their own in a library: kept, but not to be filtered by."""
OWN = "_langchain"
"""Where reserved metadata and the white space between passages are kept."""


def digest(document: Document) -> str:
    """The id of a document that has none: the same text and metadata are the same document."""
    parts = json.dumps([document.page_content, document.metadata], sort_keys=True, skipkeys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def to_stored(rag: SacRag, uri: str, document: Document) -> Stored:
    """A document for `SacRag.put`; ConfigError when it is blank or its metadata is no JSON."""
    from sac_rag.indexing import check_meta
    from sac_rag.text.passages import offsets_of, split

    text = document.page_content
    if not text.strip():
        raise ConfigError(f"document {uri!r} is blank: leave it out")
    check_meta(uri, document.metadata)
    meta = {k: v for k, v in document.metadata.items() if k not in RESERVED}
    own: dict[str, Any] = {}
    if kept := {k: v for k, v in document.metadata.items() if k in RESERVED}:
        own["kept"] = kept
    with rag.engine.busy():
        offsets = offsets_of(rag.engine.method.backbone.tokenizer)
        passages = split(Stored(uri, text), offsets, max_tokens=rag.config.passage_tokens, overlap=rag.config.overlap)
    if any(blanks := list(_blanks(text, passages))):
        own["blanks"] = blanks
    return Stored(uri, text, meta={**meta, OWN: own} if own else meta)


def stored(document: StoredDocument, text: str, more: dict[str, Any]) -> Document:
    """A document, or a passage of it, with the metadata that it was added with."""
    own = document.meta.get(OWN, {})
    meta = {k: v for k, v in document.meta.items() if k != OWN}
    return Document(page_content=text, metadata={**meta, **own.get("kept", {}), **more}, id=document.uri)


def whole(document: StoredDocument, passages: Sequence[Passage]) -> Document:
    """The document as it was added. Of one that came otherwise, a file, white space between passages is a guess."""
    blanks = document.meta.get(OWN, {}).get("blanks")
    text = ""
    for n, p in enumerate(passages):
        gap = p.start - len(text)
        if gap > 0 or blanks:
            text += blanks[n] if blanks else " " if gap == 1 else "\n" * gap
        text += p.text[len(text) - p.start :]
    return stored(document, text + (blanks[-1] if blanks else ""), {})


def groups(documents: Sequence[Stored]) -> Iterator[list[Stored]]:
    """Documents that are compressed and committed together."""
    from sac_rag.indexing import GROUP_BYTES

    group: list[Stored] = []
    size = 0
    for d in documents:
        if group and size + len(d.text) > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(d)
        size += len(d.text)
    if group:
        yield group


def _blanks(text: str, passages: Sequence[Passage]) -> Iterator[str]:
    """White space in front of each passage, and behind the last."""
    at = 0
    for p in passages:
        yield text[at : p.start]
        at = max(at, p.end)
    yield text[at:]
