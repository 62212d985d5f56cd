"""Serving figures on a tiny model: sixteen at once answer as one by one, and a turn reads only what is new."""

from __future__ import annotations

from sac_rag import Document, SacRag
from sac_rag.evaluate.bench import together, turns


def test_conversations_together_and_turn_by_turn(tiny_config, tmp_path):
    with SacRag.index([], tmp_path / "a.lib", tiny_config, dtype="float32") as rag:
        rag.put([Document("lamp", "The lamp of the lighthouse burned whale oil until the year 1911.")])
        row = together(rag, [f"Until when did it burn {n}?" for n in range(5)], tokens=6)
        assert (row["calls"], row["tokens"], row["equal_answers"]) == (5, 6, 5)
        found = turns(rag, "Until when did the lamp burn oil?", 3)
        assert [r["turn"] for r in found] == [1, 2, 3]
        assert found[0]["slots_reused"] == 0 < found[1]["slots_reused"] < found[2]["slots_reused"]
