"""A library: one folder with compressed passages, their text and vectors. One writer, any number of readers."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sac_rag.errors import LibraryError, LibraryMismatch, check_process
from sac_rag.library import folder as files
from sac_rag.library import lexical_file
from sac_rag.library.catalog import Catalog, Head, StoredDocument
from sac_rag.library.compact import GcReport, compact
from sac_rag.library.filters import DOCUMENT, fitting
from sac_rag.library.opening import compare, load, make, migrate, plain
from sac_rag.library.search import search
from sac_rag.library.segments import SEGMENT_BYTES
from sac_rag.library.sharing import Writer, turn, writer_of
from sac_rag.library.sizes import SegmentUse, Stats, measure
from sac_rag.library.transaction import Transaction
from sac_rag.library.view import View
from sac_rag.records import Hit, Passage

if TYPE_CHECKING:
    import numpy as np

    from sac_rag.compress.anchor_kv import AnchorKV
    from sac_rag.library.codecs import Codec

__all__ = ["GcReport", "Library", "SegmentUse", "Stats", "StoredDocument", "Transaction"]


class Library:
    """Made by `Library.create` or `Library.open`; a context manager.

    A reader keeps the generation it opened, also while a writer commits or gc unlinks files, until `refresh`.
    A writer always sees its last commit; one that nobody refers to any more is closed. Methods may be called from
    several threads; transactions one at a time. What was opened before a fork is not for the child: ProcessForked.
    """

    def __init__(self, path: Path, view: View, writer: Writer | None, segment_bytes: int) -> None:
        self.path, self.segment_bytes = path, segment_bytes
        self._own, self._writer = view, writer
        self._alone = threading.RLock()
        self._closed, self._pid = False, os.getpid()
        if writer:
            writer.join(self)

    @property
    def writable(self) -> bool:
        """Whether this was opened for writing."""
        return self._writer is not None

    @property
    def parts(self) -> tuple[Library, ...]:
        """The libraries that this is made of: itself. Several that are read as one: `sac_rag.library.joined`."""
        return (self,)

    @property
    def writing(self) -> threading.RLock:  # type: ignore[valid-type]
        """For threads that share a writer: held by who reads what is stored and then changes it, so that each waits for
        the one before. A transaction alone does not wait, it is refused while another is open."""
        return self._writer.writing if self._writer else self._alone

    @property
    def _view(self) -> View:
        return self._writer.view if self._writer else self._own

    @_view.setter
    def _view(self, view: View) -> None:
        if self._writer:
            self._writer.view = view
        else:
            self._own = view

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        fingerprint: Mapping[str, Any],
        *,
        codec: str = "bf16",
        codec_state: bytes | None = None,
        dim: int,
        exist_ok: bool = False,
        share: bool = False,
        wait: float = 0.0,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Library:
        """Make an empty library (folder mode 0700) and open it for writing.

        fingerprint: JSON values that say what memories here are made with. codec: how they are stored; codec_state:
        what it was fitted to, if it needs that. dim: length of the retrieval vectors. exist_ok: open the one that is
        there, if it was made with the same. share, wait: as in `open`. segment_bytes: data bytes after which a segment
        file ends. Raises LibraryError when something is there already, LibraryMismatch, LibraryLocked, ConfigError for
        an unknown codec.
        """
        folder = Path(path).absolute()
        if exist_ok and os.path.lexists(folder / files.CATALOG):
            library = cls.open(
                folder, fingerprint=fingerprint, write=True, share=share, wait=wait, segment_bytes=segment_bytes
            )
            try:
                compare(folder, {"codec": library.head.codec, "dim": library.head.dim}, {"codec": codec, "dim": dim})
            except LibraryMismatch:
                library.close()
                raise
            return library
        make(folder, fingerprint, codec, dim, codec_state, wait)
        return cls.open(folder, write=True, share=share, wait=wait, segment_bytes=segment_bytes)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        fingerprint: Mapping[str, Any] | None = None,
        write: bool = False,
        share: bool = False,
        wait: float = 0.0,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Library:
        """Open for reading, or as the one writer.

        fingerprint: what the caller would use; every field must be as stored. share: where this process is the writer
        already, take part in it; it ends when all handles are closed. wait: seconds to wait for another writer. Raises
        LibraryNotFound, LibraryMismatch (naming field and both values; also for a newer format), LibraryLocked (naming
        the writer), LibraryCorrupt.
        """
        folder = Path(path).absolute()
        if not write:
            return cls(folder, load(folder, fingerprint, None), None, segment_bytes)
        with Catalog.read(folder):  # LibraryNotFound and foreign formats before a lock file is made
            files.identity(folder / files.CATALOG, write=True)
        with turn(folder) if share else contextlib.nullcontext():
            if share and (writer := writer_of(folder)) is not None:
                if fingerprint is not None:
                    compare(folder, writer.view.head.fingerprint, plain(fingerprint))
                return cls(folder, writer.view, writer, segment_bytes)
            return cls._as_writer(folder, fingerprint, wait, segment_bytes)

    @classmethod
    def _as_writer(
        cls, folder: Path, fingerprint: Mapping[str, Any] | None, wait: float, segment_bytes: int
    ) -> Library:
        lock = files.WriterLock(folder, wait)
        live: Catalog | None = None
        try:
            migrate(folder)
            live = Catalog.connect(folder, write=False)  # transactions have connections of their own
            view = load(folder, fingerprint, None, live)
            files.sweep(folder, _names(view), made=True)
        except BaseException:
            if live:
                live.close()
            lock.release()
            raise
        return cls(folder, view, Writer(lock, view), segment_bytes)

    def close(self) -> None:
        """Release the writer's lock and the catalog. Tensors that were loaded stay valid.

        A writer keeps the lexical index of a large library first, unless an exception is under way. A commit of another
        thread is waited for; a transaction that has not come so far fails at its end. A writer that others share stays.
        """
        writer = self._writer
        if self._pid != os.getpid():
            self._closed = True
        if self._closed:
            return
        if writer is None:
            self._closed = True
            self._own.catalog.close()
            return
        with writer.commits:
            if not writer.leave(self):
                # Not kept: the writer is to end with the last of the others, also where nobody closes that.
                self._closed, self._own, self._writer = True, writer.view, None
                return
            try:
                if self._may_write() and sys.exc_info()[0] is None:
                    self._keep_lexical()
            finally:
                self._closed = True
                writer.view.catalog.close()
                writer.lock.release()

    def _keep_lexical(self) -> None:
        """Without it the next process builds it, so that a full disk or a damaged row is no reason to fail."""
        with contextlib.suppress(LibraryError, OSError, sqlite3.Error), self._still() as view:
            if not lexical_file.is_kept(view.head):
                return
            if lexical_file.read(view.folder, view.head, view.catalog.all_keys()) is None:
                lexical_file.write(view.folder, view.head, view.lexical())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Head:
        """Generation, codec, dim, fingerprint and counts of what this object sees."""
        return self._view.head

    @property
    def fingerprint(self) -> dict[str, Any]:
        return dict(self._view.head.fingerprint)

    def refresh(self) -> bool:
        """Go to the newest generation; whether there was a newer one. Raises as `open` does."""
        self._check_open()
        if self._writer:
            return False
        with Catalog.read(self.path) as disk:
            head = disk.head()
        mine = self._view.head
        if (head.library, head.generation) == (mine.library, mine.generation):
            return False
        self._view = load(self.path, mine.fingerprint, self._view)
        return True

    def pinned(self) -> Library:
        """This object at the generation it sees now, whatever `refresh` brings: what one request finds, loads and
        counts belongs together. Not to be closed. A writer is its own, as it sees its commits alone."""
        return self if self._writer else copy.copy(self)

    def documents(
        self, uris: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None
    ) -> list[StoredDocument]:
        """All documents, or those of `uris` that are stored, by uri; with `where`, those whose own metadata fit."""
        fits = fitting(where)
        with self._still() as view:
            found = view.catalog.documents(uris)
        return [d for d in found if fits({"document": d.uri, **d.meta, DOCUMENT: d.uri})] if where else found

    def content_hash(self, uri: str) -> str | None:
        """What was passed to `put` for this document; None when it is not stored."""
        with self._still() as view:
            rows = view.catalog.rows("SELECT content_hash FROM documents WHERE uri = ?", (uri,))
        return rows[0][0] if rows else None

    def passages(self, document: str | None = None, *, where: Mapping[str, Any] | None = None) -> list[Passage]:
        """Passages of one document, by uri, or of all, in reading order; with `where`, of those documents whose own
        metadata fit."""
        if where:
            mine = {d.uri for d in self.documents(None if document is None else [document], where=where)}
        with self._still() as view:
            found = view.catalog.passages(document)
        return [p for p in found if p.document in mine] if where else found

    def passage_ids(self, document: str) -> list[str]:
        """Ids of a document's passages in reading order; empty when it is not stored."""
        query = (
            "SELECT p.id FROM passages p JOIN documents d ON d.key = p.document WHERE d.uri = ? "
            "ORDER BY p.ordinal, p.key"
        )
        with self._still() as view:
            return [passage_id for (passage_id,) in view.catalog.rows(query, (document,))]

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """Passages in the order of `ids`; LibraryError names an id that is not stored."""
        with self._still() as view:
            keys = view.catalog.require(ids)
            found = view.catalog.passages_at(keys)
        return [found[key] for key in keys]

    def extents(self, ids: Sequence[str]) -> list[tuple[int, int]]:
        """(anchors, source tokens) of the memories of `ids`, in order, without loading them."""
        with self._still() as view:
            keys = view.catalog.require(ids)
            stored = view.catalog.memories(keys)
        return [(stored[key].anchors, stored[key].source_len) for key in keys]

    def holds(self, passage_id: str, where: Mapping[str, Any] | None = None) -> bool:
        """Whether a passage is stored and fits a metadata filter, which is as in `search`."""
        with self._still() as view:
            key = view.catalog.keys([passage_id]).get(passage_id)
            return key is not None and view.fits(key, where)

    @property
    def secret(self) -> bytes:
        """32 bytes that only who can read the library's folder knows, the same as long as the library lives."""
        return hashlib.sha256(b"sac-rag library secret\0" + self.head.library.encode()).digest()

    def load(self, ids: Sequence[str]) -> list[AnchorKV]:
        """Memories in the order of `ids`, on the CPU, in the codec's dtype; checksums are verified every time.

        Raises LibraryError for an id that is not stored, LibraryCorrupt for damaged bytes.
        """
        with self._still() as view:
            return view.read(ids)

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """Stored unit vectors, float32 (n, dim), in the order of `ids`; LibraryError names an id that is not stored."""
        with self._still() as view:
            return view.vectors().rows(view.catalog.require(ids))

    def search(
        self,
        vector: np.ndarray | None,
        text: str | None,
        k: int,
        *,
        mode: str = "hybrid",
        where: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        distinct: bool = False,
    ) -> list[Hit]:
        """The best k passages, best first; equal scores by passage id.

        vector: the question's embedding, shape (dim,), any length; text: its words. mode "dense" ranks by cosine,
        "lexical" by BM25, "hybrid" by reciprocal rank fusion of both (constant 60). where: a filter as in
        `sac_rag.library.filters`, over the metadata of passage and, failing that, document; "document" is the uri
        unless there is metadata of that name, "$document" always. min_score: drop passages whose cosine is lower, in
        every mode. distinct: of passages with the same words, the best alone. Raises LibraryError when an argument does
        not fit.
        """
        with self._still() as view:
            return search(view, vector, text, k, mode=mode, where=where, min_score=min_score, distinct=distinct)

    def stats(self) -> Stats:
        """Counts and bytes of the generation seen here."""
        with self._still() as view:
            return measure(view)

    @property
    def stale(self) -> bool:
        """Whether the FAISS file is missing or damaged."""
        return self._view.stale

    @property
    def notice(self) -> str | None:
        """What a reader of this library should know of its damage, as far as that is known; None when it is sound."""
        return self.notice_of()

    def notice_of(self, where: Mapping[str, Any] | None = None) -> str | None:
        """As `notice`; with `where`, documents whose own metadata do not fit are not told of."""
        with self._still() as view:
            hit, problems = view.damaged(), view.problems
        if where and hit:
            mine = {d.uri for d in self.documents(list(hit), where=where)}
            hit = {uri: count for uri, count in hit.items() if uri in mine}
        if not hit and not problems:
            return None
        what = f"passages of {len(hit)} documents ({', '.join(sorted(hit)[:3])}{', …' * (len(hit) > 3)})"
        return (
            f"the library is damaged: {what if hit else 'some passages'} were left out; `sac verify` names all, "
            "`sac repair` mends what can be"
        )

    def verify(self, deep: bool = True) -> list[str]:
        """Problems of the newest generation on disk, one line each; empty when all is well. deep: reads every byte."""
        from sac_rag.library.checks import problems

        return problems(self.path, deep)

    def codec(self) -> Codec:
        """How memories are stored here."""
        with self._still() as view:
            return view.codec()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit at the end of the block, or nothing at all when it raises. Inside, reads see the last commit.

        Raises LibraryError on a library opened for reading or closed by the end of the block, LibraryFull when the disk
        is full: the generation before stays as it was.
        """
        writer = self._writer
        if not writer:
            raise LibraryError(f"{self.path} is open for reading: open it with write=True to change it")
        if not writer.busy.acquire(blocking=False):
            raise LibraryError(f"a transaction on {self.path} is open already: end it first")
        try:
            with self._still() as view:
                self._check_writing()
                tx = Transaction(self.path, view, self.segment_bytes)
            try:
                yield tx
                tx.prepare()
                with writer.commits:
                    self._check_writing()
                    self._adopt(tx.commit())
            except BaseException:
                tx.close()
                with writer.commits:
                    self._recover(writer)
                raise
        finally:
            writer.busy.release()

    def gc(self, *, min_dead: float = 0.0, dense: str | None = None) -> GcReport:
        """Give deleted bytes back to the disk, erase deleted text, join small segments. Safe to kill at any time.

        min_dead: rewrite only segments with a larger share of dead bytes than this; 0.0 leaves none, which erasing
        needs. dense: also make the dense index anew, from then on "exact" (as it is at first), "approximate" (IVF-PQ)
        or "auto": what suits the number of passages. Raises as `transaction` does, LibraryCorrupt when a memory to be
        moved is damaged, ConfigError for another `dense`, and for "approximate" with few passages.
        """
        return compact(self, min_dead, self.segment_bytes, dense)

    def forget_lexical(self) -> None:
        """Let the kept lexical index, a derived file, be made anew when this writer closes. Raises LibraryError."""
        with self._still() as view, files.writing(self.path):
            view.forget_lexical()

    def _may_write(self) -> bool:
        return self._writer is not None and self._writer.lock.held and not self._closed

    def _check_writing(self) -> None:
        if not self._may_write():
            raise LibraryError(f"{self.path} is closed; open the library again")

    def _check_open(self) -> None:
        check_process(self._pid, f"{self.path} was opened")
        if self._closed:
            raise LibraryError(f"{self.path} is closed; open the library again")

    @contextlib.contextmanager
    def _still(self) -> Iterator[View]:
        """The current view; on a writer's live catalog no commit comes between two of its queries."""
        self._check_open()
        writer = self._writer
        with writer.commits if writer else contextlib.nullcontext():
            if writer and writer.unsure:
                self._recover(writer)
            yield self._view

    def _adopt(self, view: View | None) -> None:
        if view:
            self._view = view
            with contextlib.suppress(OSError):  # it is committed: a leftover goes with the next sweep
                files.sweep(self.path, _names(view))

    def _recover(self, writer: Writer) -> None:
        """After a failed commit: what the disk says now decides what is current, and so what may be removed."""
        writer.unsure = True
        if not self._may_write():  # closed meanwhile: what lies in the folder may be the next writer's
            return
        with contextlib.suppress(LibraryError, OSError):  # if it cannot say, it is asked again at the next use
            with Catalog.read(self.path) as disk:
                if disk.head() != self._view.head:
                    self._view = View.load(disk, self.path, self._view, self._view.catalog)
            writer.unsure = False
            files.sweep(self.path, _names(self._view))


def _names(view: View) -> set[str]:
    names = {files.segment_name(number) for number in view.segments}
    faiss, changed = view.head.faiss, view.head.changed
    names |= set() if faiss is None else {files.faiss_name(faiss)}
    return names | (set() if changed is None else {files.lexical_name(changed)})
