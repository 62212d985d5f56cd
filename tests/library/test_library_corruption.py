"""Damaged, cut, swapped and hostile files: a typed error, or the right answer; never wrong data, never a crash."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
from library_support import DIM, FINGERPRINT, FULL, check, check_part, fill, held, vector_of

from sac_rag.errors import LibraryCorrupt, LibraryError
from sac_rag.library.library import Library

STATE = {"a": ["word a1", "word a2", "word a3"], "b": ["word b1"], "c": ["word c1 " + "long " * 900]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "library"
    with Library.create(path, FINGERPRINT, dim=DIM) as library:
        fill(library, {"a": STATE["a"]})
        fill(library, {"b": STATE["b"], "c": STATE["c"]})
    return path


def mutate(data: bytes, rng: random.Random) -> bytes:
    raw, at = bytearray(data), rng.randrange(len(data))
    kind = rng.choice(["bit", "bit", "bit", "byte", "cut", "zeros", "ones", "longer", "swap", "huge"])
    if kind == "bit":
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        raw[at] = rng.randrange(256)
    elif kind == "cut":
        del raw[at:]
    elif kind == "zeros":
        raw[at : at + 512] = bytes(len(raw[at : at + 512]))
    elif kind == "ones":
        raw[at : at + 8] = b"\xff" * len(raw[at : at + 8])
    elif kind == "longer":
        raw += rng.randbytes(100)
    elif kind == "swap":
        other = rng.randrange(len(data))
        raw[at : at + 64], raw[other : other + 64] = raw[other : other + 64], raw[at : at + 64]
    else:
        raw[at : at + 8] = (1 << 62).to_bytes(8, "big")[: len(raw[at : at + 8])]
    return bytes(raw)


@pytest.mark.parametrize("name", ["catalog.sqlite", "seg-1.safetensors", "seg-2.safetensors", "faiss-2.idx"])
def test_mutated_files_never_give_wrong_answers(sound: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "library"
    shutil.copytree(sound, path)
    pristine = {f.name: f.read_bytes() for f in sound.iterdir()}
    refused = 0
    rng = random.Random(name)
    for n in range(2500 if FULL else 90 if name == "catalog.sqlite" else 25):
        for other in os.listdir(path):
            if other not in pristine:
                (path / other).unlink()
        for own, data in pristine.items():
            if not (path / own).exists() or (path / own).read_bytes() != data:
                (path / own).write_bytes(data)
        changed = mutate(pristine[name], rng)
        (path / name).write_bytes(changed)
        try:
            with Library.open(path, write=n % 3 == 0) as library:
                if library.notice:
                    check_part(library, STATE)
                    refused += 1
                else:
                    check(library, STATE)
        except LibraryError:
            refused += 1
        if name != "catalog.sqlite" and changed != pristine[name]:
            with Library.open(sound) as library:
                assert library.verify() == []
            assert problems(path), f"mutation {n} went unnoticed"
    assert name == "faiss-2.idx" or refused > 0


def problems(path: Path) -> list[str]:
    from sac_rag.library.checks import problems

    return problems(path, deep=True)


def test_damage_to_one_memory_names_it_and_spares_the_others(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "library")
    raw = bytearray((path / "seg-1.safetensors").read_bytes())
    raw[-1] ^= 1  # the last byte belongs to the last passage
    (path / "seg-1.safetensors").write_bytes(raw)
    with Library.open(path, write=True) as library:
        first, second, third = library.passage_ids("a")
        library.load([first, second])
        with pytest.raises(LibraryCorrupt, match=f"{third} of 'a'.*checksum.*remove this document"):
            library.load([first, third])
        assert len(library.verify()) == 1
        with pytest.raises(LibraryCorrupt):
            library.gc()
        with library.transaction() as tx:  # the advice of the message works
            tx.remove_document("a")
        fill(library, {"a": STATE["a"]})
        library.gc()
        assert library.verify() == []
        check(library, STATE)


def test_a_damaged_faiss_file_is_rebuilt_and_healed(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "library")
    (path / "faiss-2.idx").write_bytes(b"\x80\x04garbage")
    with Library.open(path) as reader:
        check(reader, STATE)
    with Library.open(path, write=True) as library:
        check(library, STATE)
        assert "gc" in library.verify()[0]
        library.gc()
        assert library.verify() == []
        check(library, STATE)


@pytest.mark.parametrize("kind", ["missing", "symlink", "folder", "fifo", "empty"])
@pytest.mark.parametrize("name", ["catalog.sqlite", "seg-1.safetensors", "faiss-2.idx"])
def test_files_that_are_something_else(sound: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = shutil.copytree(sound, tmp_path / "library")
    moved = (path / name).rename(tmp_path / "moved")
    if kind == "symlink":
        (path / name).symlink_to(moved)
    elif kind == "folder":
        (path / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(path / name)
    elif kind == "empty":
        (path / name).touch()
    if name.startswith("faiss"):
        with Library.open(path) as library:
            check(library, STATE)
        return
    if name.startswith("seg"):
        for write in (False, True):
            with Library.open(path, write=write) as library:
                check_part(library, STATE)
                assert held(library) == STATE and "'a'" in " ".join(library.verify())
                assert {h.passage.document for h in library.search(vector_of("0" * 32), "word", 9)} == {"b", "c"}
                with pytest.raises(LibraryCorrupt, match="seg-1"):
                    library.load(library.passage_ids("a"))
        with Library.open(path, write=True) as library:  # the advice works
            with pytest.raises(LibraryCorrupt, match="sac repair"):
                library.gc()
            with library.transaction() as tx:
                tx.remove_document("a")
            fill(library, {"a": STATE["a"]})
            assert library.notice is None and library.verify() == []
            check(library, STATE)
        return
    for write in (False, True):
        with pytest.raises(LibraryError):
            Library.open(path, write=write)


def test_a_lock_that_is_a_link_is_not_followed(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "library")
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    (path / "writer.lock").unlink()
    (path / "writer.lock").symlink_to(victim)
    with pytest.raises(LibraryError):
        Library.open(path, write=True)
    assert victim.read_text() == "keep me"


def test_a_link_in_the_way_of_a_new_file_is_not_followed(sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "library")
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    with Library.open(path, write=True) as library:
        for name in ("seg-3.safetensors", "seg-3.safetensors.tmp", "faiss-3.idx.tmp", "faiss-3.idx"):
            (path / name).symlink_to(victim)
        fill(library, {"d": ["word d"]})
        check(library, {**STATE, "d": ["word d"]})
        assert library.verify() == []
    assert victim.read_text() == "keep me"
    assert not any(f.is_symlink() for f in path.iterdir())


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["catalog.sqlite", "seg-1.safetensors", "faiss-2.idx", "writer.lock"])
def test_nothing_is_ever_unpickled(sound: Path, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(sound, tmp_path / "library")
    for protocol in (0, 2, 5):
        (path / name).write_bytes(pickle.dumps(Canary(str(tmp_path / "hatched")), protocol))
        for write in (False, True):
            try:
                with Library.open(path, write=write) as library:
                    library.search(vector_of("0" * 32), "word", 3)
                    library.load([p.id for p in library.passages()])
            except LibraryError:
                pass
    assert not (tmp_path / "hatched").exists()


def test_no_module_of_this_room_can_unpickle() -> None:
    import sac_rag.library

    for source in Path(sac_rag.library.__file__ or "").parent.glob("*.py"):
        text = source.read_text()
        assert not any(word in text for word in ("pickle", "torch.load", "torch.save", "shelve", "marshal")), source
