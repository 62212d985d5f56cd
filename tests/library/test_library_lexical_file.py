"""The kept lexical index: used when it is whole, rebuilt when it is not, gone with the text it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from library_support import DIM, FINGERPRINT, fill, put

from sac_rag import bm25
from sac_rag.library import folder as files
from sac_rag.library import lexical_file
from sac_rag.library.lexical import LexicalIndex
from sac_rag.library.library import Library

STATE = {
    "a": [
        "the river runs to the sea",
        "stones in the river, stones in the bed",
        "...",
        "\u6d77 and na\u00efve snake_case",
    ],
    "b": ["a violin and a violinist", "canary river canaries"],
}
QUESTIONS = ("rivers", "stone violin", "canary", "\u6d77", "snake_case na\u00efve river river", "unknown")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_file, "KEPT_FROM", 4)


@pytest.fixture
def kept(folder: Path) -> Path:
    """The file that a writer leaves behind."""
    with Library.create(folder, FINGERPRINT, dim=DIM) as library:
        fill(library, STATE)
        assert not list(folder.glob("lexical-*"))
    (path,) = folder.glob("lexical-*.idx")
    return path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of passages of each index that is built from text."""
    counted: list[int] = []
    build = LexicalIndex.build

    def counting(keys, texts):
        counted.append(len(keys))
        return build(keys, texts)

    monkeypatch.setattr(LexicalIndex, "build", counting)
    yield counted


def answers(folder: Path) -> list[list[tuple[str, float]]]:
    with Library.open(folder) as library:
        return [
            [(h.passage.id, h.score) for h in library.search(None, text, k, mode="lexical")]
            for text in QUESTIONS
            for k in (1, 9)
        ]


def test_it_answers_as_the_built_one_and_nothing_is_built(folder: Path, kept: Path, builds: list[int]) -> None:
    assert kept.stat().st_mode & 0o777 == 0o600
    found = answers(folder)
    assert builds == [] and sum(map(len, found)) > 10
    with Library.open(folder) as library:
        stats = library.stats()
        assert stats.lexical_bytes == kept.stat().st_size and library.verify() == []
        assert stats.total_bytes == sum(f.stat().st_size for f in folder.iterdir() if f.name != files.LOCK)
    builds.clear()  # verify compares it with the text
    kept.unlink()
    assert answers(folder) == found and builds == [6]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "long", "link"])
def test_a_damaged_one_is_rebuilt_named_and_healed(
    folder: Path, kept: Path, builds: list[int], tmp_path: Path, damage: str
) -> None:
    found, good = answers(folder), kept.read_bytes()
    if damage == "link":
        shutil.move(kept, tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    else:
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        kept.write_bytes({"cut": good[:-1], "empty": b"", "flipped": flipped, "long": good + b"x"}[damage])
    assert answers(folder) == found and builds == [6]
    with Library.open(folder) as library:
        assert ["is damaged; searches rebuild it" in line for line in library.verify()] == [True]
    Library.open(folder, write=True).close()
    assert kept.read_bytes() == good and not kept.is_symlink()


def test_every_flipped_byte_is_noticed(folder: Path, kept: Path) -> None:
    good = kept.read_bytes()
    with Library.open(folder) as library:
        keys = library._view.catalog.all_keys()
        for at in range(0, len(good), 7):
            kept.write_bytes(good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :])
            assert lexical_file.read(folder, library.head, keys) is None, at
        kept.write_bytes(good)
        assert lexical_file.read(folder, library.head, keys) is not None


