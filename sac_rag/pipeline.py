"""SacRag: index documents, ask questions. The three lines a user writes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

import numpy as np

from sac_rag.answer import gate
from sac_rag.answer.assemble import Assembled, mixed_prompt, text_prompt, texts_of
from sac_rag.answer.chat import Message, chat_prompt
from sac_rag.answer.confidence import MEMORY, TEXT, Thresholds, reader_name
from sac_rag.answer.conversation import Conversation
from sac_rag.answer.engine import UNTRAINED, Engine, adapter_folder
from sac_rag.answer.heat import heat_of
from sac_rag.answer.serving import Serving
from sac_rag.answer.small_talk import NOTICE as SMALL_TALK
from sac_rag.answer.small_talk import is_small_talk
from sac_rag.answer.steps import Steps
from sac_rag.answer.stream import RETRIES, AnswerPlan, Stream
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods import METHODS
from sac_rag.config import AUTO, AskConfig, IndexConfig, ReadConfig, check_k, from_mapping
from sac_rag.errors import ConfigError, LibraryError, LibraryMismatch, MemoryDamaged, PassageGone
from sac_rag.indexing import Indexer, IndexReport, KnownVectors, Listen, Notice, RayWorkers, Workers
from sac_rag.library.catalog import STALE, Head
from sac_rag.library.filters import plain
from sac_rag.library.joined import AnyLibrary, JoinedLibrary, check_alike, owners_of
from sac_rag.library.library import GcReport, Library, Stats
from sac_rag.library.opening import codec_state_of, compare, head_of
from sac_rag.library.opening import plain as plain_fingerprint
from sac_rag.library.repair import Remade, RepairReport
from sac_rag.library.repair import repair as mend
from sac_rag.library.vectors import marginal
from sac_rag.maker import setup_of
from sac_rag.models.adapters import codec_state, usual_codec
from sac_rag.models.embedder import Embedder
from sac_rag.models.pinned import PINNED
from sac_rag.models.reranker import CrossEncoder, Reranker, reranked
from sac_rag.places import places_of
from sac_rag.records import Answer, Document, Heat, Hit, Passage, nfc, unicode_of
from sac_rag.remote import copy_of, is_remote
from sac_rag.text.readers import read_bytes

ENGINES = ("processes", "ray")
"""Where workers of an indexing run are."""
SAME_EMBEDDER = 0.99
"""Cosine of two vectors of one text above which they count as one embedder's; rounding differs by 1e-6."""


