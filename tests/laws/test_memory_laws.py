"""Laws 1-4, 8 and 9: what a memory is. Tiny random Llama, fp32, every fast path against a slow oracle."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Reading
from sac_rag.compress.placing import compose
from sac_rag.compress.rope import rotate
from sac_rag.compress.selectors import SELECTORS, anchor_count, uniform
from sac_rag.compress.session import Session
from tests.conftest import tiny_llama

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def ids(n, seed=0):
    return torch.tensor([random.Random(f"{seed}/{i}").randrange(3, 259) for i in range(n)])


def cached(model, tokens):
    """Rotated keys and values of every token as transformers' own cache holds them, (layers, heads, n, dim)."""
    cache = model(tokens[None], use_cache=True).past_key_values
    return torch.stack([x.keys[0] for x in cache.layers]), torch.stack([x.values[0] for x in cache.layers])


@pytest.mark.parametrize("rope", [None, LLAMA3], ids=["plain", "llama3"])
@torch.no_grad()
def test_law_1_all_tokens_anchored_is_ordinary_prefill(make_backbone, rope):
    b = make_backbone(**({"rope_parameters": rope} if rope else {}))
    head, tail = ids(60), ids(9, seed=1)
    (kv,) = b.encode([head], [torch.arange(60)], anchor_embedding=torch.zeros(b.width), causal=True)
    memory = compose([kv], b.inv_freq, scaling=b.rope_scaling)
    keys, values = cached(b.decoder, head)
    torch.testing.assert_close(memory.keys, keys, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(memory.values, values, atol=2e-6, rtol=1e-5)
    want = b.decoder(torch.cat((head, tail))[None]).logits[0, 60:]
    got = b.read([memory], [Reading(tail, torch.arange(9), 0)])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    served = Session(b, [[memory, tail.tolist()]]).logits
    torch.testing.assert_close(served[0], want[-1], atol=2e-5, rtol=1e-4)


@given(a=st.integers(0, 4000), b=st.integers(0, 4000))
def test_law_2_rotations_add(a, b):
    inv_freq = 1.0 / 10000 ** (torch.arange(0, 16, 2) / 16)
    k = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(a))
    at = torch.tensor([a, a + 1, a + 5])
    twice = rotate(rotate(k, at, inv_freq), torch.full((3,), b), inv_freq)
    torch.testing.assert_close(twice, rotate(k, at + b, inv_freq), atol=3e-3, rtol=0)