def test_one_of_another_library_or_other_rules_is_not_used(
    folder: Path, kept: Path, builds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Library.create(tmp_path / "other", FINGERPRINT, dim=DIM) as other:
        fill(other, {**STATE, "b": ["quite another text", "and one more"]})
    found = answers(folder)
    builds.clear()
    shutil.copy(tmp_path / "other" / kept.name, kept)
    assert answers(folder) == found and builds == [6]
    Library.open(folder, write=True).close()
    builds.clear()
    monkeypatch.setattr(bm25, "_stemmer", lambda: None)
    assert answers(folder) != found and builds == [6]


def test_it_goes_with_the_text_it_was_made_of(folder: Path, kept: Path) -> None:
    assert b"canari" in kept.read_bytes()
    with Library.open(folder, write=True) as library:
        with library.transaction() as tx:
            tx.remove_document("b")
        assert not kept.exists()
        library.gc()
    (new,) = folder.glob("lexical-*.idx")
    assert new != kept and not [f for f in folder.iterdir() if b"canar" in f.read_bytes()]
    assert [hit for hits in answers(folder)[4:6] for hit in hits] == []
    with Library.open(folder, write=True) as library, library.transaction() as tx:
        put(tx, library, "a", STATE["a"][:2])
    assert not list(folder.glob("lexical-*")), "a small library keeps none"


def test_changes_of_places_alone_keep_it(folder: Path, kept: Path, builds: list[int]) -> None:
    before = kept.stat().st_ino
    with Library.open(folder, write=True) as library:
        library.search(None, "river", 3, mode="lexical")
        with library.transaction() as tx:
            put(tx, library, "b", STATE["b"][::-1])
        assert [h.passage.ordinal for h in library.search(None, "violin", 3, mode="lexical")] == [1]
    assert kept.stat().st_ino == before and builds == []


def test_closing_never_fails_for_it_and_not_after_an_error(
    folder: Path, kept: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.unlink()
    with pytest.raises(KeyboardInterrupt), Library.open(folder, write=True):
        raise KeyboardInterrupt
    assert builds == [] and not kept.exists()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durable", full)
        Library.open(folder, write=True).close()
    assert builds == [6] and not kept.exists()
    library = Library.open(folder, write=True)  # the lock was given back
    library.close()
    assert kept.exists()
    kept.unlink()
    library.close()
    assert not kept.exists(), "a closed writer has no right to write"


def test_leftovers_are_swept(folder: Path, kept: Path) -> None:
    for name in ("lexical-999.idx", f"{kept.name}.tmp"):
        (folder / name).write_bytes(b"x")
    Library.open(folder, write=True).close()
    assert [f.name for f in folder.glob("lexical-*")] == [kept.name]


def test_one_by_earlier_rules_is_made_again_and_is_no_damage(
    folder: Path, kept: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, good = answers(folder), kept.read_bytes()
    for earlier in ("words-1", "words-1 english"):
        with monkeypatch.context() as patch:
            patch.setattr(bm25, "rules", lambda by=earlier: by)
            kept.unlink()
            Library.open(folder, write=True).close()
        builds.clear()
        with Library.open(folder) as library:
            assert library.verify() == []
        assert kept.read_bytes() != good and answers(folder) == found and builds == [6]
        Library.open(folder, write=True).close()
        assert kept.read_bytes() == good


@pytest.mark.parametrize("earlier", ["words-1", "words-1 english", "words-2", "words-2 english"])
def test_one_that_names_the_faiss_file_alone_is_of_before(
    folder: Path, kept: Path, builds: list[int], earlier: str
) -> None:
    """As they were made when every commit wrote the FAISS file."""
    found, good = answers(folder), kept.read_bytes()
    with Library.open(folder) as library:
        head = library.head
    belongs = [lexical_file.FORMAT, head.library, head.faiss, (head.faiss_hash or b"").hex(), earlier]
    data = good[16:]
    kept.write_bytes(xxhash.xxh3_128(json.dumps(belongs).encode() + data).digest() + data)
    builds.clear()
    with Library.open(folder) as library:
        assert library.verify() == []
    assert answers(folder) == found and builds == [6]
    Library.open(folder, write=True).close()
    assert kept.read_bytes() == good
    kept.write_bytes(bytes(16) + data)
    with Library.open(folder) as library:
        assert [line for line in library.verify() if kept.name in line], "of no rules at all is damage"
