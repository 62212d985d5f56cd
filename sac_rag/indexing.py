"""Documents into a library: read, cut, compress, embed, commit, group by group."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sac_rag.answer.engine import Engine
from sac_rag.config import IndexConfig, ReadConfig
from sac_rag.errors import ConfigError, DocumentError, LibraryMismatch
from sac_rag.library.library import Library
from sac_rag.library.vectors import normalise
from sac_rag.models.embedder import Embedder
from sac_rag.records import Document, Passage
from sac_rag.text.isolation import ParserProcess
from sac_rag.text.passages import offsets_of, split
from sac_rag.text.readers import EMPTY, NO_TEXT, read
from sac_rag.text.walk import walk

GROUP_BYTES = 48_000
"""Source bytes that are read, compressed and committed together. Groups depend on the files alone, never on what is
stored already, so an interrupted run resumed gives the bytes of an undisturbed one."""
GIVEN = "given:"
"""In front of the content hash of a document that came as text: no file of that name is ever gone."""
IGNORED = "hidden by .gitignore"
BLANK = (EMPTY, NO_TEXT)
"""Why a file was not indexed although it could be read: what was stored of it before is not there any more."""
EMBEDDED_TOGETHER = 256
"""Passages embedded between two reports of progress; as with groups, it has a say in the last bits of a vector."""


@dataclass(frozen=True)
class Skip:
    """A file that was not indexed, and why; for a folder, how many files."""

    path: str
    reason: str
    files: int = 1


@dataclass(frozen=True)
class Notice:
    """What was lost or guessed in a file that was indexed."""

    path: str
    text: str


@dataclass
class IndexReport:
    """What an indexing run did, in counts; also its running state for a progress bar."""

    files: int = 0
    """Files found under the given paths."""
    done: int = 0
    """Files dealt with so far."""
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    """Passages compressed in this run."""
    tokens: int = 0
    """Source tokens of those."""
    seconds: float = 0.0
    skipped: list[Skip] = field(default_factory=list)
    ignored: list[Skip] = field(default_factory=list)
    """Files and folders that .gitignore files exclude: nothing is known of them, so they count as gone."""
    notices: list[Notice] = field(default_factory=list)
    step: str = ""
    """What is being done: "finding files", "reading", "compressing", "embedding" or "storing"."""
    ahead: float = 0.0
    """Files of the group under way, by the share of its passages that is compressed."""


Listen = Callable[[IndexReport], None]


class Made:
    """Vectors that an embedder gave out in this process, known by their bytes; the oldest beyond `limit` are forgotten.

    Safe to share between threads.
    """

    def __init__(self, limit: int = 65_536) -> None:
        self.limit = limit
        self._seen: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def note(self, vectors: np.ndarray) -> None:
        """vectors: float32 of shape (n, dim)."""
        with self._lock:
            self._seen.update(dict.fromkeys(map(_bytes, vectors)))
            while len(self._seen) > self.limit:
                del self._seen[next(iter(self._seen))]

    def __contains__(self, vector: Any) -> bool:
        with self._lock:
            return _bytes(vector) in self._seen


class Indexer:
    """One run of indexing into an open library; `report` is its running state."""

    def __init__(self, library: Library, engine: Engine, embedder: Embedder, config: IndexConfig) -> None:
        self.library, self.engine, self.embedder, self.config = library, engine, embedder, config
        self.report = IndexReport()
        self._began = time.monotonic()
        self._listen: Listen | None = None
        self._group = 0
        """Files of the group under way."""

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        sync: bool = False,
        strict: bool = False,
        listen: Listen | None = None,
        reading: ReadConfig | None = None,
    ) -> IndexReport:
        """See `SacRag.add`."""
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        report, self._listen = self.report, listen

        def skip(path: str, reason: str) -> None:
            if strict:
                raise DocumentError(path, reason)
            report.skipped.append(Skip(path, reason))

        def ignore(path: str, count: int) -> None:
            report.ignored.append(Skip(path, IGNORED, count))

        self._tell("finding files")
        files = []
        own = Path(os.path.abspath(self.library.path))
        for path in walk(given, on_skip=skip, on_ignored=ignore):
            if Path(os.path.abspath(path)).is_relative_to(own):  # the library may lie among the documents
                continue
            files.append(path)
            report.files += 1
            self._tell("finding files")
        with ParserProcess(reading) as parser:
            for group in _groups(files):
                documents, blank = [], list[str]()
                for path in group:
                    self._tell("reading")
                    try:
                        document = read(path, parser=parser)
                        documents.append(document)
                        told = document.meta.get("notices", [])
                        report.notices += [Notice(document.uri, text) for text in told]
                    except DocumentError as error:
                        skip(error.path, error.reason)
                        if error.reason in BLANK:
                            blank.append(path.as_posix())
                self._forget(blank)
                self._group = len(group)
                self._store(documents)
                report.done += len(group)
                report.ahead = 0.0
                self._tell("reading")
        if sync:
            self._sync(given, {f.as_posix() for f in files})
        report.seconds = time.monotonic() - self._began
        return report

    def put(
        self,
        documents: Sequence[Document],
        *,
        vectors: Mapping[str, Any] | None = None,
        embedder: str | None = None,
    ) -> IndexReport:
        """See `SacRag.put`."""
        documents = list({d.uri: d for d in documents}.values())
        for document in documents:
            check_meta(document.uri, document.meta)
        ready = self._checked(documents, vectors, embedder) if vectors else {}
        report = self.report
        report.files = report.done = len(documents)
        self._store(documents, ready, origin=GIVEN)
        return report

    def _tell(self, step: str) -> None:
        self.report.step, self.report.seconds = step, time.monotonic() - self._began
        if self._listen:
            self._listen(self.report)

    def _checked(
        self, documents: Sequence[Document], vectors: Mapping[str, Any], embedder: str | None
    ) -> dict[str, np.ndarray]:
        own, name = self.library.fingerprint["embedder_sha256"], self.config.embedder
        if embedder is None:
            raise ConfigError("vectors come without `embedder`: give the fingerprint of the Embedder that made them")
        if embedder != own:
            raise LibraryMismatch(
                f"the vectors are by an embedder {embedder!r}, {self.library.path} searches by {name} ({own!r}): "
                "embed with `SacRag.embed`, or leave vectors out"
            )
        if strange := sorted(set(vectors) - {d.uri for d in documents}):
            raise ConfigError(f"a vector is given for {strange[0]!r}, which is none of the documents")
        dim = self.library.head.dim
        return {uri: normalise(vector, dim, f"document {uri!r}") for uri, vector in vectors.items()}

    def _store(
        self, documents: list[Document], ready: Mapping[str, np.ndarray] | None = None, *, origin: str = ""
    ) -> None:
        """Compress what is new in a group of documents and commit it. ready: vectors of whole documents, by uri."""
        with self.library.writing:
            self._store_alone(documents, ready or {}, origin)

    def _store_alone(self, documents: list[Document], ready: Mapping[str, np.ndarray], origin: str) -> None:
        report, todo, blank = self.report, [], list[str]()
        for document in documents:
            digest = origin + self._digest(document)
            before = self.library.content_hash(document.uri)
            if before == digest:
                report.unchanged += 1
                continue
            with self.engine.busy():
                offsets = offsets_of(self.engine.method.backbone.tokenizer)
                passages = split(document, offsets, max_tokens=self.config.passage_tokens, overlap=self.config.overlap)
            if not passages:
                report.skipped.append(Skip(document.uri, NO_TEXT))
                blank.append(document.uri)
                continue
            known = {p.id: p.heading for p in self.library.passages(document.uri)} if before else {}
            todo.append((document, digest, passages, known))
            report.added += not before
            report.changed += bool(before)
        blank = [d.uri for d in self.library.documents(blank)]
        if not todo and not blank:
            return
        new = [p for _, _, passages, known in todo for p in passages if p.id not in known]
        # The heading is embedded with the text, so that another one means another vector.
        unlike = [p for _, _, passages, known in todo for p in passages if known.get(p.id) != p.heading]
        earlier = report.passages

        def compressed(count: int) -> None:
            report.tokens += sum(p.tokens for p in new[report.passages - earlier : count])
            report.passages = earlier + count
            report.ahead = self._group * count / len(new)
            self._tell("compressing")

        self._tell("compressing")
        made = self.engine.compress([p.text for p in new], self.config.ratio, compressed)
        memories = dict(zip((p.id for p in new), made, strict=True))
        # A document that is one passage has the vector of its passage; parts of a longer one have their own.
        vectors = {
            p.id: vector
            for document, _, (p, *others), known in todo
            if not others and (vector := ready.get(document.uri)) is not None and known.get(p.id) != p.heading
        }
        left = [p for p in unlike if p.id not in vectors]
        for start in range(0, len(left), EMBEDDED_TOGETHER):
            self._tell("embedding")
            some = left[start : start + EMBEDDED_TOGETHER]
            rows = self.embedder.encode([_embedded(p) for p in some])
            vectors |= zip((p.id for p in some), rows, strict=True)
        self._tell("storing")
        with self.library.transaction() as tx:
            for document, digest, passages, _ in todo:
                mine = [p.id for p in passages]
                tx.put(
                    document,
                    passages,
                    {i: memories[i] for i in mine if i in memories},
                    {i: vectors[i] for i in mine if i in vectors},
                    content_hash=digest,
                )
            for uri in blank:
                tx.remove_document(uri)
        report.removed += len(blank)

    def _forget(self, uris: Sequence[str]) -> None:
        """Remove those that are stored."""
        with self.library.writing:
            if stored := [uri for uri in uris if self.library.documents([uri])]:
                with self.library.transaction() as tx:
                    for uri in stored:
                        tx.remove_document(uri)
                self.report.removed += len(stored)

    def _digest(self, document: Document) -> str:
        parts = [document.text, document.headings, document.meta, self.config.passage_tokens, self.config.overlap]
        parts += [document.shifts] if document.shifts else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

    def _sync(self, given: Sequence[str | Path], found: set[str]) -> None:
        """Remove documents read from files under the given folders that are not there any more."""
        folders = tuple(Path(p).as_posix().rstrip("/") + "/" for p in given if Path(p).is_dir())
        here = any(Path(p).as_posix() == "." for p in given)
        unseen = {Path(skip.path).as_posix() for skip in self.report.skipped}

        def under(uri: str) -> bool:
            below = [uri[len(f) :] for f in folders if uri.startswith(f)]
            below += [uri] if here and not os.path.isabs(uri) else []
            return any(not rest.startswith("../") for rest in below)

        with self.library.writing:
            gone = [
                d.uri
                for d in self.library.documents()
                if d.uri not in found
                and under(d.uri)
                and not (d.content_hash or GIVEN).startswith(GIVEN)
                and unseen.isdisjoint((d.uri, *(p.as_posix() for p in Path(d.uri).parents)))
            ]
            self._forget(gone)


def check_meta(uri: str, meta: Mapping[str, Any]) -> None:
    """Raises ConfigError naming a key of a document's metadata whose value cannot be stored."""
    for key, value in meta.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metadata {key!r} of document {uri!r} is no JSON ({error}): make it a str") from error


def _embedded(passage: Passage) -> str:
    """What the embedder reads: the heading gives a passage its subject."""
    return f"{passage.heading}\n{passage.text}" if passage.heading else passage.text


def _bytes(vector: Any) -> bytes:
    return hashlib.blake2b(np.asarray(vector, np.float32).tobytes(), digest_size=16).digest()


def _groups(files: Sequence[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    size = 0
    for path in files:
        try:
            n = path.stat().st_size
        except OSError:
            n = 0
        if group and size + n > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(path)
        size += n
    if group:
        yield group
