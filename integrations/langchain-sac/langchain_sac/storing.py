"""LangChain documents as documents of a library and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from sac_rag.errors import ConfigError
from sac_rag.library.filters import plain
from sac_rag.records import Document as Stored
from sac_rag.records import Passage, nfc

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.library.library import StoredDocument

OWN = "_langchain"
"""Where is kept what a library cannot: metadata that mean something else there, keys that are no texts, and the white
space between passages."""

_HIDDEN = (OWN, "_node_content", "_node_type", "_stale")


def digest(document: Document) -> str:
    """The id of a document that has none: the same text and metadata are the same document."""
    metadata = {str(k): v for k, v in document.metadata.items()}
    parts = json.dumps([document.page_content, metadata], sort_keys=True, skipkeys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def to_stored(rag: SacRag, uri: str, document: Document) -> Stored:
    """A document for `SacRag.put`; ConfigError when it is blank or its metadata cannot be stored."""
    text = nfc(document.page_content)
    if not text.strip():
        raise ConfigError(f"document {uri!r} is blank: leave it out")
    meta, own = _plain(uri, document.metadata), dict[str, Any]()
    if _are_offsets(meta.get("pages")):  # a reader's, to the library
        own["kept"] = {"pages": meta.pop("pages")}
    if keys := [(str(k), k) for k in document.metadata if not isinstance(k, str)]:
        own["keys"] = keys
    if any(blanks := list(_blanks(text, rag.split(Stored(uri, text))))):
        own["blanks"] = blanks
    return Stored(uri, text, meta={**meta, OWN: own} if own else meta)


def _plain(uri: str, metadata: Mapping[Any, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str | int | float | bool | None) or str(key) in meta:
            raise ConfigError(f"metadata of document {uri!r} has the key {key!r}: make keys different texts")
        try:
            meta[str(key)] = plain(value)
        except ConfigError as error:
            raise ConfigError(f"metadata {key!r} of document {uri!r}: {error}") from error
    return meta


def _are_offsets(pages: Any) -> bool:
    return isinstance(pages, list) and all(isinstance(at, int) for at in pages)


def visible(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as it was given, without what integrations keep beside it."""
    own = meta.get(OWN, {})
    names = dict(own.get("keys", ()))
    shown = {names.get(k, k): v for k, v in meta.items() if k not in _HIDDEN}
    return {**shown, **own.get("kept", {})}


def stored(document: StoredDocument, text: str, more: dict[str, Any]) -> Document:
    """A document, or a passage of it, with the metadata that it was added with."""
    return Document(page_content=text, metadata={**visible(document.meta), **more}, id=document.uri)


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


def _blanks(text: str, passages: Sequence[Passage]) -> Iterator[str]:
    """White space in front of each passage, and behind the last."""
    at = 0
    for p in passages:
        yield text[at : p.start]
        at = max(at, p.end)
    yield text[at:]