class SacRag(Serving):
    """A library and the engine that reads it.

    `SacRag.index(paths, library)` makes or updates a library, `SacRag.open(library)` uses one; a context manager.
    Questions may come from several threads. One opened for reading goes to the newest generation at each question. A
    pickled one is opened again, for reading, where it is unpickled; a copy is the same object.
    """

    def __init__(
        self,
        library: AnyLibrary,
        engine: Engine,
        embedder: Embedder,
        config: IndexConfig,
        *,
        to_write: Callable[[], Library] | None = None,
    ) -> None:
        """to_write: opens the library for writing, at the first change."""
        super().__init__(library, engine, embedder, config)
        self.report = IndexReport()
        """What the last `add` or `put` did, or is doing."""
        self.reranker: Reranker | None = None
        """Orders what a search has found, in every `retrieve` and `ask` that names no cross-encoder of its own."""
        self._made = KnownVectors()
        self._to_write, self._opening = to_write, threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        dtype = str(self.engine.dtype).removeprefix("torch.")
        return _reopened, ([str(part.path) for part in self.library.parts], self.engine.device.type, dtype)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    # -- making and opening ------------------------------------------------------------------------------

    @classmethod
    def index(
        cls,
        paths: str | Path | Iterable[str | Path],
        library: str | Path,
        config: IndexConfig | None = None,
        *,
        sync: bool = False,
        strict: bool = False,
        workers: int | None = None,
        engine: str = "processes",
        listen: Listen | None = None,
        reading: ReadConfig | None = None,
        wait: float = 0.0,
        device: str = "auto",
        dtype: str = "auto",
    ) -> SacRag:
        """Compress documents into a library (made if missing) and return it, ready to answer.

        paths: files, folders, globs. config: None takes the library's own settings, or the defaults for a new one.
        sync: also remove documents under the given folders that are gone. strict: raise DocumentError at the first
        unreadable file instead of reporting it. workers, engine: see `add`. reading: how files are read. wait:
        seconds to wait for another writer. The report is `.report`. Raises LibraryMismatch when `config` is not what
        the library was made with, LibraryLocked when another process writes to it.
        """
        rag = cls.open(library, config=config, write=True, create=True, wait=wait, device=device, dtype=dtype)
        try:
            how: dict[str, Any] = {"workers": workers, "engine": engine, "listen": listen, "reading": reading}
            rag.add(paths, sync=sync, strict=strict, **how)
        except BaseException:
            rag.close()
            raise
        return rag

    @classmethod
    def open(
        cls,
        library: str | Path | Sequence[str | Path],
        *,
        config: IndexConfig | None = None,
        write: bool = False,
        create: bool = False,
        fetch: Collection[str] | None = None,
        later: bool = False,
        wait: float = 0.0,
        device: str = "auto",
        dtype: str = "auto",
    ) -> SacRag:
        """Open a library with the model it was made with. `config`, when given, must agree with it.

        write: as the one writer, which the SacRags of a process are together. create: likewise, and made if it is
        missing. later: with these, open for reading, and for writing at the first change. fetch: which of "model" and
        "embedder" may be fetched from the hub; None is those of `config`, and none where the library alone names them.
        wait: seconds to wait for another writer. A URL of an object store is read by way of a copy (`sac_rag.remote`).
        Several libraries, as a list or with commas between them, are read as one (`sac_rag.library.joined`).
        Raises LibraryNotFound, LibraryMismatch (naming field and both values), LibraryCorrupt, LibraryLocked,
        ModelError.
        """
        place, *others = places_of(library)
        if others:
            if write or create or later:
                raise ConfigError(
                    f"{place} and {others[0]} are read as one library, which is not changed: name the one that is to "
                    "change"
                )
            return cls._joined([place, *others], config=config, fetch=fetch, device=device, dtype=dtype)
        library = place
        if is_remote(library):
            if write or create or later:
                raise ConfigError(f"{library} is in a store, where nothing is changed: change a copy, and store it")
            library = copy_of(str(library))
        if fetch is None:
            fetch = ("model", "embedder") if config else ()
        config, write = _settled(config) if config else None, write or create
        exists = os.path.lexists(Path(library) / "catalog.sqlite")
        if exists or not create:
            own = config_of(library)
            given = config or own
            given = dataclasses.replace(given, codec=own.codec) if given.codec == AUTO else given
            # Before the model is loaded, and for what its fingerprint does not hold: the codec.
            compare(Path(library), dataclasses.asdict(own), dataclasses.asdict(given))
            config = own
        config = config or IndexConfig()
        if METHODS.load(config.method).reads_with_lora:
            raise ConfigError(
                f"method {config.method!r} reads whole texts and compresses nothing, so no library is made with it; "
                f"choose a compressing method, or compare with it by `sac eval --reader {config.method}`"
            )
        where = {"device": device, "dtype": dtype}
        made: dict[str, Any] = {"option": config.option, **where, "fetch": "model" in fetch}
        engine = Engine.shared(config.model, config.method, config.adapter, **made)
        embedder = Embedder.shared(config.embedder, device=str(engine.device), fetch="embedder" in fetch)
        wanted = engine.fingerprint(config, embedder)
        to_write = functools.partial(Library.open, library, fingerprint=wanted, write=True, share=True, wait=wait)
        if create and not exists:
            if config.codec == AUTO:
                config = dataclasses.replace(config, codec=usual_codec(engine.adapter_path))
            opened = Library.create(
                library,
                wanted,
                codec=config.codec,
                codec_state=codec_state(engine.adapter_path),
                dim=embedder.dim,
                exist_ok=True,
                share=True,
                wait=wait,
            )
            if later:
                opened.close()
        elif write and not later:
            opened = to_write()
        if later or not write:
            opened = Library.open(library, fingerprint=wanted)
        return cls(opened, engine, embedder, config, to_write=to_write if write and later else None)

    @classmethod
    def _joined(cls, places: Sequence[str], **how: Any) -> SacRag:
        """Several libraries as one; `how` as of `open`."""
        places = [str(copy_of(place)) if is_remote(place) else place for place in places]
        # Before a second model is loaded only to be refused; hashes are compared when all are open.
        check_alike({place: dataclasses.asdict(config_of(place)) for place in places})
        with contextlib.ExitStack() as undo:
            opened = [undo.enter_context(cls.open(place, **how)) for place in places]
            first, joined = opened[0], JoinedLibrary([part for rag in opened for part in rag.library.parts])
            undo.pop_all()
        return cls(joined, first.engine, first.embedder, first.config)

    def close(self) -> None:
        self.library.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing -----------------------------------------------------------------------------------------

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        sync: bool = False,
        strict: bool = False,
        workers: int | None = None,
        engine: str = "processes",
        listen: Listen | None = None,
        reading: ReadConfig | None = None,
    ) -> IndexReport:
        """Index files into this library: unchanged documents are skipped, changed ones replaced passage by passage.

        Each group of files, and each part of a long one, is committed when it is done, so an interrupted run goes on
        where it stopped. workers: compress in so many child processes of one thread each, which on a CPU get more out
        of its cores; ids and stored bytes are those of one such process. Other threads that change the library then
        wait for the whole run. engine: "processes" of this machine, or "ray": actors of a Ray cluster, that which
        RAY_ADDRESS names or one of this machine (`pip install 'sac-rag[ray]'`), which need the models and see nothing
        of the library. reading: limits and encoding of files. Raises ConfigError for fewer than one.
        """
        if engine not in ENGINES:
            raise ConfigError(f"engine is {engine!r}; use {' or '.join(ENGINES)}")
        if engine == "ray" and workers is None:
            workers = os.cpu_count() or 1
        if workers is not None and workers < 1:
            raise ConfigError(f"workers is {workers}; use 1 or more, or leave it out to compress in this process")
        beside: Workers | RayWorkers | None = None
        if workers:
            where = {"device": str(self.engine.device), "dtype": str(self.engine.dtype).removeprefix("torch.")}
            library = self._writer()
            setup = setup_of(library, self.config, **where)
            if engine == "ray":
                state, gpu = codec_state_of(library.path), self.engine.device.type == "cuda"
                beside = RayWorkers(workers, "sac_rag.maker:maker_of", setup, state, gpu)
            else:
                beside = Workers(workers, "sac_rag.maker:serve", setup)
        report = self._indexer().add(paths, sync=sync, strict=strict, listen=listen, workers=beside, reading=reading)
        self._note_stale(report)
        return report

    def put(
        self,
        documents: Sequence[Document],
        *,
        vectors: Mapping[str, Any] | None = None,
        embedder: str | None = None,
        listen: Listen | None = None,
    ) -> IndexReport:
        """Index documents that are already text (no files); one commit. Of several with one uri the last one counts.
        Texts are stored in NFC, metadata as `sac_rag.library.filters.plain` gives them.

        vectors: uri -> a vector that is ready, of shape (dim,), for any of the documents; taken where a document is one
        passage, while longer ones are embedded passage by passage. embedder: the fingerprint of the Embedder that made
        them. listen: called with the report as it grows. Raises LibraryMismatch when that is not the library's,
        LibraryError for a vector of another shape, ConfigError for one of no document; nothing is stored then.
        """
        documents = [_as_stored(d) for d in documents]
        return self._indexer().put(documents, vectors=vectors, embedder=embedder, listen=listen)

    def put_file(
        self,
        uri: str,
        data: bytes,
        *,
        meta: Mapping[str, Any] | None = None,
        reading: ReadConfig | None = None,
        listen: Listen | None = None,
    ) -> IndexReport:
        """Index one file that came by other ways than a path, such as an upload; the ending of `uri` says what it is.

        meta: added to what the file says of itself. What was lost or guessed is told in the report's `notices`. Raises
        DocumentError for one that cannot be read; nothing is stored then.
        """
        document = read_bytes(uri, data, config=reading)
        told = [Notice(uri, text) for text in document.meta.get("notices", [])]
        report = self.put([dataclasses.replace(document, meta={**document.meta, **(meta or {})})], listen=listen)
        report.notices += told
        return report

    def embed(self, texts: Sequence[str], *, kind: str = "passage") -> np.ndarray:
        """Vectors by the library's embedder, float32 of shape (len(texts), dim), each of length 1, for `put` and
        searching. kind: "passage" or "query"."""
        rows = self.embedder.encode(texts, kind=kind)
        if kind == "passage":
            self._made.note(rows)
        return rows

    def foreign_vector(self, texts: Sequence[str], vectors: Sequence[Any]) -> int | None:
        """Which of these vectors, by index, is not the library's embedder's of its text; None when none is.

        Those that `embed` gave out are known. Of the others the first is compared with the embedder's own: two
        embedders may have vectors of one length, and searching among both would be noise.
        """
        dim = self.embedder.dim
        for index, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
            if len(vector) != dim:
                return index
            if vector not in self._made:
                own, given = self.embed([text])[0], np.asarray(vector, np.float32)
                same = float(given @ own) >= SAME_EMBEDDER * float(np.linalg.norm(given))
                return None if same else index
        return None

    def remove(self, uris: Sequence[str]) -> int:
        """Remove documents by uri, in NFC or as it is; gone from search at once. Returns their number of passages.

        Waits for a group of documents that another thread is storing. Raises LibraryError naming a uri that is not
        stored; nothing is removed then.
        """
        with self.changing() as library:
            stored = {d.uri for d in library.documents(uris)}
            if unknown := [u for u in uris if u not in stored]:
                forms = {nfc(d.uri): d.uri for d in library.documents()}
                uris = [u if u in stored else forms.get(nfc(u), u) for u in uris]
                unknown = [u for u in unknown if nfc(u) not in forms]
            if unknown:
                raise LibraryError(f"no document {unknown[0]!r} in {library.path}; `sac ls` prints what is there")
            with library.transaction() as tx:
                return sum(tx.remove_document(uri) for uri in dict.fromkeys(uris))

    def _note_stale(self, report: IndexReport) -> None:
        """Keep with stored documents why their newer version could not be read: they still answer."""
        reasons = {Path(skip.path).as_posix(): skip.reason for skip in report.skipped}
        with self.changing() as library:
            stale = [d for d in library.documents(list(reasons)) if d.stale != reasons[d.uri]]
            if not stale:
                return
            with library.transaction() as tx:
                for d in stale:
                    # Another hash: whatever the file holds when it can be read again is another version.
                    seen = d.content_hash and f"{d.content_hash.removesuffix(f' {STALE}')} {STALE}"
                    about = Document(d.uri, "", d.media_type, meta={**d.meta, STALE: reasons[d.uri]})
                    tx.put(about, library.passages(d.uri), {}, {}, content_hash=seen)

    def gc(self, *, min_dead: float = 0.0, dense: str | None = None) -> GcReport:
        """Give the bytes of removed passages back and erase their text. Arguments as of `Library.gc`."""
        with self.changing() as library:
            return library.gc(min_dead=min_dead, dense=dense)

    def mismatches(self, sample: int | None = None) -> list[str]:
        """Compare stored memories with what the model makes of their text, of all passages, or of `sample` drawn by
        the library's generation; a line for each that is not that. Raises ConfigError for fewer than one."""
        ids = [p.id for p in self.library.passages()]
        if sample is not None:
            if sample < 1:
                raise ConfigError(f"a sample of {sample} passages is none; use 1 or more")
            ids = random.Random(self.library.head.generation).sample(ids, min(sample, len(ids)))
        return list(gate.mismatches(self.engine, self.library, ids))

    def model_problems(self) -> list[str]:
        """What is wrong with the files of the base model and of the embedder, read whole; a line for each."""
        from sac_rag.models.checking import problems

        return [*problems(self.engine.path), *problems(self.embedder.path)]

    def is_current(self) -> bool:
        """Whether what is loaded is still what lies on disk: the model, adapter and embedder that the library, at its
        newest generation, was made with. Raises LibraryNotFound, LibraryMismatch and the like where that is gone."""
        library = self.newest()
        found = self.engine.is_current() and plain_fingerprint(self.engine.fingerprint(self.config, self.embedder))
        return found == library.fingerprint

    def stats(self) -> Stats:
        return self.library.stats()

    @contextlib.contextmanager
    def changing(self) -> Iterator[Library]:
        """The library, for who reads what is stored and then changes it; other threads wait for their turn."""
        library = self._writer()
        with library.writing:
            yield library

    def _writer(self) -> Library:
        with self._opening:
            if len(self.library.parts) > 1:
                raise ConfigError(f"{self.library.path} is several libraries, which are not changed as one: open one")
            if self._to_write is not None and not self.library.writable:
                self.library = self._to_write()
            return self.library.parts[0]

    def _indexer(self) -> Indexer:
        indexer = Indexer(self._writer(), self.engine, self.embedder, self.config)
        self.report = indexer.report
        return indexer

    # -- asking ------------------------------------------------------------------------------------------

    def retrieve(
        self,
        question: str,
        ask: AskConfig | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        embedded: Sequence[str] = (),
    ) -> list[Hit]:
        """The passages that a question would be answered from, best first, of those with the same words one.

        embedded: texts whose mean embedding is searched by in place of the question's, such as hypothetical answers
        (HyDE); its words are still those of a lexical search.
        """
        return self._retrieve(self.newest(), question, ask or AskConfig(), where, embedded)

    def diverse(
        self, question: str | Sequence[float], k: int, *, fetch: int, weight: float = 0.5, **search: Any
    ) -> list[Hit]:
        """k of the best `fetch` passages by maximal marginal relevance (Carbonell, Goldstein 1998): close to the
        question and unlike each other.

        question: its words, or its vector for a dense search. weight: 1 is closeness alone. search: mode, where and
        distinct, as of `Library.search`.
        """
        check_k(k)
        if isinstance(question, str):
            text: str | None = nfc(question)
            vector = self.embed([nfc(question)], kind="query")[0]
        else:
            text, vector = None, np.asarray(question, np.float32)
        mode = search.pop("mode", "hybrid" if text is not None else "dense")
        for again in range(RETRIES, -1, -1):
            library = self.newest()
            hits = library.search(vector, text, max(k, fetch), mode=mode, **search)
            try:
                rows = library.vectors([hit.passage.id for hit in hits])
                break
            except PassageGone:  # removed by another thread since it was found
                if not again:
                    raise
        return [hits[i] for i in marginal(vector, rows, k, weight)]

    def _retrieve(
        self,
        library: AnyLibrary,
        question: str,
        ask: AskConfig,
        where: Mapping[str, Any] | None,
        embedded: Sequence[str] = (),
    ) -> list[Hit]:
        if not isinstance(question, str):
            raise ConfigError(f"the question is a {type(question).__name__}; give its text")
        vector, question = None, nfc(question)
        if ask.search != "lexical" or ask.min_score is not None:
            vector = self.embedder.encode([nfc(text) for text in embedded] or [question], kind="query").mean(axis=0)
            if len(embedded) > 1:
                vector /= max(float(np.linalg.norm(vector)), 1e-30)
        reranker = CrossEncoder.shared(ask.rerank) if ask.rerank else self.reranker
        most = max(ask.k, ask.candidates) if reranker else ask.k
        hits = library.search(
            vector, question, most, mode=ask.search, where=where, min_score=ask.min_score, distinct=True
        )
        return reranked(question, hits, reranker)[: ask.k] if reranker else hits

    def ask(
        self,
        question: str,
        ask: AskConfig | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        hits: Sequence[Hit] | None = None,
        text: bool = False,
        conversation: Conversation | None = None,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        heat: bool = False,
        **settings: Any,
    ) -> Answer:
        """Answer a question from the library.

        settings: fields of AskConfig, in place of `ask`. where: metadata filter. hits: answer from these passages
        instead of searching. text: read the passages as plain text whatever the fidelity is, for comparison.
        conversation: answer as its next turn; what earlier ones read stays in the model's cache, where the question
        takes it up (`AskConfig.history`). stop: strings that end an answer and are no part of it. Small talk is
        answered without passages, and is no turn (`AskConfig.small_talk`). schema: a JSON schema that the answer is
        held to while it is decoded, see `held_to`. heat: also say how much each anchor of the passages was attended, by
        a second reading behind the answer (`Answer.heat`).
        Raises ConfigError when fidelity "auto" or `abstain` is wanted of an adapter without calibration, or beside a
        schema, and when heat is wanted of a conversation or of passages read as text.
        """
        given = {"where": where, "hits": hits, "text": text, "conversation": conversation, "stop": stop, **settings}
        stream = self.stream(question, ask, schema=schema, heat=heat, **given)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        question: str,
        ask: AskConfig | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        hits: Sequence[Hit] | None = None,
        text: bool = False,
        conversation: Conversation | None = None,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        heat: bool = False,
        **settings: Any,
    ) -> Stream:
        """As `ask`, piece by piece: iterate over the text; `.answer` is whole after the last piece.

        With fidelity "auto" or `abstain` the first piece comes when the answer is whole and judged: see `Stream`.
        """
        if settings:
            base = dataclasses.asdict(ask) if ask else {}
            ask = from_mapping(AskConfig, {**base, **settings})
        ask = ask or AskConfig()
        own = dataclasses.replace(ask, fidelity="text", reader="base") if text else ask
        own = dataclasses.replace(own, evidence=self.engine.evidence(own))
        if not (question := nfc(question).strip()):
            raise ConfigError("the question is empty; ask something")
        if heat and (conversation is not None or own.fidelity == "text"):
            what = "a conversation" if conversation is not None else "passages that are read as text"
            raise ConfigError(f"heat is of memories behind one question, not of {what}: leave one of the two out")
        placing = self.engine.method.placing.overridden(own)  # what is no policy is refused before anything is searched
        self.engine.service_of(own.reader)  # an adapter without a reader is found out before, too
        if hits is None and schema is None and own.small_talk and is_small_talk(question):
            return Stream(self.engine, self._chatting(question, own, conversation, stop))
        judged = own.abstain or own.fidelity == "auto"
        constraint = None if schema is None else self.held_to(schema, own)
        if judged:
            thresholds: Thresholds | None = self._thresholds(own)
        elif schema is None:  # what thresholds were calibrated on
            thresholds = Thresholds.known(self.engine.adapter_path, self.config.ratio)
        else:
            thresholds = None
        library, steps = self.newest(), Steps()
        if own.fidelity != "text":
            self.check()

        def find() -> list[Hit]:
            if hits is not None:
                return list(hits)
            query = question if conversation is None else conversation.searched(question)
            return self._retrieve(library, query, own, where)

        def assemble(found: Sequence[Hit], text: bool) -> Assembled:
            return self._assemble(library, found, question, own, text, conversation, steps, where=where)

        def attended(assembled: Assembled, answer: Sequence[int]) -> Heat | None:
            try:
                memories = library.load([h.passage.id for h in assembled.hits[assembled.texts :]])
            except (PassageGone, MemoryDamaged):  # since they were read: the answer is whole without
                return None
            service, method = self.engine.service_of(own.reader), self.engine.method
            return heat_of(service, method, assembled, memories, placing, answer)

        def warn(read: Sequence[Hit]) -> list[str]:
            found = owners_of(library, [hit.passage.document for hit in read], where)
            stale = [d for _, d in sorted(found.items()) if d.stale]
            told = [f"{d.uri} is of before: its newer version could not be read ({d.stale})" for d in stale]
            return told if hits is not None or own.search == "lexical" else [*self._misfit(read), *told]

        more: dict[str, Any] = {"constraint": constraint, "heat": attended if heat else None, "steps": steps}
        plan = AnswerPlan(find, assemble, own, thresholds, conversation, warn, stop, **more)
        return Stream(self.engine, plan)

    def _misfit(self, read: Sequence[Hit]) -> list[str]:
        """A notice where no passage that was searched for and read is about what the question is about."""
        best, fits = max((hit.score for hit in read), default=1.0), self.embedder.fits
        if fits is None or best >= fits:
            return []
        return [f"the best passage hardly fits the question (score {best:.2f}): the answer may be made up"]

    def replay(
        self,
        turns: Sequence[tuple[str, str]],
        ask: AskConfig | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        instructions: str = "",
    ) -> Conversation:
        """The conversation that these questions and answers were, for clients that send all of it every time.

        The passages of each question are looked for again; where the library has not changed, the next turn's prompt
        is that of a conversation that was kept. instructions: see `Conversation`.
        """
        conversation, ask, library = Conversation(instructions), ask or AskConfig(), self.newest()
        for question, answer in turns:
            if ask.small_talk and is_small_talk(question):
                continue
            hits = self._retrieve(library, conversation.searched(question), ask, where)
            with self.engine.busy():
                self._assemble(library, hits, question, ask, False, conversation, where=where)
            conversation.add(answer)
        return conversation

    def _chatting(
        self, question: str, ask: AskConfig, conversation: Conversation | None, stop: Sequence[str]
    ) -> AnswerPlan:
        """How the model answers by itself, in its own chat template."""
        instructions = conversation.instructions if conversation is not None else ""
        said = [Message("system", (instructions,))] if instructions else []

        def assemble(found: Sequence[Hit], text: bool) -> Assembled:
            source = self._memory_source(self.library)
            prompt = chat_prompt(self.engine.method, [*said, Message("user", (question,))], source)
            return Assembled(prompt, (), 0, "memory", (SMALL_TALK,))

        bare = dataclasses.replace(ask, fidelity="memory", reader="base", abstain=False, closed_book=True)
        return AnswerPlan(lambda: [], assemble, bare, stop=stop, searches=False)

    def _thresholds(self, ask: AskConfig) -> Thresholds:
        """As the card says now: it may have been calibrated since the engine was loaded."""
        engine, auto = self.engine, ask.fidelity == "auto"
        readers = (MEMORY, TEXT) if auto else (reader_name(ask, ask.fidelity),)
        named = {"model": engine.model_name, "adapter": engine.adapter_name}
        return Thresholds.of(engine.adapter_path, self.config.ratio, readers, **named)

    def assemble(
        self,
        hits: Sequence[Hit],
        question: str,
        ask: AskConfig,
        *,
        text: bool = False,
        conversation: Conversation | None = None,
    ) -> Assembled:
        """The prompt of a question over these hits, as `ask.fidelity` says ("auto" begins with memory) or as text."""
        return self._assemble(self.library.pinned(), hits, question, ask, text, conversation)

    def _assemble(
        self,
        library: AnyLibrary,
        hits: Sequence[Hit],
        question: str,
        ask: AskConfig,
        text: bool,
        conversation: Conversation | None,
        steps: Steps | None = None,
        *,
        where: Mapping[str, Any] | None = None,
    ) -> Assembled:
        """where: the filter by which hits were found; nothing else is told of."""
        assembled = self._assembled(library, hits, question, ask, text, conversation, steps or Steps())
        notice = library.notice_of(where)
        return dataclasses.replace(assembled, notices=(*assembled.notices, notice)) if notice else assembled

    def _assembled(
        self,
        library: AnyLibrary,
        hits: Sequence[Hit],
        question: str,
        ask: AskConfig,
        text: bool,
        conversation: Conversation | None,
        steps: Steps,
    ) -> Assembled:
        method, reserve = self.engine.method, ask.max_new_tokens
        placing, evidence = method.placing.overridden(ask), self.engine.evidence(ask)
        texts = 0
        if text or ask.fidelity == "text":
            texts = len(hits)
        elif ask.fidelity == "mixed":
            most = {"passages": ask.text_passages, "tokens": ask.text_tokens}
            texts = texts_of(method, hits, **most, score=ask.text_score)
        memories: list[AnchorKV] = []
        if conversation is None and texts < len(hits):  # those of a conversation are loaded when they are read
            with steps.step("load", passages=len(hits) - texts) as step:
                memories = library.load([h.passage.id for h in hits[texts:]])
                step.counts["slots"] = sum(m.anchors for m in memories)
                step.counts["source_tokens"] = sum(m.source_len for m in memories)
        with steps.step("place") as step:
            if conversation is not None:
                source = self._memory_source(library)
                asked: dict[str, Any] = {"placing": placing, "reserve": reserve, "history": ask.history}
                asked["evidence"] = evidence
                laid = conversation.assembled(method, hits, texts, question, source, **asked)
            elif text or ask.fidelity == "text":
                laid = text_prompt(method, hits, question, reserve=reserve)
            else:
                laid = mixed_prompt(
                    method, hits, texts, memories, question, evidence=evidence, placing=placing, reserve=reserve
                )
            step.counts |= {"passages": len(laid.hits), "slots": laid.anchors, "source_tokens": laid.source_tokens}
        return laid


