"""ICAE, 500xCompressor and EPL against transformers' own forward: the same tokens, positions and masks, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods import METHODS
from sac_rag.compress.methods.epl import spread_evenly
from sac_rag.compress.session import Session
from tests.conftest import grid

FAMILIES = ("llama", "qwen3")
CHUNKS = (list(range(5, 48)), list(range(60, 97)))
RATIO = 5.0
COUNTS = (9, 7)
"""43 / 5 = 8.6 and 37 / 5 = 7.4, to the nearest."""


@pytest.fixture(params=FAMILIES)
def family(request: Any) -> str:
    return request.param


@pytest.fixture
def make(make_backbone: Any) -> Any:
    """A method with LoRA and memory tokens that are not as they start."""

    def made(name: str, prefix: str = "") -> Any:
        from sac_rag.compress.backbone import Backbone, LoraSpec

        kind = METHODS.load(name)
        plain = make_backbone(lora=False)
        spec = LoraSpec(4, 8.0, ("q_proj", "v_proj"), whole=kind.adapts == "whole")
        method = kind(Backbone(plain.decoder, plain.tokenizer, spec), PromptLayout(prefix=prefix))
        with torch.no_grad():
            for i, p in enumerate(method.parameters().values()):
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        return method

    return made


def by_encoder(method: Any, ids: list[int], positions: list[int], extra: int) -> Any:
    """The adapted model over a text and memory tokens, with positions and a causal mask of our own."""
    model, n = method.backbone.encoder, len(positions)
    with torch.no_grad():
        text = model.get_input_embeddings()(torch.tensor([ids]))
        mask = torch.full((n, n), torch.finfo(text.dtype).min).triu(1)
        return model(
            inputs_embeds=torch.cat((text, method.tokens[None, :extra]), dim=1),
            position_ids=torch.tensor([positions]),
            attention_mask=mask[None, None],
            output_hidden_states=True,
            use_cache=True,
        )


def cached(out: Any, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (rotated) and values of the last tokens, (layers, kv_heads, last, head_dim)."""
    layers = out.past_key_values.layers
    return torch.stack([x.keys[0, :, -last:] for x in layers]), torch.stack([x.values[0, :, -last:] for x in layers])


def same(memory: Any, *wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    for got, want in zip(grid(memory), zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(want, dim=2), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 43, 255, 509, 510])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 34, 102, 255, 510])
def test_memory_tokens_of_epl_are_spread_evenly(length: int, count: int) -> None:
    count = min(length, count)
    reach = (length / count - 1) / 2
    wanted = np.linspace(1 + reach, length - reach, count)
    got = spread_evenly(length, count)
    assert np.abs(got.numpy() + 1 - wanted).max() <= 0.5 + 1e-9
    firm = np.abs(wanted % 1 - 0.5) > 1e-6
    assert (got.numpy() + 1)[firm].tolist() == np.round(wanted[firm]).astype(int).tolist()
    assert bool((got.diff() > 0).all()) and int(got[0]) >= 0 and int(got[-1]) < length


def test_halves_go_to_the_even_position() -> None:
    """4 tokens for 2: at 1.5 and 3.5 from 1, which are 2 and 4."""
    assert spread_evenly(4, 2).tolist() == [1, 3]
    assert spread_evenly(12, 6).tolist() == [1, 3, 5, 7, 9, 11]


def test_epl_stands_where_its_paper_says(make: Any) -> None:
    """Each chunk is read at its place in the context, memory tokens among it, and the question goes on behind it."""
    method, start, wanted = make("epl"), 0, []
    (parts,) = method.compress_contexts([CHUNKS], RATIO)
    for ids, count, kv in zip(CHUNKS, COUNTS, parts, strict=True):
        n = len(ids)
        reach = (n / count - 1) / 2
        spread = (np.round(np.linspace(1 + reach, n - reach, count)) - 1).astype(int)
        places = [*range(start, start + n), *(start + spread)]
        wanted.append(cached(by_encoder(method, ids, places, count), count))
        assert kv.anchors == count and kv.slots.anchors.tolist() == spread.tolist()
        start += n
    memory = method.memory(parts)
    same(memory, *wanted)
    assert memory.next_position == start == 80


def test_500x_keeps_default_positions(make: Any) -> None:
    """Each chunk begins at 0, its memory tokens stand behind it and stay there; the question begins at their number."""
    method, wanted = make("500x"), []
    (parts,) = method.compress_contexts([CHUNKS], RATIO)
    for ids, count, kv in zip(CHUNKS, COUNTS, parts, strict=True):
        out = by_encoder(method, ids, list(range(len(ids) + count)), count)
        wanted.append(cached(out, count))
        assert (kv.anchors, kv.source_len) == (count, len(ids))
    memory = method.memory(parts)
    same(memory, *wanted)
    assert memory.next_position == sum(COUNTS)


@pytest.mark.parametrize("prefix", ["", "<|im_start|>sys\n"])
def test_icae_hands_over_input_embeddings(make: Any, prefix: str) -> None:
    """A question behind two chunks has the logits of the decoder that reads prefix, states and question."""
    method, asked = make("icae", prefix), [7, 8, 9]
    (parts,) = method.compress_contexts([CHUNKS], RATIO)
    states = [
        by_encoder(method, ids, list(range(len(ids) + count)), count).hidden_states[-1][0, -count:]
        for ids, count in zip(CHUNKS, COUNTS, strict=True)
    ]
    front = method.backbone.template(prefix)
    table = method.backbone.decoder.get_input_embeddings()
    with torch.inference_mode():
        rows = [table(torch.tensor(front, dtype=torch.int64)), *states, table(torch.tensor(asked))]
        want = method.backbone.decoder(inputs_embeds=torch.cat(rows)[None]).logits[0, -1]
        got = Session(method.backbone, [[method.memory(parts), asked]])
    torch.testing.assert_close(got.logits[0], want, atol=2e-5, rtol=1e-4)
    assert got.positions == [len(front) + sum(COUNTS) + len(asked)]


@pytest.mark.parametrize("name", ["icae", "500x", "epl"])
def test_what_is_trained(make_backbone: Any, name: str, family: str) -> None:
    """LoRA and a row a slot; rows start as draws of the mean and deviation of the embedding matrix."""
    backbone = make_backbone()
    method = METHODS.load(name)(backbone, PromptLayout(prefix=""))
    rest = {n for n in method.parameters() if "lora_" not in n}
    table = backbone.decoder.get_input_embeddings().weight
    assert rest == {"tokens"} and method.tokens.shape == (510, 48)
    rows, table = method.tokens.detach(), table.detach()
    assert float(rows.std()) == pytest.approx(float(table.std()), rel=0.02)
    assert float(rows.mean()) == pytest.approx(float(table.mean()), abs=0.02 * float(table.std()))
    again = METHODS.load(name)(make_backbone(), PromptLayout(prefix=""))
    assert torch.equal(method.tokens, again.tokens)


@pytest.mark.parametrize("name", ["icae", "500x", "epl"])
def test_slots_of_a_ratio_are_the_first_of_those_of_a_lower_one(make: Any, name: str) -> None:
    """One table serves all ratios: what stands at 15x is a part of what stands at 5x, seen by the same rows."""
    method = make(name)
    ids = list(range(5, 155))
    (few,), (many,) = (method.compress([ids], ratio) for ratio in (15.0, 5.0))
    assert (few.anchors, many.anchors) == (10, 30)
    if name != "epl":  # whose rows stand elsewhere at another ratio
        values = grid(few)[1], grid(many)[1][:, :, :10]
        torch.testing.assert_close(*values, atol=2e-5, rtol=1e-4)
