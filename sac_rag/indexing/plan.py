"""What an indexing run has to do: documents compared with a library, and cut into orders of bounded size.

Orders depend on the documents alone, never on what is stored already: an interrupted run resumed gives the bytes of
an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sac_rag.config import IndexConfig
from sac_rag.errors import ConfigError
from sac_rag.indexing.make import Compressor, Work
from sac_rag.library.library import Library
from sac_rag.records import Document, Passage
from sac_rag.text.passages import offsets_of, split

T = TypeVar("T")
TextT = TypeVar("TextT", Passage, Document)

GROUP_BYTES = 48_000
"""Source bytes that are read, compressed and committed together; a longer text is cut into parts of as many
characters."""
GIVEN = "given:"
"""In front of the content hash of a document that came as text: no file of that name is ever gone."""
UNFINISHED = "unfinished:"
"""In front of the content hash of a document of which some parts are stored and others are to come."""


@dataclass(frozen=True)
class Change:
    """One document, or a part of it, as it is to be stored."""

    document: Document
    passages: tuple[Passage, ...]
    keep: frozenset[str]
    """Ids of all passages of the document: those that are stored stay until their part comes."""
    content_hash: str


@dataclass
class Order:
    """What is made and committed together. Put together by `Planner`, changed by nobody else."""

    changes: list[Change] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    """Documents, by uri, that are gone or blank now."""
    compress: list[Passage] = field(default_factory=list)
    """Passages that have no memory yet."""
    embed: list[Passage] = field(default_factory=list)
    """Passages that have no vector yet, or that of another heading."""
    ready: dict[str, np.ndarray] = field(default_factory=dict)
    """Vectors that came with the documents, by passage id."""

    def __bool__(self) -> bool:
        return bool(self.changes or self.remove)

    def work(self) -> Work:
        return Work(tuple((p.id, p.text) for p in self.compress), tuple((p.id, embedded(p)) for p in self.embed))


@dataclass
class Plan:
    """What comes of a group of documents."""

    orders: list[Order] = field(default_factory=list)
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    blank: list[str] = field(default_factory=list)
    """Uris of documents without a word."""


class Planner:
    """Compares documents with what an open library holds. Its answers hold until the library changes."""

    def __init__(self, library: Library, compressor: Compressor, config: IndexConfig) -> None:
        self.library, self.compressor, self.config = library, compressor, config

    def plan(
        self,
        documents: Sequence[Document],
        *,
        gone: Sequence[str] = (),
        ready: Mapping[str, np.ndarray] | None = None,
        origin: str = "",
    ) -> Plan:
        """gone: uris to be removed if they are stored. ready: vectors of whole documents, by uri. origin: in front of
        content hashes."""
        plan, orders, size = Plan(), [Order()], 0
        for document in documents:
            length = len(document.text)
            if size and size + length > GROUP_BYTES:
                orders.append(Order())
                size = 0
            size += length
            digest = origin + self._digest(document)
            before = self.library.content_hash(document.uri)
            if before == digest:
                plan.unchanged += 1
                continue
            passages = self._split(document)
            if not passages:
                plan.blank.append(document.uri)
                continue
            known = {p.id: p.heading for p in self.library.passages(document.uri)} if before else {}
            finished = before is not None and not before.startswith(UNFINISHED)
            plan.added += not finished
            plan.changed += finished
            if length <= GROUP_BYTES:
                self._change(orders[-1], document, passages, passages, known, digest, ready or {})
            else:
                orders += self._parts(document, passages, known, digest, ready or {})
        stored = {d.uri for d in self.library.documents([*gone, *plan.blank])}
        orders[0].remove += [uri for uri in (*gone, *plan.blank) if uri in stored]
        plan.orders = [order for order in orders if order]
        return plan

    def _parts(
        self,
        document: Document,
        passages: list[Passage],
        known: Mapping[str, str],
        digest: str,
        ready: Mapping[str, np.ndarray],
    ) -> Iterator[Order]:
        """A long document as orders, the last of which finishes it. Parts without anything new come with the next."""
        waiting: list[Passage] = []
        for part in cut(passages):
            waiting += part
            last = part[-1] is passages[-1]
            if last or any(known.get(p.id) != p.heading for p in part):
                order = Order()
                self._change(order, document, waiting, passages, known, digest if last else UNFINISHED + digest, ready)
                waiting = []
                yield order

    def _change(
        self,
        order: Order,
        document: Document,
        passages: Sequence[Passage],
        whole: Sequence[Passage],
        known: Mapping[str, str],
        content_hash: str,
        ready: Mapping[str, np.ndarray],
    ) -> None:
        order.changes.append(Change(document, tuple(passages), frozenset(p.id for p in whole), content_hash))
        order.compress += [p for p in passages if p.id not in known]
        # The heading is embedded with the text, so that another one means another vector.
        unlike = [p for p in passages if known.get(p.id) != p.heading]
        # A document that is one passage has the vector of its passage; parts of a longer one have their own.
        if len(whole) == 1 and unlike and document.uri in ready:
            order.ready[whole[0].id] = ready[document.uri]
        else:
            order.embed += unlike

    def _split(self, document: Document) -> list[Passage]:
        with self.compressor.busy():
            offsets = offsets_of(self.compressor.tokenizer)
            return split(document, offsets, max_tokens=self.config.passage_tokens, overlap=self.config.overlap)

    def _digest(self, document: Document) -> str:
        parts = [document.text, document.headings, document.meta, self.config.passage_tokens, self.config.overlap]
        parts += [document.shifts] if document.shifts else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def groups(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in their order, in groups of at most GROUP_BYTES in all; a larger one is a group by itself."""
    group: list[T] = []
    size = 0
    for item in items:
        own = size_of(item)
        if group and size + own > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += own
    if group:
        yield group


def cut(texts: Iterable[TextT]) -> Iterator[list[TextT]]:
    """Passages or documents in groups, by their characters."""
    return groups(texts, lambda item: len(item.text))


def file_groups(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Files that are read together, by their bytes."""

    def size_of(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError:
            return 0

    return groups(files, size_of)


def check_meta(uri: str, meta: Mapping[str, Any]) -> None:
    """Raises ConfigError naming a key of a document's metadata whose value cannot be stored."""
    for key, value in meta.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metadata {key!r} of document {uri!r} is no JSON ({error}): make it a str") from error


def embedded(passage: Passage) -> str:
    """What the embedder reads: the heading gives a passage its subject."""
    return f"{passage.heading}\n{passage.text}" if passage.heading else passage.text
