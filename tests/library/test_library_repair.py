"""repair: what is sound stays, what follows is made again, a copy gives back what it has, and the rest is named."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from library_support import DIM, FINGERPRINT, FULL, check, check_part, fill, held, memory_of, passages_of, vector_of
from test_library_corruption import mutate

from sac_rag.errors import LibraryCorrupt, LibraryError, LibraryMismatch, LibraryNotFound
from sac_rag.library import made
from sac_rag.library.codecs import get_codec
from sac_rag.library.library import Library
from sac_rag.library.repair import Remade, RepairReport, repair
from sac_rag.records import Passage

STATE = {
    "a": ["word a1", "word a2", "word a3"],
    "b": ["word b1", "word b2"],
    **{f"d{i}": [f"word d{i} {j} " + "text " * 60 for j in range(3)] for i in range(6)},
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "library"
    with Library.create(path, FINGERPRINT, dim=DIM) as library:
        for uri, texts in STATE.items():
            fill(library, {uri: texts})
    return path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "library")


def mended(path: Path, copy: Path | None = None) -> RepairReport:
    """Repair with a model whose memories and vectors follow from the passage's id."""

    def remake(head, compress: Sequence[Passage], embed: Sequence[Passage]) -> Remade:
        assert head.fingerprint == FINGERPRINT
        pairs = [(p.id, memory_of(p.id)) for p in compress]
        return Remade(made.write(path, get_codec(head.codec), pairs), {p.id: vector_of(p.id) for p in embed})

    return repair(path, remake, copy)


def change(path: Path, sql: str) -> None:
    db = sqlite3.connect(path / "catalog.sqlite")
    with db:
        assert db.execute(sql).rowcount > 0
    db.close()


def is_sound(path: Path, state=STATE) -> None:
    for write in (False, True):
        with Library.open(path, fingerprint=FINGERPRINT, write=write) as library:
            assert library.notice is None and library.verify() == []
            check(library, state)


def test_a_sound_library_is_left_as_it_is(path: Path) -> None:
    before = {f.name: f.read_bytes() for f in path.iterdir() if f.name != "writer.lock"}
    assert mended(path) == RepairReport()
    assert {f.name: f.read_bytes() for f in path.iterdir() if f.name != "writer.lock"} == before


@pytest.mark.parametrize("kind", ["missing", "cut", "flipped", "header"])
def test_memories_are_made_again_from_the_text(path: Path, kind: str) -> None:
    segment = path / "seg-2.safetensors"
    raw = segment.read_bytes()
    segment.write_bytes({"cut": raw[:-1], "flipped": raw[:-1] + bytes([raw[-1] ^ 1])}.get(kind, b"\xff" + raw[1:]))
    if kind == "missing":
        segment.unlink()
    with Library.open(path) as reader:
        assert any("'b'" in line for line in reader.verify()) or kind == "header"
    report = mended(path)
    wanted = {"missing": 2, "cut": 2, "flipped": 1, "header": 0}[kind]
    assert (report.memories, report.vectors, report.lost) == (wanted, 0, [])
    if kind == "header":
        return  # what other tools read: no passage depends on it
    assert any("'b'" in line for line in report.problems)
    is_sound(path)


def test_search_indexes_are_written_again(path: Path) -> None:
    (path / "faiss-8.idx").write_bytes(b"damaged")
    report = mended(path)
    assert report.memories == report.vectors == 0 and "faiss-8.idx is missing or damaged" in report.problems[0]
    is_sound(path)


def test_vectors_are_made_again(path: Path) -> None:
    change(path, "UPDATE vectors SET vector = zeroblob(32) WHERE passage IN (2, 3)")
    with Library.open(path) as reader:
        assert any("vectors of document 'a'" in line for line in reader.verify())
    report = mended(path)
    assert (report.memories, report.vectors, report.lost) == (0, 2, [])
    is_sound(path)


def test_lost_text_is_named_and_comes_back_from_a_copy(path: Path, sound: Path) -> None:
    change(path, "UPDATE passages SET text = 'other' WHERE text = 'word a2'")
    with Library.open(path) as reader:
        check_part(reader, STATE)
        assert any("1 passages of document 'a'" in line for line in reader.verify())
    other = shutil.copytree(path, path.parent / "other")
    report = mended(path)
    assert report.lost == ["a passage of 'a'"]
    with Library.open(path) as library:
        assert library.verify() == [] and held(library) == {**STATE, "a": ["word a1", "word a3"]}
        assert library.content_hash("a").endswith(" repaired"), "the next indexing run compares it again"
    report = mended(other, sound / "catalog.sqlite")
    assert (report.taken_back, report.lost) == (1, [])
    is_sound(other)


def test_a_lost_name_is_replaced_or_taken_back(path: Path, sound: Path) -> None:
    change(path, "DELETE FROM documents WHERE uri = 'b'")
    other = shutil.copytree(path, path.parent / "other")
    assert mended(path).lost == ["the name and metadata of document number 5; its passages stand under 'recovered-5'"]
    with Library.open(path) as library:
        assert library.verify() == [] and held(library)["recovered-5"] == STATE["b"]
        assert library.search(None, "b2", 1, mode="lexical")[0].passage.document == "recovered-5"
    shutil.copy(sound / "catalog.sqlite", path.parent / "backup.db")  # a copy may have any name
    assert mended(other, path.parent / "backup.db").lost == []
    is_sound(other)


