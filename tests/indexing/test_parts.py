"""Long documents are made and committed in parts, so that memory and lost work are bounded by a part."""

from __future__ import annotations

from pathlib import Path

import pytest

from sac_rag import SacRag
from sac_rag.indexing import plan
from sac_rag.indexing.make import Maker
from sac_rag.library.library import Library
from sac_rag.records import Document
from sac_rag.text.readers import read
from tests.indexing.test_workers import everything, sentences, stored_passages

PART = 1500


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "GROUP_BYTES", PART)


@pytest.fixture
def made(monkeypatch) -> list[list[str]]:
    """The texts of each order that is made."""
    seen: list[list[str]] = []
    make = Maker.make

    def watched(self, work, *args):
        seen.append([text for _, text in work.compress])
        return make(self, work, *args)

    monkeypatch.setattr(Maker, "make", watched)
    return seen


class Killed(BaseException):
    pass


def killed_at(monkeypatch, count: int):
    """Let the run die while it makes its order number `count`."""
    left, make = [count], Maker.make

    def dying(self, *args):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return make(self, *args)

    monkeypatch.setattr(Maker, "make", dying)


def test_no_order_is_longer_than_a_part_and_each_is_a_commit(tiny_config, tmp_path, made):
    Path("long.txt").write_text(sentences(7, 200))
    with SacRag.index("long.txt", tmp_path / "a", tiny_config) as rag:
        assert (rag.report.done, rag.report.ahead, rag.report.added) == (1, 0, 1)
        assert len(made) > 5 and rag.library.head.generation == len(made)
        assert all(0 < sum(map(len, texts)) <= PART for texts in made)
        assert [p.text for p in rag.library.passages("long.txt")] == [text for texts in made for text in texts]
        assert rag.library.verify() == []
        assert rag.add("long.txt").unchanged == 1


def test_a_kill_loses_one_part_and_the_rest_is_that_of_an_undisturbed_run(tiny_config, tmp_path, made, monkeypatch):
    Path("long.txt").write_text(sentences(7, 200))
    SacRag.index("long.txt", tmp_path / "whole", tiny_config).close()
    undisturbed = list(made)
    made.clear()
    with SacRag.open(tmp_path / "a", config=tiny_config, create=True) as rag:
        with monkeypatch.context() as patch:
            killed_at(patch, 5)
            with pytest.raises(Killed):
                rag.add("long.txt")
        stored = rag.library.passages("long.txt")
        assert [p.text for p in stored] == [text for texts in undisturbed[:4] for text in texts]
        assert rag.library.content_hash("long.txt").startswith("unfinished:") and rag.library.verify() == []
        made.clear()
        report = rag.add("long.txt")
        assert made == undisturbed[4:] and (report.added, report.changed) == (1, 0)
        assert report.passages == sum(map(len, made))
        assert rag.add("long.txt").unchanged == 1
    assert stored_passages(everything(tmp_path / "a")) == stored_passages(everything(tmp_path / "whole"))


def test_an_interrupted_change_shows_nothing_that_is_gone(tiny_config, tmp_path, made, monkeypatch):
    old = [sentences(s, 12) for s in range(10)]
    new = [old[0], sentences(20, 12), *old[2:6], sentences(21, 12), *old[7:]]
    with SacRag.open(tmp_path / "a", config=tiny_config, create=True) as rag:
        Path("long.txt").write_text("\n\n".join(old))
        rag.add("long.txt")
        before = {p.id for p in rag.library.passages()}
        Path("long.txt").write_text("\n\n".join(new))
        made.clear()
        with monkeypatch.context() as patch:
            killed_at(patch, 2)
            with pytest.raises(Killed):
                rag.add("long.txt")
        texts = " ".join(p.text for p in rag.library.passages())
        assert "house 20" in texts and "house 1 " not in texts and "house 6" not in texts and "house 9" in texts
        assert rag.library.verify() == []
        rag.add("long.txt")
        after = {p.id for p in rag.library.passages()}
        assert " ".join(" ".join(p.text for p in rag.library.passages()).split()) == " ".join("\n\n".join(new).split())
        assert len(before & after) > len(after) // 2
        assert sum(map(len, made)) == len(after - before), "what is stored is not compressed again"
        assert rag.library.verify() == []
    with SacRag.index("long.txt", tmp_path / "fresh", tiny_config) as fresh:
        assert fresh.library.passages() == read_passages(tmp_path / "a")


def read_passages(path):
    with Library.open(path) as library:
        return library.passages()


def test_a_put_is_one_commit_however_long(tiny_config, tmp_path, made):
    with SacRag.open(tmp_path / "a", config=tiny_config, create=True) as rag:
        rag.put([Document("memo", sentences(3, 3)), Document("long", sentences(7, 100)), Document("note", "A heron.")])
        assert len(made) > 4 and all(sum(map(len, texts)) <= PART for texts in made)
        first = rag.library.head.generation
        assert {d.uri for d in rag.library.documents()} == {"memo", "long", "note"} and rag.library.verify() == []
        assert not list(rag.library.path.glob("made-*"))
        seen = rag.library.content_hash("long")
        assert seen.startswith("given:") and rag.put([Document("long", sentences(7, 100))]).unchanged == 1
        assert rag.library.head.generation == first


def test_files_whose_text_is_longer_than_they_are_are_cut_too(tiny_config, tmp_path, made, monkeypatch):
    """As a compressed document is: its group is small, its text is not."""
    for i in range(4):
        Path(f"{i}.txt").write_text(sentences(i, 2))

    def longer(path, **kwargs):
        document = read(path, **kwargs)
        return Document(document.uri, sentences(int(path.stem), 16))

    monkeypatch.setattr("sac_rag.indexing.indexer.read", longer)
    with SacRag.index([f"{i}.txt" for i in range(4)], tmp_path / "a", tiny_config) as rag:
        assert len(made) == 4 and all(sum(map(len, texts)) <= PART for texts in made)
        assert rag.report.done == 4 and len(rag.library.documents()) == 4
