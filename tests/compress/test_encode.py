"""What `encode`, `hidden` and `walk` take beyond token ids, against transformers' own forward, in every family."""

from __future__ import annotations

import pytest
import torch

from sac_rag.compress.backbone import Backbone, LoraSpec, Reading
from sac_rag.compress.placing import compose
from sac_rag.compress.rope import rotate
from sac_rag.families import FAMILIES
from tests.conftest import byte_tokenizer, grid, tiny_model
from tests.laws.test_memory_laws import ids

LENGTHS = (31, 7, 18)
EXTRA = (4, 2, 1)


@pytest.fixture(params=FAMILIES)
def backbone(request):
    """A whole encoder with a LoRA that does something."""
    b = Backbone(tiny_model(request.param), byte_tokenizer(), LoraSpec(4, 8.0, whole=True))
    made = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, p in b.trainable():
            p.add_(0.1 * torch.randn(p.shape, generator=made))
    return b


@pytest.fixture
def chunks():
    return [ids(n, seed=n) for n in LENGTHS]


@pytest.fixture
def extra(backbone):
    made = torch.Generator().manual_seed(1)
    return [0.3 * torch.randn(k, backbone.width, generator=made) for k in EXTRA]


def oracle(b, inputs, positions, *, lora=True, mask=None):
    """(values (layers, kv_heads, n, dim), rotated keys, last states) of embeddings (n, width), by transformers."""
    model = b.encoder if lora else b.decoder
    n = len(inputs)
    seen = torch.ones(n, n, dtype=torch.bool).tril() if mask is None else mask
    with torch.no_grad():
        out = model.model(
            inputs_embeds=inputs[None],
            position_ids=positions[None],
            attention_mask=torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min),
            use_cache=True,
        )
    values, keys = (torch.stack([getattr(x, t)[0] for x in out.past_key_values.layers]) for t in ("values", "keys"))
    return values, keys, out.last_hidden_state[0]


def embedded(b, chunk, rows):
    return torch.cat((b.decoder.model.embed_tokens(chunk), rows))


def near(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_appended_tokens_at_positions_of_their_own(backbone, chunks, extra):
    b = backbone
    at = [torch.cat((torch.arange(n), 3 * torch.arange(k) + 1)) for n, k in zip(LENGTHS, EXTRA, strict=True)]
    picks = [b.even(n + torch.arange(k)) for n, k in zip(LENGTHS, EXTRA, strict=True)]
    made = b.encode(chunks, picks, appended=extra, positions=at, causal=True)
    states = b.hidden(chunks, [n + torch.arange(k) for n, k in zip(LENGTHS, EXTRA, strict=True)], appended=extra,
                      positions=at, causal=True)  # fmt: skip
    for i, kv in enumerate(made):
        values, keys, last = oracle(b, embedded(b, chunks[i], extra[i]), at[i])
        n = LENGTHS[i]
        assert kv.source_len == n and kv.positions.view(-1, EXTRA[i])[0].equal(at[i][n:])
        near(grid(kv)[1], values[:, :, n:])
        near(rotate(grid(kv)[0], at[i][n:], b.inv_freq, b.rope_scaling), keys[:, :, n:])
        near(states[i], last[n:])


@torch.no_grad()
def test_masks_of_any_shape(backbone, chunks):
    b = backbone
    made = torch.Generator().manual_seed(0)
    masks = [(torch.rand(n, n, generator=made) < 0.5) | torch.eye(n).bool() for n in LENGTHS]
    made = b.encode(chunks, [b.even(torch.arange(n)) for n in LENGTHS], masks=masks)
    for chunk, mask, kv in zip(chunks, masks, made, strict=True):
        near(grid(kv)[1], oracle(b, b.embed(chunk), torch.arange(len(chunk)), mask=mask)[0])


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_chunk_behind_what_earlier_ones_kept(backbone, chunks, causal):
    """Behind a memory of all tokens of the first, the second is what it is in one text of both."""
    b, (first, second) = backbone, chunks[:2]
    n, m = len(first), len(second)
    (kept,) = b.encode([first], [b.even(torch.arange(n))], causal=True)
    front = compose([kept], b.inv_freq, scaling=b.rope_scaling)
    at = n + torch.arange(m)
    (kv,) = b.encode([second], [b.even(torch.arange(m))], fronts=[front], positions=[at], causal=causal)
    mask = torch.ones(n + m, n + m, dtype=torch.bool).tril()
    if not causal:
        mask[n:] = True
    values, keys, _ = oracle(b, b.embed(first, second), torch.arange(n + m), mask=mask)
    near(grid(kv)[1], values[:, :, n:])
    near(rotate(grid(kv)[0], at, b.inv_freq, b.rope_scaling), keys[:, :, n:])


def test_gradients_reach_what_is_appended_and_what_stands_in_front(backbone, chunks, extra):
    """The kernels of training give what those of inference do, masks, fronts and biases included."""
    b, n = backbone, len(chunks[1])
    rows = extra[0].clone().requires_grad_()
    (kept,) = b.encode(chunks[:1], [b.even(31 + torch.arange(4))], appended=[rows], causal=True)
    front = compose([kept], b.inv_freq, scaling=b.rope_scaling)
    every = [b.even(torch.arange(n))]
    (kv,) = b.encode(chunks[1:2], every, fronts=[front], future_bias=-2.0)
    with torch.no_grad():
        (fused,) = b.encode(chunks[1:2], every, fronts=[front], future_bias=-2.0)
    near(kv.values.detach(), fused.values)
    kv.values.square().sum().backward()
    assert rows.grad is not None and bool((rows.grad.abs().sum(1) > 0).all())


@torch.no_grad()
def test_projections_of_a_methods_own_for_some_tokens(backbone, chunks):
    """Zeros in place of one token's values, in every layer, are what later tokens see; what is not behind it stays."""
    b, seen = backbone, []

    def project(layer, name, x, out, rows):
        seen.append((layer, name, tuple(rows.shape)))
        mine = (rows == 5)[:, None]
        return torch.where(mine, torch.zeros_like(out), out) if name == "v_proj" else out

    every = [b.even(torch.arange(n)) for n in LENGTHS]
    plain, changed = b.encode(chunks, every, causal=True), b.encode(chunks, every, causal=True, project=project)
    assert not grid(changed[0])[1][:, :, 5].any() and grid(plain[0])[1][:, :, 5].abs().min() > 0
    assert torch.equal(grid(changed[0])[1][:, :, :5], grid(plain[0])[1][:, :, :5])
    assert not torch.allclose(grid(changed[0])[1][-1, :, 6:], grid(plain[0])[1][-1, :, 6:])
    for one, other in zip(changed[1:], plain[1:], strict=True):
        assert torch.equal(one.values, other.values)
    assert {name for _, name, _ in seen} == {"q_proj", "k_proj", "v_proj"} and {s for *_, s in seen} == {(56,)}


@torch.no_grad()
def test_embeddings_are_read_like_the_tokens_that_they_are_of(backbone, chunks):
    b, text = backbone, chunks[0]
    rows, scored = b.embed(text), torch.arange(len(text))
    want = b.plain_logits(text)
    near(b.read([], [Reading(rows, scored, None)]), want)
    both = b.read([], [Reading(rows, scored, None), Reading(chunks[1], torch.arange(7), None)])
    near(both[: len(text)], want)
    every = [b.even(scored)]
    (by_ids,), (by_rows,) = b.encode([text], every), b.encode([rows], every)
    assert torch.equal(by_ids.values, by_rows.values) and torch.equal(by_ids.keys, by_rows.keys)
