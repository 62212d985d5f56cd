"""One run of indexing: files found and read, what is to do planned, made and committed, group by group."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sac_rag.config import IndexConfig, ReadConfig
from sac_rag.errors import ConfigError, DocumentError, LibraryMismatch
from sac_rag.indexing.make import Compressor, Embeds, Maker, MakeResult
from sac_rag.indexing.makers import Here, Makers, Workers
from sac_rag.indexing.on_ray import RayWorkers
from sac_rag.indexing.plan import GIVEN, Order, Plan, Planner, check_meta, file_groups
from sac_rag.indexing.report import IndexReport, Listen, Notice, Skip
from sac_rag.library.library import Library, Transaction
from sac_rag.library.made import discard
from sac_rag.library.vectors import normalise
from sac_rag.records import Document
from sac_rag.text.isolation import ParserProcess
from sac_rag.text.readers import EMPTY, NO_TEXT, read
from sac_rag.text.walk import walk

IGNORED = "hidden by .gitignore"
BLANK = (EMPTY, NO_TEXT)
"""Why a file was not indexed although it could be read: what was stored of it before is not there any more."""


class Indexer:
    """One run of indexing into an open library; `report` is its running state."""

    def __init__(self, library: Library, compressor: Compressor, embedder: Embeds, config: IndexConfig) -> None:
        self.library, self.config = library, config
        self.report = IndexReport()
        self._planner = Planner(library, compressor, config)
        self._maker = Maker(compressor, embedder, library.codec(), config.ratio, library.path, library.segment_bytes)
        self._progress = _Progress(self.report, self._tell)
        self._began = time.monotonic()
        self._listen: Listen | None = None

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        sync: bool = False,
        strict: bool = False,
        listen: Listen | None = None,
        workers: Workers | RayWorkers | None = None,
        reading: ReadConfig | None = None,
    ) -> IndexReport:
        """See `SacRag.add`. workers: who compresses, instead of this process."""
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        report, self._listen = self.report, listen

        def skip(path: str, reason: str) -> None:
            if strict:
                raise DocumentError(path, reason)
            report.skipped.append(Skip(path, reason))

        files = self._find(given, skip)
        if workers:
            started = workers.start(self._maker, self._commit, self._progress.heard)
            with self.library.writing, started as makers:
                self._index(files, skip, makers, reading)
        else:
            self._index(files, skip, Here(self._maker, self._commit, self._progress.heard), reading)
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
        listen: Listen | None = None,
    ) -> IndexReport:
        """See `SacRag.put`."""
        self._listen = listen
        documents = list({d.uri: d for d in documents}.values())
        for document in documents:
            check_meta(document.uri, document.meta)
        ready = self._checked(documents, vectors, embedder) if vectors else {}
        report = self.report
        report.files = report.done = len(documents)
        made: list[tuple[Order, MakeResult]] = []
        with self.library.writing:
            plan = self._planner.plan(documents, ready=ready, origin=GIVEN)
            self._count(plan)
            self._progress.begin(plan, 0)
            try:
                makers = Here(self._maker, lambda *one: made.append(one), self._progress.heard)
                for order in plan.orders:
                    makers.give(order)
                self._commit_all(made)
            except BaseException:
                self._discard(made)
                raise
        return report

    def _find(self, given: Sequence[str | Path], skip: Callable[[str, str], None]) -> list[Path]:
        self._tell("finding files")
        files = []
        own = Path(os.path.abspath(self.library.path))

        def ignore(path: str, count: int) -> None:
            self.report.ignored.append(Skip(path, IGNORED, count))

        for path in walk(given, on_skip=skip, on_ignored=ignore):
            if Path(os.path.abspath(path)).is_relative_to(own):  # the library may lie among the documents
                continue
            files.append(path)
            self.report.files += 1
            self._tell("finding files")
        return files

    def _index(
        self, files: Sequence[Path], skip: Callable[[str, str], None], makers: Makers, reading: ReadConfig | None
    ) -> None:
        with ParserProcess(reading) as parser:
            for group in file_groups(files):
                documents, blank = [], list[str]()
                for path in group:
                    self._tell("reading")
                    try:
                        document = read(path, parser=parser)
                        documents.append(document)
                        told = document.meta.get("notices", [])
                        self.report.notices += [Notice(document.uri, text) for text in told]
                    except DocumentError as error:
                        skip(error.path, error.reason)
                        if error.reason in BLANK:
                            blank.append(path.as_posix())
                # What is stored is compared and changed under one lock, so that no other thread comes between.
                with self.library.writing:
                    plan = self._planner.plan(documents, gone=blank)
                    self._count(plan)
                    self._progress.begin(plan, len(group))
                    for order in plan.orders:
                        makers.give(order)
                self._tell("reading")
            makers.finish()
            self._tell("reading")

    def _count(self, plan: Plan) -> None:
        report = self.report
        report.added += plan.added
        report.changed += plan.changed
        report.unchanged += plan.unchanged
        report.skipped += [Skip(uri, NO_TEXT) for uri in plan.blank]

    def _commit(self, order: Order, made: MakeResult) -> None:
        try:
            self._commit_all([(order, made)])
        except BaseException:
            self._discard([(order, made)])
            raise
        self._progress.end(order)

    def _commit_all(self, made: Sequence[tuple[Order, MakeResult]]) -> None:
        if not made:
            return
        self._tell("storing")
        with self.library.transaction() as tx:
            for order, result in made:
                _store(tx, order, result)
        self.report.removed += sum(len(order.remove) for order, _ in made)

    def _discard(self, made: Sequence[tuple[Order, MakeResult]]) -> None:
        for _, result in made:
            discard(self.library.path, result.segments)

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
            if gone:
                with self.library.transaction() as tx:
                    for uri in gone:
                        tx.remove_document(uri)
                self.report.removed += len(gone)


class _Progress:
    """Counts what is compressed, over all orders under way."""

    def __init__(self, report: IndexReport, tell: Callable[[str], None]) -> None:
        self._report, self._tell = report, tell
        self._groups: list[_Group] = []

    def begin(self, plan: Plan, files: int) -> None:
        """A group of so many files, with what is to do for it."""
        if plan.orders:
            self._groups.append(_Group(files, plan.orders))
        else:
            self._report.done += files

    def heard(self, order: Order, step: str, count: int) -> None:
        """So many passages of an order are compressed."""
        group, report = self._group_of(order), self._report
        before = group.compressed.get(id(order), 0)
        report.tokens += sum(p.tokens for p in order.compress[before:count])
        report.passages += count - before
        group.compressed[id(order)] = count
        report.ahead = sum(g.ahead for g in self._groups)
        self._tell(step)

    def end(self, order: Order) -> None:
        """An order is committed."""
        group = self._group_of(order)
        group.left.discard(id(order))
        if not group.left:
            self._groups.remove(group)
            self._report.done += group.files
            self._report.ahead = sum(g.ahead for g in self._groups)

    def _group_of(self, order: Order) -> _Group:
        return next(g for g in self._groups if id(order) in g.left)


class _Group:
    """Files that were read together, and how far their orders are."""

    def __init__(self, files: int, orders: Sequence[Order]) -> None:
        self.files, self.orders = files, orders
        self.left = {id(order) for order in orders}
        self.compressed: dict[int, int] = {}
        self._total = sum(len(order.compress) for order in orders)

    @property
    def ahead(self) -> float:
        """Files, by the share of passages that is compressed."""
        return self.files * sum(self.compressed.values()) / self._total if self._total else 0.0


def _store(tx: Transaction, order: Order, made: MakeResult) -> None:
    for segment in made.segments:
        tx.adopt(segment)
    vectors = {**order.ready, **made.vectors}
    for change in order.changes:
        mine = {p.id for p in change.passages} & vectors.keys()
        tx.put(
            change.document,
            change.passages,
            {},
            {i: vectors[i] for i in mine},
            content_hash=change.content_hash,
            keep=change.keep,
        )
    for uri in order.remove:
        tx.remove_document(uri)
