"""Serving figures on a tiny model: sixteen at once answer as one by one, and a turn reads only what is new."""

from __future__ import annotations

import pytest

from sac_rag import Document, SacRag
from sac_rag.errors import ConfigError
from sac_rag.evaluate.bench import indexing, together, turns
from sac_rag.indexing import plan


def test_conversations_together_and_turn_by_turn(tiny_config, tmp_path):
    with SacRag.index([], tmp_path / "a.lib", tiny_config, dtype="float32") as rag:
        rag.put([Document("lamp", "The lamp of the lighthouse burned whale oil until the year 1911.")])
        row = together(rag, [f"Until when did it burn {n}?" for n in range(5)], tokens=6)
        assert (row["calls"], row["tokens"], row["equal_answers"]) == (5, 6, 5)
        found = turns(rag, "Until when did the lamp burn oil?", 3)
        assert [r["turn"] for r in found] == [1, 2, 3]
        assert found[0]["slots_reused"] == 0 < found[1]["slots_reused"] < found[2]["slots_reused"]


def test_indexing_beside_workers(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "GROUP_BYTES", 600)
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"The lamp of house {i} burned whale oil until the year 19{i}1. " * 9)
    files = [str(f) for f in sorted(tmp_path.glob("*.txt"))]
    here, beside = indexing(files, (1, 2), tiny_config, rounds=1)
    assert (here["workers"], beside["workers"], beside["threads"]) == ("1", "2", "1")
    assert here["same_bytes"] == beside["same_bytes"] == "True"
    assert all(row["tokens_per_s"] > 0 and row["seconds"] > 0 for row in (here, beside))
    with pytest.raises(ConfigError, match="in one batch"):
        indexing(files[:1], (1,), tiny_config, rounds=1)
