"""Any sequence of changes, reopenings and failures, against a dict."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from library_support import DIM, FINGERPRINT, FULL, State, check, held, passages_of, put, same, vector_of

from sac_rag.library import transaction
from sac_rag.library.library import Library

URIS = st.sampled_from(["a", "b", "../c", "d'; --", "é"])
TEXTS = st.lists(st.sampled_from(["word 1", "word 2", "word 3", "word \0", "word \U0001d54f", "word\n"]), max_size=5)


class LibraryMachine(RuleBasedStateMachine):
    @initialize(codec_bytes=st.sampled_from([1, 1500, 1 << 28]), at_once=st.sampled_from([0, 4096]))
    def start(self, codec_bytes: int, at_once: int) -> None:
        self.lag = transaction.INDEX_AT_ONCE, transaction.INDEX_LAG
        transaction.INDEX_AT_ONCE, transaction.INDEX_LAG = at_once, 2
        self.root = Path(tempfile.mkdtemp(prefix="sac-machine-"))
        self.cap, self.state = codec_bytes, State()
        self.library = Library.create(self.root / "x", FINGERPRINT, dim=DIM, segment_bytes=self.cap)
        self.reader = Library.open(self.root / "x")
        self.seen: State = {}

    def teardown(self) -> None:
        if hasattr(self, "root"):
            transaction.INDEX_AT_ONCE, transaction.INDEX_LAG = self.lag
            self.library.close()
            self.reader.close()
            shutil.rmtree(self.root)

    @rule(documents=st.dictionaries(URIS, TEXTS, min_size=1, max_size=3))
    def put(self, documents: dict[str, list[str]]) -> None:
        with self.library.transaction() as tx:
            for uri, texts in documents.items():
                put(tx, self.library, uri, texts)
        self.state |= documents

    @rule(uri=URIS)
    def remove_document(self, uri: str) -> None:
        with self.library.transaction() as tx:
            assert tx.remove_document(uri) == len(self.state.pop(uri, []))

    @precondition(lambda self: any(self.state.values()))
    @rule(data=st.data())
    def shorten(self, data: st.DataObject) -> None:
        uri = data.draw(st.sampled_from([uri for uri, texts in self.state.items() if texts]))
        texts = self.state[uri]
        gone = data.draw(st.sets(st.sampled_from(range(len(texts))), min_size=1))
        self.state[uri] = [text for at, text in enumerate(texts) if at not in gone]
        with self.library.transaction() as tx:
            put(tx, self.library, uri, self.state[uri])

    @rule(uri=URIS, texts=TEXTS)
    def fail(self, uri: str, texts: list[str]) -> None:
        try:
            with self.library.transaction() as tx:
                tx.remove_document("a")
                tx_put(tx, f"new {uri}", texts)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass

    @rule(min_dead=st.sampled_from([0.0, 0.5]))
    def gc(self, min_dead: float) -> None:
        self.library.gc(min_dead=min_dead)
        assert min_dead or self.library.stats().dead_bytes == 0

    @rule()
    def reopen(self) -> None:
        self.library.close()
        self.library = Library.open(self.root / "x", fingerprint=FINGERPRINT, write=True, segment_bytes=self.cap)

    @rule()
    def refresh(self) -> None:
        self.reader.refresh()
        self.seen = {uri: list(texts) for uri, texts in self.state.items()}

    @rule()
    def verify(self) -> None:
        assert self.library.verify() == []
        check(self.reader, self.seen)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "root"):
            return
        assert held(self.library) == self.state
        ids = [p.id for uri in sorted(self.state) for p in passages_of(uri, self.state[uri])]
        assert [p.id for p in self.library.passages()] == ids
        if ids:
            hits = self.library.search(vector_of(ids[-1]), None, 99, mode="dense")
            assert sorted(h.passage.id for h in hits) == sorted(ids)
            assert same_as_stored(self.library, ids[-1])


def tx_put(tx: object, uri: str, texts: list[str]) -> None:
    from library_support import Document, content_hash, memory_of

    passages = passages_of(uri, texts)
    ids = [p.id for p in passages]
    tx.put(  # type: ignore[attr-defined]
        Document(uri, ""), passages, {i: memory_of(i) for i in ids}, {i: vector_of(i) for i in ids},
        content_hash=content_hash(texts),
    )  # fmt: skip


def same_as_stored(library: Library, passage_id: str) -> bool:
    from library_support import memory_of

    return same(library.load([passage_id])[0], memory_of(passage_id))


TestLibraryMachine = LibraryMachine.TestCase
TestLibraryMachine.settings = settings(
    max_examples=250 if FULL else 8,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