def test_rows_of_memories_and_segments_are_made_again(path: Path) -> None:
    change(path, "DELETE FROM memories WHERE passage IN (SELECT key FROM passages WHERE text = 'word b2')")
    change(path, "UPDATE segments SET size = 7 WHERE number = 3")
    report = mended(path)
    assert (report.memories, report.lost) == (1, [])
    is_sound(path)


def test_what_was_removed_since_the_copy_stays_removed(path: Path, sound: Path) -> None:
    with Library.open(path, write=True) as library:
        with library.transaction() as tx:
            tx.remove_document("d2")
        fill(library, {"new": ["word new"]})
    change(path, "UPDATE passages SET text = 'other' WHERE text = 'word a2'")
    assert mended(path, sound).lost == []
    is_sound(path, {**{k: v for k, v in STATE.items() if k != "d2"}, "new": ["word new"]})


@pytest.mark.parametrize("left", ["missing", "garbage", "first page"])
def test_without_a_catalog_a_copy_is_taken_whole(path: Path, sound: Path, left: str) -> None:
    catalog = path / "catalog.sqlite"
    raw = catalog.read_bytes()
    catalog.write_bytes(b"x" * 100 if left == "garbage" else bytes(4096) + raw[4096:])
    if left == "missing":
        catalog.unlink()
    with pytest.raises(LibraryCorrupt, match=r"sac repair --copy"):
        mended(path)
    if left != "missing":
        with pytest.raises(LibraryError):
            Library.open(path)
    (path / "seg-4.safetensors").unlink()
    report = mended(path, sound)
    assert report.memories == 3 and report.lost == [] and report.taken_back > 20
    is_sound(path)


def test_a_copy_of_another_library_is_refused(path: Path, tmp_path: Path) -> None:
    with Library.create(tmp_path / "foreign", FINGERPRINT, dim=DIM) as foreign:
        fill(foreign, STATE)
    with pytest.raises(LibraryMismatch, match="copy is of library"):
        mended(path, tmp_path / "foreign")
    with pytest.raises(LibraryNotFound):
        mended(tmp_path / "nowhere")
    is_sound(path)


def test_any_page_of_the_catalog_may_be_lost(path: Path, sound: Path) -> None:
    raw = (sound / "catalog.sqlite").read_bytes()
    outcomes = set()
    for page in range(0, len(raw), 4096):
        for other in path.iterdir():
            other.unlink()
        shutil.copytree(sound, path, dirs_exist_ok=True)
        (path / "catalog.sqlite").write_bytes(raw[:page] + bytes(4096) + raw[page + 4096 :])
        alone = shutil.copytree(path, path.parent / f"alone{page}")
        mended(path, sound)
        is_sound(path)
        try:
            report = mended(alone)
        except LibraryCorrupt as e:
            assert "copy" in str(e)
            outcomes.add("refused")
            continue
        with Library.open(alone, write=True) as library:
            assert library.verify() == [] and library.notice is None
            kept = held(library)
            known = {p.text: p for uri in STATE for p in passages_of(uri, STATE[uri])}
            texts = {text for own in kept.values() for text in own}
            assert texts <= known.keys()
            outcomes.add("whole" if texts == known.keys() and kept.keys() == STATE.keys() else "part")
            assert bool(report.lost) == (texts != known.keys() or kept.keys() != STATE.keys())
    assert outcomes == {"refused", "whole", "part"}


def test_random_damage_is_mended_with_a_copy(path: Path, sound: Path) -> None:
    rng = random.Random(5)
    names = ["catalog.sqlite"] * 4 + [f"seg-{n}.safetensors" for n in (1, 3)] + ["faiss-8.idx"]
    for _ in range(300 if FULL else 40):
        shutil.rmtree(path)
        shutil.copytree(sound, path)
        for name in rng.sample(names, 2):
            (path / name).write_bytes(mutate((path / name).read_bytes(), rng))
        report = mended(path, sound)
        assert report.lost == [], report
        with Library.open(path, fingerprint=FINGERPRINT, write=True) as library:
            assert [p for p in library.verify() if "header is damaged" not in p] == []
            check(library, STATE)


def test_the_damaged_catalog_is_kept_until_gc(path: Path) -> None:
    change(path, "UPDATE passages SET text = 'CANARY' WHERE text = 'word a2'")
    damaged = (path / "catalog.sqlite").read_bytes()
    report = mended(path)
    assert report.kept and (path / report.kept).read_bytes() == damaged
    assert (path / report.kept).stat().st_mode & 0o777 == 0o600
    with Library.open(path, write=True) as library:
        assert (path / report.kept).exists()
        library.gc()
        assert not list(path.glob("damaged-*")) and not [f for f in os.listdir(path) if f.endswith(".new")]
    assert not any(b"CANARY" in f.read_bytes() for f in path.iterdir())


def test_a_passage_that_lost_its_vector_is_found_by_its_words(path: Path) -> None:
    change(path, "UPDATE vectors SET vector = zeroblob(32) WHERE passage = 2")
    change(path, "UPDATE passages SET text = 'other' WHERE key = (SELECT max(key) FROM passages)")
    for file in path.glob("faiss-*.idx"):
        file.unlink()
    with sqlite3.connect(path / "catalog.sqlite") as catalog:
        ((lost, words),) = catalog.execute("SELECT id, text FROM passages WHERE key = 2")
    catalog.close()
    with Library.open(path) as reader:
        assert reader.notice
        hits = {h.passage.id: h for h in reader.search(vector_of(lost), words, 50)}
        assert 0.0 < hits[lost].score <= 1.0 and hits[lost].dense is None and hits[lost].lexical
        assert lost not in {h.passage.id for h in reader.search(vector_of(lost), words, 50, min_score=-0.99)}
