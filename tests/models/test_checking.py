"""Bits that rot in a model's files while size and time stay: found at a load, or by reading all of it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from model_toys import toy_members, write_wheel

from sac_rag.errors import HashMismatch, ModelError
from sac_rag.models import cache as cache_room
from sac_rag.models import checking, notes, sources
from sac_rag.models.pinned import Pinned

BLOCK = cache_room.BLOCK


def rot(file: Path, at: int, bit: int = 1) -> None:
    """One bit, with size and time as before."""
    stat = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ bit]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def pulled(toy: Pinned, tmp_path: Path) -> Path:
    write_wheel(tmp_path / "house", toy_members())
    return sources.pull("toy", wheelhouse=tmp_path / "house")


@pytest.fixture
def own(cache: Path, tmp_path: Path) -> Path:
    """A folder of the user's: 5.5 blocks of weights, a tokenizer."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(5 * BLOCK + BLOCK // 2))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text('{"rope_theta": 10000.0}')
    sources.fingerprint_of(folder), sources.tokenizer_fingerprint_of(folder)
    notes.noted("base", folder, dict)  # as loading does
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_of_a_pulled_model_any_file_is_missed(pulled: Path, name: str) -> None:
    checking.check_sample(pulled, 60.0)
    assert [c.problems for c in checking.verify(["toy"])] == [()]
    before = sources.fingerprint_of(pulled)
    rot(pulled / name, 1)
    assert sources.fingerprint_of(pulled) == before, "size and time are as they were"
    with pytest.raises(HashMismatch, match=rf"{name} changed while its size and time stayed.*`sac models pull toy`"):
        checking.check_sample(pulled, 60.0)
    (line,) = checking.problems(pulled)
    assert name in line and "sac models pull toy" in line
    with pytest.raises(HashMismatch, match=name):
        sources.fingerprint_of(pulled)  # known since all of it was read
    rot(pulled / name, 1)
    assert checking.problems(pulled) == []
    checking.check_sample(pulled, 60.0)


@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, 3 * BLOCK + 7, 5 * BLOCK + BLOCK // 2 - 1])
def test_in_a_folder_of_the_users_any_place_is_missed(own: Path, at: int) -> None:
    assert checking.problems(own) == []
    rot(own / "model.safetensors", at, 0x80)
    with pytest.raises(HashMismatch, match=rf"\(from byte {at // BLOCK * BLOCK:,} on\): copy it again .*`touch "):
        checking.check_sample(own, 60.0)
    for _ in range(2):
        (line,) = checking.problems(own)
        assert "model.safetensors" in line and "first" in line, "also when it is asked again"
    (own / "model.safetensors").touch()
    checking.check_sample(own, 60.0)  # it was meant
    assert checking.problems(own) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_in_a_folder_of_the_users_also_a_small_file_is_missed(own: Path, name: str) -> None:
    rot(own / name, 1)
    with pytest.raises(HashMismatch, match=name):
        checking.check_sample(own, 60.0)
    (line,) = checking.problems(own)
    assert name in line


def test_a_load_looks_for_a_bounded_time_and_elsewhere_each_time(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    look = checking._block
    monkeypatch.setattr(checking, "_block", lambda file, block: seen.append(block) or look(file, block))
    random.seed(1)
    for _ in range(60):
        before = len(seen)
        checking.check_sample(own, seconds=-1.0)
        assert len(seen) == before + 1, "one at least"
    assert set(seen) == set(range(6)), "none is left out for good"
    seen.clear()
    checking.check_sample(own, seconds=60.0)
    assert sorted(seen) == [0, 0, 0, 1, 2, 3, 4, 5], "all there are, tokenizer and config"
    now = [100.0]
    monkeypatch.setattr(checking.time, "monotonic", lambda: now[0])

    def slow(file, block):
        now[0] += 0.02
        return look(file, block)

    monkeypatch.setattr(checking, "_block", slow)
    seen.clear()
    checking.check_sample(own, seconds=0.03)
    assert now[0] == pytest.approx(100.04), "the look that passes the time is the last"


def test_what_an_older_version_noted_is_read_again(own: Path) -> None:
    weights = own / "model.safetensors"
    digest = cache_room.cached_hash(weights)
    note = cache_room._note(weights)
    whole = json.loads(note.read_text())
    for blocks in (None, "", "AAAA", "no base64", 5, whole["blocks"][:-12]):
        old = {k: v for k, v in whole.items() if k != "blocks"} | ({} if blocks is None else {"blocks": blocks})
        note.write_text(json.dumps(old))
        assert cache_room.noted(weights) is None
        checking.check_sample(own, 60.0)  # nothing to compare with
        assert cache_room.cached_hash(weights) == digest
        assert json.loads(note.read_text()) == whole


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def remove(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def forge(folder: Path) -> None:
    manifest = json.loads((folder / cache_room.MANIFEST).read_text())
    (folder / cache_room.MANIFEST).write_text(json.dumps({**manifest, "fingerprint": "0" * 64}))


@pytest.mark.parametrize(
    ("damage", "said"), [(cut, "has sha256"), (remove, "cannot be read"), (forge, "does not name what is pinned")]
)
def test_what_is_wrong_with_a_pulled_model(pulled: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(pulled)
    (checked,) = checking.verify(["toy"])
    assert len(checked.problems) == 1 and said in checked.problems[0] and str(pulled) in checked.problems[0]
    assert [c.problems for c in checking.verify() if c.path == pulled] == [checked.problems]


def test_names_that_are_not_here(cache: Path, toy: Pinned) -> None:
    for name in ("toy", "no-such", "owner/model"):
        with pytest.raises(ModelError, match=name):
            checking.verify([name])
    assert checking.verify() == []


def test_loading_looks(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model is a folder; both kinds of model do."""
    import torch

    from sac_rag.models.embedder import Embedder
    from sac_rag.models.loading import load_base

    rot(own / "model.safetensors", 77)
    monkeypatch.setattr(random, "sample", lambda numbers, k: [0])
    with pytest.raises(HashMismatch, match=r"model\.safetensors changed"):
        load_base(own, torch.device("cpu"), torch.float32)
    (own / "modules.json").write_text('[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]')
    with pytest.raises(HashMismatch, match=r"model\.safetensors changed"):
        Embedder(str(own), device="cpu").encode(["a"])
