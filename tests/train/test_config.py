"""Arguments that name data."""

from __future__ import annotations

import pytest

from sac_rag.errors import ConfigError
from sac_rag.train.specs import sources_of


def test_a_weight_is_a_number_and_all_else_is_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lr=high.jsonl", "plain.jsonl", "a=b"):
        (tmp_path / name).touch()
    assert sources_of(["plain.jsonl", "plain.jsonl=0.3", "cloze:plain.jsonl=2", "ask:plain.jsonl"]) == [
        ("plain.jsonl", 1.0),
        ("plain.jsonl", 0.3),
        ("cloze:plain.jsonl", 2.0),
        ("ask:plain.jsonl", 1.0),
    ]
    assert sources_of(["lr=high.jsonl", "lr=high.jsonl=0.5", "cloze:lr=high.jsonl", "a=b"]) == [
        ("lr=high.jsonl", 1.0),
        ("lr=high.jsonl", 0.5),
        ("cloze:lr=high.jsonl", 1.0),
        ("a=b", 1.0),
    ]
    assert sources_of(["missing=high.jsonl"]) == [("missing=high.jsonl", 1.0)]  # whoever opens it says so


@pytest.mark.parametrize("spec", ["plain.jsonl=much", "cloze:plain.jsonl=0,5", "plain.jsonl="])
def test_a_weight_behind_a_file_must_be_a_number(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.jsonl").touch()
    weight = spec.rpartition("=")[2]
    with pytest.raises(ConfigError, match=f"weight '{weight}' in '{spec}' is not a number"):
        sources_of([spec])