_READERS: WeakValueDictionary[str, SacRag] = WeakValueDictionary()
_OPENING = threading.Lock()


def shared_reader(library: str | os.PathLike[str]) -> SacRag:
    """A library open for reading, at its newest generation: one for all who ask for it in this process, open as long as
    somebody holds it. Raises as `SacRag.open` does."""
    key = os.path.abspath(library)
    with _OPENING:
        rag = _READERS.get(key)
        if rag is None:
            rag = _READERS[key] = SacRag.open(key)
        else:
            rag.library.refresh()
    return rag


def recode(
    library: str | Path, codec: str, done: Callable[[int, int], None] = lambda n, of: None, *, wait: float = 0.0
) -> int:
    """Store all memories of a library by another codec, in one commit; returns how many. No model is loaded.

    done: called with the number stored so far, and of how many. wait: seconds to wait for another writer. A finer codec
    than before brings nothing back. Raises LibraryError when they are stored so already, ConfigError for an unknown
    codec, and for one that has to be fitted where the library's adapter has nothing that was.
    """
    config = config_of(library)
    state = codec_state(adapter_folder(config.model, config.method, config.adapter))
    with Library.open(library, write=True, wait=wait) as opened:
        passages = opened.head.passages
        with opened.transaction() as tx:
            return tx.recode(codec, state, lambda count: done(count, passages))