@pytest.mark.parametrize("rope", [None, LLAMA3], ids=["plain", "llama3"])
def test_law_2_rotation_is_that_of_transformers(make_backbone, rope):
    b = make_backbone(lora=False, **({"rope_parameters": rope} if rope else {}))
    k = torch.randn(2, 40, b.head_dim)
    at = torch.arange(40) * 37
    torch.testing.assert_close(rotate(k, at, b.inv_freq, b.rope_scaling), b.rotate_like_model(k, at), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rope", [None, LLAMA3], ids=["plain", "llama3"])
@torch.no_grad()
def test_law_3_a_passage_loaded_at_an_offset_is_the_passage_computed_there(make_backbone, rope):
    b = make_backbone(lora=False, **({"rope_parameters": rope} if rope else {}))
    first, second = ids(33), ids(50, seed=1)
    a, kv = b.encode([first, second], [torch.arange(0, 33, 4), torch.arange(2, 50, 5)], causal=True)
    memory = compose([a, kv], b.inv_freq, scaling=b.rope_scaling)
    # The oracle reads the second passage at positions 33.. with nothing in front of it.
    cache = b.decoder(second[None], position_ids=torch.arange(33, 83)[None], use_cache=True).past_key_values
    keys = torch.stack([x.keys[0] for x in cache.layers])[:, :, 2::5]
    torch.testing.assert_close(memory.keys[:, :, a.anchors :], keys, atol=5e-6, rtol=1e-5)
    assert memory.next_position == 83


def test_law_4_the_decoder_is_the_base_model_bit_for_bit(make_sac):
    base, method = tiny_llama(), make_sac(trained=True)
    b = method.backbone
    loss = sum(m.values.square().sum() for m in method.write([ids(40).tolist()], [5.0]))
    optimiser = torch.optim.SGD(method.parameters().values(), lr=0.1)
    loss.backward()
    optimiser.step()
    for name, weight in base.named_parameters():
        assert torch.equal(weight, b.decoder.get_parameter(name)), name
    assert not any("lora" in n for n, _ in b.decoder.named_parameters())
    tokens = ids(30, seed=2)
    with torch.no_grad():
        want = base(tokens[None]).logits[0]
        assert torch.equal(b.plain_logits(tokens), want)
        # Our packed pass orders its sums otherwise than transformers does: equal to rounding.
        served = Session(b, [[tokens.tolist()]]).logits[0]
        torch.testing.assert_close(served, want[-1], atol=2e-5, rtol=1e-5)
        adapted = b.encoder(tokens[None]).logits[0, -1]
    assert not torch.allclose(adapted, want[-1], atol=1e-3), (
        "the encoder side must differ, else this test proves nothing"
    )


@pytest.mark.parametrize(
    ("length", "ratio", "count"),
    [(510, 5, 102), (510, 15, 34), (510, 51, 10), (1, 15, 1), (7, 15, 1), (8, 15, 1), (15, 15, 1), (22, 15, 1),
     (23, 15, 2), (5, 2, 3), (4, 1, 4), (3, 1.2, 3)],
)  # fmt: skip
def test_law_8_anchor_counts_at_the_boundaries(length, ratio, count):
    assert anchor_count(length, ratio) == count


@given(length=st.integers(1, 600), ratio=st.floats(1, 80))
def test_law_8_anchors_are_the_middles_of_equal_chunks(length, ratio):
    count = anchor_count(length, ratio)
    places = uniform(length, count).tolist()
    assert len(places) == count == len(set(places))
    for i, p in enumerate(places):
        # The token in which the middle of chunk [iL/|S|, (i+1)L/|S|) falls, in whole numbers.
        assert 2 * count * p <= (2 * i + 1) * length < 2 * count * (p + 1)


@pytest.mark.parametrize("name", sorted(SELECTORS))
@pytest.mark.parametrize("count", [1, 20, 96, 97])
def test_selectors_ascend_and_repeat(make_backbone, name, count):
    tokens, backbone = ids(97).tolist(), make_backbone()
    selector = SELECTORS.load(name)(backbone)
    for parameter in selector.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    places = selector(tokens, count)
    assert places.dtype == torch.int64 and places.tolist() == sorted(set(places.tolist())) and len(places) == count
    assert places[0] >= 0 and places[-1] < 97
    again = SELECTORS.load(name)(backbone)
    again.load_state_dict(selector.state_dict())
    assert torch.equal(places, again(tokens, count))


def test_spans_of_anchors_cover_the_passage():
    kv = AnchorKV(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), torch.tensor([1, 4, 9, 10]), 13)
    spans = kv.spans()
    assert spans[0][0] == 0 and spans[-1][1] == 13
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert all(s <= p < e for p, (s, e) in zip(kv.positions.tolist(), spans, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_law_9_packed_compression_equals_one_by_one(make_sac, causal):
    method = make_sac(trained=True, causal=causal)
    chunks = [ids(n, seed=n).tolist() for n in (1, 17, 200, 64, 5)]
    together = method.compress(chunks, 5.0)
    small_batches = method.compress(chunks, 5.0, batch_tokens=64)
    for chunk, a, b in zip(chunks, together, small_batches, strict=True):
        (alone,) = method.compress([chunk], 5.0)
        for other in (a, b):
            assert torch.equal(alone.positions, other.positions) and alone.source_len == other.source_len == len(chunk)
            torch.testing.assert_close(alone.keys, other.keys, atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(alone.values, other.values, atol=2e-6, rtol=1e-5)


def test_bidirectional_anchors_see_what_follows_and_causal_ones_do_not(make_sac):
    one, other = ids(40).tolist(), [*ids(39).tolist(), 5]
    for causal in (False, True):
        a, b = make_sac(trained=True, causal=causal).compress([one, other], 5.0)
        assert torch.equal(a.keys[1:], b.keys[1:]) is causal


def test_training_attention_equals_the_fused_kernel(make_sac):
    """The differentiable CPU path of attention against the one that serving uses."""
    method = make_sac(trained=True)
    chunk = ids(70).tolist()
    with torch.no_grad():
        (fused,) = method.write([chunk], [5.0])
    (manual,) = method.write([chunk], [5.0])
    assert manual.keys.requires_grad and not fused.keys.requires_grad
    torch.testing.assert_close(manual.keys.detach(), fused.keys, atol=2e-6, rtol=1e-5)


def test_the_low_rank_path_equals_peft(make_sac):
    b = make_sac(trained=True).backbone
    module = b.encoder.model.layers[1].mlp.up_proj
    x = torch.randn(5, b.width)
    from sac_rag.compress.backbone import _linear

    torch.testing.assert_close(_linear(module, x), module(x), atol=1e-6, rtol=1e-5)
