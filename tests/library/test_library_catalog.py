"""Making, opening, formats, fingerprints, and what a caller may and may not ask."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from library_support import DIM, FINGERPRINT, check, check_part, fill, memory_of, passages_of, put, vector_of

from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError, LibraryMismatch, LibraryNotFound, MemoryInvalid
from sac_rag.library import schema
from sac_rag.library.library import Library
from sac_rag.records import Document


def test_folder_and_files_are_private(folder: Path) -> None:
    before = os.umask(0)
    try:
        with Library.create(folder, FINGERPRINT, dim=DIM) as library:
            fill(library, {"a": ["word"]})
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {0o600}


def test_nothing_heavy_is_imported_before_it_is_needed(library: Library, folder: Path) -> None:
    fill(library, {"a": ["word"]})
    code = (
        "import sys; from sac_rag.library.library import Library; "
        f"library = Library.open({str(folder)!r}); library.documents(), library.stats(), library.passages(); "
        "print([m for m in ('torch', 'faiss', 'bm25s', 'numpy') if m in sys.modules])"
    )
    root = str(Path(schema.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert out.stdout.strip() == "[]", out.stderr


def test_every_field_of_the_fingerprint_counts(library: Library, folder: Path) -> None:
    library.close()
    Library.open(folder, fingerprint=FINGERPRINT).close()
    for field, value in FINGERPRINT.items():
        for other in ({**FINGERPRINT, field: "other"}, {k: v for k, v in FINGERPRINT.items() if k != field}):
            for write in (False, True):
                with pytest.raises(LibraryMismatch) as caught:
                    Library.open(folder, fingerprint=other, write=write)
                message = str(caught.value)
                assert field in message
                assert repr(value) in message
                assert repr(other.get(field)) in message
    with pytest.raises(LibraryMismatch, match="'new'"):
        Library.open(folder, fingerprint={**FINGERPRINT, "extra": "new"})
    Library.open(folder, write=True).close()  # refusals gave the lock back


def test_create_refuses_what_is_there(library: Library, folder: Path, tmp_path: Path) -> None:
    fill(library, {"a": ["word"]})
    library.close()
    with pytest.raises(LibraryError, match="already"):
        Library.create(folder, FINGERPRINT, dim=DIM)
    with pytest.raises(LibraryMismatch, match="dim is 8 there and 9 here"):
        Library.create(folder, FINGERPRINT, dim=9, exist_ok=True)
    with pytest.raises(LibraryMismatch, match="model"):
        Library.create(folder, {**FINGERPRINT, "model": "x"}, dim=DIM, exist_ok=True)
    with Library.create(folder, FINGERPRINT, dim=DIM, exist_ok=True) as again:
        check(again, {"a": ["word"]})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(LibraryError, match=r"notes\.txt"):
        Library.create(tmp_path / "full", {}, dim=DIM)
    with pytest.raises(LibraryError):
        Library.create(tmp_path / "full" / "notes.txt", {}, dim=DIM)
    os.unlink(folder / "catalog.sqlite")
    with pytest.raises(LibraryError, match="other files"):
        Library.create(folder, FINGERPRINT, dim=DIM)  # what is left of a library is not swept away
    with pytest.raises(ConfigError):
        Library.create(tmp_path / "new", {}, codec="zip", dim=DIM)
    with pytest.raises(LibraryError, match="JSON"):
        Library.create(tmp_path / "new", {"a": object()}, dim=DIM)


def test_creation_cut_short_can_be_repeated(folder: Path) -> None:
    folder.mkdir()
    (folder / "catalog.sqlite.new").write_bytes(b"half")
    (folder / "catalog.sqlite.new-journal").write_bytes(b"half")
    (folder / "writer.lock").touch()
    with pytest.raises(LibraryNotFound):
        Library.open(folder)
    with Library.create(folder, FINGERPRINT, dim=DIM) as library:
        assert library.verify() == []


@pytest.mark.parametrize("name", ["with space", "a?mode=memory", "hash#x", "per%20cent", "ünï", "quote'\"", "a&b;c"])
def test_any_folder_name(tmp_path: Path, name: str) -> None:
    with Library.create(tmp_path / name, FINGERPRINT, dim=DIM) as library:
        fill(library, {"a": ["word"]})
    with Library.open(tmp_path / name) as library:
        check(library, {"a": ["word"]})
    assert os.listdir(tmp_path) == [name]


def test_not_found_names_the_path_and_the_way_out(tmp_path: Path) -> None:
    for write in (False, True):
        with pytest.raises(LibraryNotFound, match=r"nowhere.*sac index"):
            Library.open(tmp_path / "nowhere", write=write)
    assert os.listdir(tmp_path) == []


def test_an_older_format_is_migrated_by_a_writer_and_read_by_a_reader(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(library, {"a": ["word one", "word two"]})
    library.close()
    steps = ("CREATE TABLE extra (x INTEGER PRIMARY KEY)", "INSERT INTO extra VALUES (42)")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("9999-extra", steps)))
    before = (folder / "catalog.sqlite").read_bytes()
    with Library.open(folder) as reader:
        check(reader, {"a": ["word one", "word two"]})
    assert (folder / "catalog.sqlite").read_bytes() == before
    for _ in range(2):
        with Library.open(folder, write=True) as writer:
            assert writer.verify() == []
            check(writer, {"a": ["word one", "word two"]})
    with sqlite3.connect(folder / "catalog.sqlite") as db:
        assert db.execute("SELECT name FROM migrations ORDER BY position").fetchall()[-1] == ("9999-extra",)
        assert db.execute("SELECT x FROM extra").fetchall() == [(42,)]
    db.close()
    monkeypatch.undo()
    for write in (False, True):
        with pytest.raises(LibraryMismatch, match=r"'9999-extra'.*upgrade"):
            Library.open(folder, write=write)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TRIGGER t AFTER INSERT ON passages BEGIN DELETE FROM passages; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more (x)",
        "DROP INDEX memories_segment",
        "PRAGMA application_id=1",
        "DELETE FROM head",
        "DELETE FROM migrations",
        # No newer version: that would have ours, too.
        "UPDATE migrations SET name = '0003-codec-stats' WHERE position = 2",
        "UPDATE migrations SET position = 9 WHERE position = 1",
        "INSERT INTO migrations VALUES (3, 'what a format is not called')",
        "INSERT INTO migrations VALUES (3, x'ff')",
        "UPDATE head SET passages = 'many'",
    ],
)
def test_a_catalog_changed_by_other_hands_is_refused(library: Library, folder: Path, sql: str) -> None:
    fill(library, {"a": ["word"]})
    library.close()
    db = sqlite3.connect(folder / "catalog.sqlite")
    with db:
        db.execute(sql)
    db.close()
    for write in (False, True):
        with pytest.raises(LibraryCorrupt):
            Library.open(folder, write=write)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE passages SET text = 'other' WHERE text = 'word 2'",
        "DELETE FROM memories WHERE passage IN (SELECT key FROM passages WHERE text = 'word 2')",
        "DELETE FROM documents WHERE uri = 'b'",
        "UPDATE memories SET segment = 99 WHERE passage IN (SELECT key FROM passages WHERE text = 'word 2')",
    ],
)
def test_rows_changed_by_other_hands_are_left_out_and_no_writer_goes_on(
    library: Library, folder: Path, sql: str
) -> None:
    fill(library, {"a": ["word 1"], "b": ["word 2"]})
    library.close()
    db = sqlite3.connect(folder / "catalog.sqlite")
    with db:
        assert db.execute(sql).rowcount == 1
    db.close()
    with pytest.raises(LibraryCorrupt):
        Library.open(folder, write=True)
    with Library.open(folder) as reader:
        assert reader.notice and "damaged" in reader.notice
        check_part(reader, {"a": ["word 1"], "b": ["word 2"]})
        assert [h.passage.text for h in reader.search(vector_of("0" * 32), "word", 9)] == ["word 1"]
        assert any("'b'" in line or "number" in line for line in reader.verify())


def test_put_says_what_does_not_fit_and_changes_nothing(library: Library) -> None:
    fill(library, {"a": ["word one"]})
    new, other = passages_of("b", ["word x", "word y"]), passages_of("a", ["word one"])
    memories, vectors = {p.id: memory_of(p.id) for p in new}, {p.id: vector_of(p.id) for p in new}
    first = new[0].id
    broken = memory_of(first)
    broken.values[0, 0] = float("nan")
    document = Document("b", "")
    cases = [
        (document, new, {}, vectors, "without a memory"),
        (document, new, memories, {}, "without a vector"),
        (document, new[:1], memories, vectors, "no passage of"),
        (document, new, memories, {**vectors, first: vector_of(first, 9)}, r"shape \(9,\)"),
        (document, new, memories, {**vectors, first: vectors[first] * 0}, "length 0"),
        (document, new, memories, {**vectors, first: vectors[first] * float("nan")}, "length nan"),
        (document, new, {**memories, first: broken}, vectors, f"{first}.*NaN"),
        (document, [*new, new[0]], memories, vectors, "distinct"),
        (document, other, {}, {}, "belongs to 'a'"),
        (Document("b", "", meta={"x": object()}), new, memories, vectors, "JSON"),
        (Document("b", "", meta={"x": float("nan")}), new, memories, vectors, "JSON"),
        (Document("\ud800", ""), [], {}, {}, "Unicode"),
    ]
    with library.transaction() as tx:
        for doc, passages, some_memories, some_vectors, message in cases:
            with pytest.raises((LibraryError, MemoryInvalid), match=message):
                tx.put(doc, passages, some_memories, some_vectors)
        tx.put(document, new, memories, vectors)  # a refused argument does not spoil the transaction
    assert library.passage_ids("b") == [p.id for p in new]
    assert library.verify() == []


def test_a_path_that_cannot_be_looked_at_is_named(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LibraryError, match="xxx/catalog.sqlite': File name too long; check the path"):
        Library.open("x" * 300)

    def closed(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "lstat", closed)
    for write in (False, True):
        with pytest.raises(LibraryError, match="catalog.sqlite': Permission denied; .*the permissions of its folders"):
            Library.open(library.path, write=write)


def test_closed_and_read_only_libraries_say_so(library: Library, folder: Path) -> None:
    with Library.open(folder) as reader:
        with pytest.raises(LibraryError, match="write=True"), reader.transaction():
            pass
        with pytest.raises(LibraryError, match="write=True"):
            reader.gc()
    library.close()
    for call in (library.documents, library.stats, lambda: library.get(["x"]), library.transaction().__enter__):
        with pytest.raises(LibraryError, match="open the library again"):
            call()


def test_ids_and_uris_are_only_values(library: Library) -> None:
    uris = ["../../etc/passwd", "/abs", "a\0b", "'; DROP TABLE passages; --", "%s", "ä" * 300, "seg-1.safetensors", ""]
    state = {uri: [f"word {i}"] for i, uri in enumerate(uris)}
    fill(library, state)
    check(library, state)
    names = set(os.listdir(library.path))
    assert names == {"catalog.sqlite", "writer.lock", "seg-1.safetensors", "faiss-1.idx"}
    for uri in uris:
        hits = library.search(vector_of("0" * 32), "word", 9, where={"document": uri})
        assert [h.passage.document for h in hits] == [uri]
        with pytest.raises(LibraryError, match="no passage"):
            library.get([uri])
    with pytest.raises(LibraryError, match="Unicode"):
        library.get(["\ud800"])
    with library.transaction() as tx:
        assert [tx.remove_document(uri) for uri in uris] == [1] * len(uris)
        assert tx.remove_document("never there") == 0
    check(library, {})


def test_put_keeps_what_is_known(library: Library) -> None:
    with library.transaction() as tx:
        put(tx, library, "a", ["word 1", "word 2", "word 3"], {"v": 1})
    used = {u.number for u in library.stats().segments}
    with library.transaction() as tx:
        tx.put(Document("a", "", meta={"v": 2}), passages_of("a", ["word 3", "word 1"]), {}, {}, content_hash="new")
    assert [p.text for p in library.passages("a")] == ["word 3", "word 1"]
    assert [p.ordinal for p in library.passages("a")] == [0, 1]
    assert library.content_hash("a") == "new"
    assert library.documents()[0].meta == {"v": 2}
    assert {u.number for u in library.stats().segments} == used  # nothing was encoded again
    assert library.stats().dead_bytes > 0
    assert library.verify() == []
    with library.transaction() as tx:
        tx.put(Document("a", ""), [], {}, {}, content_hash="empty")
    assert library.content_hash("a") == "empty"
    assert (library.documents()[0].passages, library.stats().segments) == (0, ())