def _reopened(library: Sequence[str], device: str, dtype: str) -> SacRag:
    """What was pickled, in the process that unpickles it."""
    return SacRag.open(library, device=device, dtype=dtype)


def config_of(library: str | Path) -> IndexConfig:
    """The settings that the library at a path was made with. Raises as `SacRag.open` does."""
    return _settings(head_of(library), library)


def _settings(head: Head, library: str | Path) -> IndexConfig:
    stored = head.fingerprint
    names = {f.name for f in dataclasses.fields(IndexConfig)} - {"codec", "option"}
    if missing := sorted(names - stored.keys()):
        raise LibraryMismatch(
            f"{library} does not say with which {missing[0]} it was made: open it with Library.open, "
            "or index its documents again"
        )
    try:
        option = stored.get("option", [])  # which most libraries do not name
        return from_mapping(IndexConfig, {**{n: stored[n] for n in names}, "option": option, "codec": head.codec})
    except ConfigError as error:
        raise LibraryMismatch(f"{library} says that it was made with what cannot be: {error}") from error


def repair(
    library: str | Path,
    *,
    copy: str | Path | None = None,
    wait: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
) -> RepairReport:
    """Mend a damaged library: what is sound stays; search indexes, vectors and memories are made again from the rest.

    copy: an older catalog.sqlite of the same library, or a folder with one, out of which damaged rows are taken back;
    where no catalog is left, all of it, also what was removed since. The model is loaded only if something has to be
    made again. The report says what is lost. wait: seconds to wait for another writer. Raises LibraryNotFound,
    LibraryLocked, LibraryMismatch for another model or a copy of another library, LibraryCorrupt when nothing can be
    read.
    """
    folder = Path(library).absolute()

    def remake(head: Head, compress: Sequence[Passage], embed: Sequence[Passage]) -> Remade:
        from sac_rag.mending import remade

        config, state = _settings(head, library), None
        try:
            state = codec_state_of(folder)
        except LibraryError:  # its catalog is gone: what the adapter has now is what a kept copy was made with
            state = codec_state(adapter_folder(config.model, config.method, config.adapter))
        return remade(folder, head, config, compress, embed, codec_state=state, device=device, dtype=dtype)

    return mend(folder, remake, Path(copy) if copy is not None else None, wait=wait)


