"""JSON that others wrote, wherever it is read: bounded, and an error with a name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sac_rag import foreign
from sac_rag.errors import ModelError, TrainingError
from sac_rag.models.fingerprints import read_json, weight_files
from sac_rag.train.data import read_contexts

DEEP = "[" * 50_000 + "]" * 50_000


@pytest.mark.parametrize("value", [{"a": [1, 2.5, "x", None, True]}, [], "é", 5, {"[": "]" * 500}])
def test_json_is_read(value: Any) -> None:
    assert foreign.parse_json(json.dumps(value)) == value
    assert foreign.parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 50_000, "NaN", "[Infinity]", "-Infinity", "1e999", "9" * 5000, "", "{", '"\\ud800', "\x00"]
)
def test_what_is_none(text: str) -> None:
    for given in (text, text.encode()):
        with pytest.raises(ValueError):
            foreign.parse_json(given)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "\\u0061": 3}}]', '{"": 1, "": 2}'])
def test_keys_that_stand_twice(text: str) -> None:
    """Of which one reader takes the first and another the last."""
    assert foreign.parse_json(text) is not None
    for given in (text, text.encode()):
        with pytest.raises(ValueError, match="stands in one object twice"):
            foreign.parse_json(given, twice=False)
    assert foreign.parse_json('[{"a": 1}, {"a": {"a": 2}}]', twice=False) == [{"a": 1}, {"a": {"a": 2}}]


def test_depth_is_bounded_exactly() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for depth, fits in ((foreign.MAX_DEPTH, True), (foreign.MAX_DEPTH + 1, False)):
            text = opening * depth + ("1" if closing == "}" else "") + closing * depth
            if fits:
                assert foreign.parse_json(text) is not None
            else:
                with pytest.raises(ValueError, match="nested more than"):
                    foreign.parse_json(text)
    wide = "[" + ",".join(["[]"] * 10_000) + "]"
    assert len(foreign.parse_json(wide)) == 10_000


@pytest.mark.parametrize("kind", ["zero", "fifo", "folder", "sparse", "proc", "loop", "missing"])
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.json"
    if kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "proc":
        path.symlink_to("/proc/self/maps")
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises((OSError, ValueError)):
        foreign.read_bytes(path, most=100)
    with pytest.raises(ModelError):
        read_json(path)


@pytest.mark.parametrize("text", [DEEP, "[]", "5", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', "NaN"])
def test_shard_indexes(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_training_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(TrainingError, match="nested too deep"):
        list(read_contexts(tmp_path / name))
