"""What an answer attended: by the oracle of transformers, mapped to anchors, and nothing else changed by it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sac_rag import SacRag
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.placing import compose
from sac_rag.compress.watched import attended
from sac_rag.errors import ConfigError, MemoryDamaged, PassageGone
from sac_rag.library.library import Library
from sac_rag.records import Document
from tests.conftest import byte_tokenizer, grid, tiny_llama

QUESTION = "Who carried a rooster across the bridge?"
TEXTS = {
    "tides.md": "The tides follow the Moon. Spring tides come when the Sun and the Moon are lined up.",
    "canal.md": "The Erie Canal spans 363 miles. It joins the Hudson to the Great Lakes.",
    "bridge.md": "Émily Roebling crossed the Brooklyn Bridge first. She carried a rooster.",
}


def test_shares_are_those_of_transformers() -> None:
    """Attention weights of its eager attention, over the same cache."""
    from transformers import DynamicCache

    backbone = Backbone(tiny_llama(), byte_tokenizer())
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(3, 2, 7, backbone.head_dim, generator=generator) for _ in range(2))
    kv = AnchorKV.even(keys, values, torch.tensor([0, 3, 5, 8, 9, 13, 17]), 20)
    memory, ids = compose([kv], backbone.inv_freq), backbone.tokens("Who carried a rooster?")
    found = attended(backbone, [memory, ids], 4)

    cache = DynamicCache()
    for layer, (k, v) in enumerate(zip(*grid(memory), strict=True)):
        cache.update(k[None], v[None], layer)
    model = backbone.decoder
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, 7 + len(ids), dtype=torch.int64),
            position_ids=torch.arange(20, 20 + len(ids))[None],
            past_key_values=cache,
            output_attentions=True,
        )
    heads = torch.stack([a[0, :, -4:].mean(1) for a in out.attentions])  # (layers, heads, slots and tokens)
    shared = heads.unflatten(1, (2, -1)).mean(2)  # (layers, kv_heads, …)
    (share,) = found.memories
    torch.testing.assert_close(share.view(3, 2, 7), shared[:, :, :7], atol=1e-5, rtol=1e-4)
    assert found.tokens == pytest.approx(float(shared[:, :, 7:].sum(-1).mean()), abs=1e-5)


def test_text_in_front_of_a_memory_does_not_see_it() -> None:
    backbone = Backbone(tiny_llama(), byte_tokenizer())
    keys, values = (torch.randn(3, 2, 4, backbone.head_dim) for _ in range(2))
    kv = AnchorKV.even(keys, values, torch.tensor([0, 1, 2, 5]), 6)
    front, ids = backbone.tokens("Text."), backbone.tokens("Who?")
    alone = attended(backbone, [front], len(front))
    assert alone.memories == [] and alone.tokens == pytest.approx(1, abs=1e-6)
    parts = [front, compose([kv], backbone.inv_freq, start=len(front)), ids]
    behind, whole = attended(backbone, parts, len(ids)), attended(backbone, parts, len(front) + len(ids))
    n = len(ids) / (len(front) + len(ids))
    torch.testing.assert_close(whole.memories[0], behind.memories[0] * n, atol=1e-6, rtol=1e-5)
    biased = dataclasses.replace(parts[1], bias=torch.full((24,), -1e4))
    assert float(attended(backbone, [front, biased, ids], len(ids)).memories[0].sum()) == 0


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path) -> Any:
    with SacRag.open(tmp_path / "three.lib", config=tiny_config, write=True, create=True) as opened:
        opened.put([Document(uri, text) for uri, text in TEXTS.items()])
        yield opened


@pytest.mark.parametrize(
    "settings", [{}, {"k": 1}, {"order": "best-first"}, {"prior": 0.5}, {"fidelity": "mixed", "text_tokens": 90}]
)
def test_heat_lies_on_anchors_and_sums_to_one(rag: SacRag, settings: dict[str, Any]) -> None:
    cold = rag.ask(QUESTION, max_new_tokens=9, **settings)
    warm = rag.ask(QUESTION, max_new_tokens=9, heat=True, **settings)
    heat = warm.heat
    assert heat is not None and cold.heat is None
    assert dataclasses.replace(warm, timings=cold.timings, heat=None) == cold
    assert heat.passages + heat.prefix + heat.tokens == pytest.approx(1, abs=1e-5)
    assert sum(w for anchors in heat.anchors for *_, w in anchors) == pytest.approx(heat.passages, abs=1e-6)
    assert 0 < heat.passages < 1 and 0 < heat.prefix < 1
    as_text = 1 if warm.fidelity == "mixed" else 0
    assert [bool(anchors) for anchors in heat.anchors] == [at >= as_text for at in range(len(warm.sources))]
    memories = rag.library.load([hit.passage.id for hit in warm.sources])
    for hit, anchors, memory in list(zip(warm.sources, heat.anchors, memories, strict=True))[as_text:]:
        ends = [end for _, end, _ in anchors]
        assert ends == sorted(ends) and all(0 <= a < b <= len(hit.passage.text) for a, b, _ in anchors)
        assert len(anchors) == len(memory.slots.anchors)
        # A byte is a token here: the anchor's place among bytes is its character's, but behind an accent.
        text, places = hit.passage.text, memory.slots.anchors.tolist()
        assert [len(text[:a].encode()) for a, _, _ in anchors] == [
            p if text.isascii() else len(text.encode()[:p].decode(errors="ignore").encode()) for p in places
        ]


def test_the_best_source_is_that_whose_slots_are_attended(rag: SacRag) -> None:
    """Where all other passages are held back, attention falls on the best alone: whose slots are whose is known."""
    heat = rag.ask(QUESTION, max_new_tokens=4, k=3, prior=100.0, heat=True).heat
    assert heat is not None
    best, *others = (sum(w for *_, w in anchors) for anchors in heat.anchors)
    assert best > 0.01 and max(others) < 1e-9


def test_what_heat_is_not_of_is_refused(rag: SacRag) -> None:
    from sac_rag.answer.conversation import Conversation

    with pytest.raises(ConfigError, match="not of a conversation"):
        rag.ask(QUESTION, heat=True, conversation=Conversation())
    with pytest.raises(ConfigError, match="not of passages that are read as text"):
        rag.ask(QUESTION, heat=True, text=True)
    assert rag.ask("Thanks!", heat=True, max_new_tokens=2).heat is None


@pytest.mark.parametrize("error", [PassageGone, MemoryDamaged])
def test_an_answer_whose_passages_have_gone_since_is_whole_without(
    rag: SacRag, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A document is removed, or its bytes rot, between the answer and the second reading."""
    want = rag.ask(QUESTION, max_new_tokens=6)
    load, loaded = Library.load, []

    def once(self: Library, ids: Any) -> Any:
        loaded.append(ids)
        if len(loaded) > 1:
            raise error("it is gone")
        return load(self, ids)

    rag.check()
    monkeypatch.setattr(Library, "load", once)
    answer = rag.ask(QUESTION, max_new_tokens=6, heat=True)
    assert len(loaded) == 2 and answer.heat is None
    assert (answer.text, answer.sources) == (want.text, want.sources)
