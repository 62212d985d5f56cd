"""Laws 1-4, 8 and 9: what a memory is. Tiny random Llama, fp32, every fast path against a slow oracle."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sac_rag.compress.anchor_kv import AnchorKV, Memory, Slots
from sac_rag.compress.backbone import Reading
from sac_rag.compress.budgets import BUDGETS
from sac_rag.compress.placing import compose, packed
from sac_rag.compress.rope import rotate
from sac_rag.compress.selectors import SELECTORS, anchor_count, uniform
from sac_rag.compress.session import Session
from tests.conftest import grid, tiny_model

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
    (kv,) = b.encode([head], [b.even(torch.arange(60))], anchor_embedding=torch.zeros(b.width), causal=True)
    memory = compose([kv], b.inv_freq, scaling=b.rope_scaling)
    keys, values = cached(b.decoder, head)
    for got, want in zip(grid(memory), (keys, values), strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)
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


@pytest.mark.parametrize("start", [0, 7, 4000])
def test_slots_at_the_same_places_turn_as_each_alone(make_backbone, start):
    """Many slots at few positions, whose angles are computed once each: the same bits."""
    inv_freq = make_backbone(lora=False).inv_freq
    keys, at = torch.randn(90, inv_freq.numel() * 2), start + torch.arange(90) * 7 % 11
    alone = torch.cat([rotate(keys[i : i + 1], at[i : i + 1], inv_freq) for i in range(90)])
    assert torch.equal(rotate(keys, at, inv_freq), alone)


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
    picks = [b.even(torch.arange(0, 33, 4)), b.even(torch.arange(2, 50, 5))]
    a, kv = b.encode([first, second], picks, causal=True)
    memory = compose([a, kv], b.inv_freq, scaling=b.rope_scaling)
    # The oracle reads the second passage at positions 33.. with nothing in front of it.
    cache = b.decoder(second[None], position_ids=torch.arange(33, 83)[None], use_cache=True).past_key_values
    keys = torch.stack([x.keys[0] for x in cache.layers])[:, :, 2::5]
    torch.testing.assert_close(grid(memory)[0][:, :, a.anchors :], keys, atol=5e-6, rtol=1e-5)
    assert memory.next_position == 83


def test_law_4_the_decoder_is_the_base_model_bit_for_bit(make_sac, family):
    base, method = tiny_model(family), make_sac(trained=True)
    b = method.backbone
    loss = sum(m.values.square().sum() for (m,) in method.write([[ids(40).tolist()]], [5.0]))
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
    kv = AnchorKV.even(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), torch.tensor([1, 4, 9, 10]), 13)
    spans = kv.spans()
    assert spans[0][0] == 0 and spans[-1][1] == 13
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert all(s <= p < e for p, (s, e) in zip(kv.positions.tolist(), spans, strict=True))


@pytest.mark.parametrize("budget", sorted(BUDGETS))
@pytest.mark.parametrize("causal", [False, True])
def test_law_9_packed_compression_equals_one_by_one(make_sac, causal, budget):
    method = make_sac(trained=True, causal=causal, budget=budget)
    chunks = [ids(n, seed=n).tolist() for n in (1, 17, 200, 64, 5)]
    together = method.compress(chunks, 5.0)
    small_batches = method.compress(chunks, 5.0, batch_tokens=64)
    for chunk, a, b in zip(chunks, together, small_batches, strict=True):
        (alone,) = method.compress([chunk], 5.0)
        for other in (a, b):
            assert torch.equal(alone.positions, other.positions) and torch.equal(alone.counts, other.counts)
            assert alone.source_len == other.source_len == len(chunk)
            torch.testing.assert_close(alone.keys, other.keys, atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(alone.values, other.values, atol=2e-6, rtol=1e-5)


def test_bidirectional_anchors_see_what_follows_and_causal_ones_do_not(make_sac):
    one, other = ids(40).tolist(), [*ids(39).tolist(), 5]
    for causal in (False, True):
        a, b = make_sac(trained=True, causal=causal).compress([one, other], 5.0)
        assert torch.equal(grid(a)[0][1:], grid(b)[0][1:]) is causal


@pytest.mark.parametrize("budget", sorted(BUDGETS))
def test_training_attention_equals_the_fused_kernel(make_sac, budget):
    """The differentiable CPU path of attention against the one that serving uses, writing and reading."""
    method = make_sac(trained=True, budget=budget)
    chunk = ids(70).tolist()
    lengths, behind = (9, 5, 4, 300, 70, 1), (0, 0, None, 0, 0, 0)  # some share an attention, one is too long for that
    texts = [
        Reading(ids(n, seed=i), torch.arange(n), memory)
        for i, (n, memory) in enumerate(zip(lengths, behind, strict=True))
    ]
    with torch.no_grad():
        ((fused,),) = method.write([[chunk]], [5.0])
        want = method.backbone.read([method.memory([fused])], texts)
    ((manual,),) = method.write([[chunk]], [5.0])
    assert manual.keys.requires_grad and not fused.keys.requires_grad
    torch.testing.assert_close(manual.keys.detach(), fused.keys, atol=1e-5, rtol=1e-5)
    got = method.backbone.read([method.memory([manual])], texts)
    torch.testing.assert_close(got.detach(), want, atol=2e-5, rtol=1e-4)


def uneven(layers, heads, length, seed=0):
    """Runs of unlike length, some empty, of any tokens."""
    rng = random.Random(seed)
    sizes = [rng.choice([0, 1, length // 3, length]) for _ in range(layers * heads)]
    sizes[rng.randrange(len(sizes))] = length // 2
    return Slots.of(
        [torch.tensor(sorted(rng.sample(range(length), n)), dtype=torch.int64) for n in sizes], layers, heads
    )


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_what_a_head_keeps_is_what_it_would_keep_of_all(make_backbone, seed):
    b = make_backbone()
    layers, heads, _ = b.kv_shape
    chunks = [ids(30), ids(47, seed=1)]
    picks = [uneven(layers, heads, len(c), seed + 10 * i) for i, c in enumerate(chunks)]
    every = [b.even(torch.arange(len(c))) for c in chunks]
    for kv, whole, pick in zip(b.encode(chunks, picks), b.encode(chunks, every), picks, strict=True):
        assert torch.equal(kv.validate().counts, pick.counts)
        at = pick.runs() * whole.source_len + pick.positions
        torch.testing.assert_close(kv.keys, whole.keys[at], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(kv.values, whole.values[at], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_runs_of_several_memories_are_joined_head_by_head(make_backbone, seed):
    b = make_backbone()
    layers, heads, _ = b.kv_shape
    chunks = [ids(30), ids(47, seed=1), ids(5, seed=2)]
    parts = b.encode(chunks, [uneven(layers, heads, len(c), seed + i) for i, c in enumerate(chunks)])
    memory = compose(parts, b.inv_freq)
    runs = [
        compose([part], b.inv_freq, start=start).layer_runs() for part, start in zip(parts, (0, 30, 77), strict=True)
    ]
    for layer, both in enumerate(memory.layer_runs()):
        for head, (keys, values) in enumerate(both):
            assert torch.equal(keys, torch.cat([r[layer][head][0] for r in runs]))
            assert torch.equal(values, torch.cat([r[layer][head][1] for r in runs]))


@pytest.mark.parametrize("grad", [False, True])
def test_every_head_attends_its_own_run(grad):
    """Against one head at a time, each in front of the tokens with its own run alone."""
    from sac_rag.compress.attention import Front, attend_packed, fronts_of

    made = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(7, h, 8, generator=made) for h in (6, 3, 3))
    counts = torch.tensor([[4, 0, 9]])
    keys, values = torch.randn(2, 13, 8, generator=made)
    (front,) = fronts_of(Memory(keys, values, counts, 20, 20))
    got = attend_packed(q.requires_grad_(grad), k, v, causal=True, front=front)
    for head, run in enumerate(zip(keys.split([4, 0, 9]), values.split([4, 0, 9]), strict=True)):
        own = None if not len(run[0]) else Front(run[0][:, None], run[1][:, None], None)
        part = slice(head, head + 1)
        want = attend_packed(q[:, 2 * head : 2 * head + 2], k[:, part], v[:, part], causal=True, front=own)
        torch.testing.assert_close(got[:, 16 * head : 16 * head + 16], want, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_packed_places_take_up_what_a_head_keeps_on_average():
    runs = [torch.tensor([3, 9]), torch.tensor([9]), torch.tensor([], dtype=torch.int64), torch.tensor([0, 3])]
    slots = Slots.of(runs, 2, 2)
    kv = AnchorKV(torch.zeros(5, 4), torch.zeros(5, 4), slots.positions, slots.counts, 12).validate()
    (first, second), following = packed([kv, kv])
    assert kv.anchors == 1 and kv.slots.anchors.tolist() == [0, 3, 9]
    assert first.tolist() == [0, 0, 0, 0, 0] and second.tolist() == [1, 1, 1, 1, 1] and following == 2
    assert kv.spans() == [(0, 2), (2, 6), (6, 12)]


def test_the_low_rank_path_equals_the_layer(make_sac):
    b = make_sac(trained=True).backbone
    module = b.encoder.model.layers[1].mlp.up_proj
    x = torch.randn(5, b.width)
    from sac_rag.compress.backbone import _linear

    torch.testing.assert_close(_linear(module, x), module(x), atol=1e-6, rtol=1e-5)