def _as_stored(document: Document) -> Document:
    """A document in NFC, its metadata as JSON."""
    text, meta = nfc(document.text), _plain_meta(document)
    if text == document.text:
        return dataclasses.replace(document, meta=meta)
    headings = tuple((len(nfc(document.text[:at])), path) for at, path in document.headings)
    return dataclasses.replace(document, text=text, headings=headings, meta=meta)


def _plain_meta(document: Document) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in document.meta.items():
        name = unicode_of(str(key))
        if name in out:
            raise ConfigError(f"metadata of document {document.uri!r} has the key {name!r} twice: make keys different")
        try:
            out[name] = plain(value)
        except ConfigError as error:
            raise ConfigError(f"metadata {key!r} of document {document.uri!r} is no JSON: {error}") from error
    return out


def _settled(config: IndexConfig) -> IndexConfig:
    """Folders and files by absolute path, so that a library opens from any working directory, and the ratio of a method
    that has one alone. Raises ConfigError where another was asked for."""

    def place(name: str) -> str:
        local = Path(name).expanduser()
        return str(local.resolve()) if name not in ("default", UNTRAINED, *PINNED) and local.exists() else name

    options = [item.partition("=") for item in config.option]
    return dataclasses.replace(
        config,
        model=place(config.model),
        adapter=place(config.adapter),
        embedder=place(config.embedder),
        option=tuple(f"{key}={place(value) if '/' in value else value}" for key, _, value in options),
        ratio=_ratio_of(config),
    )


def _ratio_of(config: IndexConfig) -> float:
    only: float | None = METHODS.load(config.method).only_ratio
    if only is not None and config.ratio not in (only, IndexConfig.ratio):
        raise ConfigError(
            f"ratio is {config.ratio:g}, but method {config.method!r} keeps every token: leave the ratio out, or "
            "choose a method that compresses"
        )
    return config.ratio if only is None else only
