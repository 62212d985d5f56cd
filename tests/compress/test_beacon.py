"""Activation Beacon and DAST: windows with beacons against transformers' forward, and where the beacons stand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods import METHODS
from sac_rag.compress.methods.beacon import behind_parts
from sac_rag.compress.methods.dast import PIECE, cuts, shared_out
from sac_rag.compress.rope import rotate
from tests.conftest import grid

WINDOWS = (list(range(5, 48)), list(range(60, 97)))
RATIO = 5.0
ENDS = ([4, 9, 14, 19, 23, 28, 33, 38, 43], [5, 10, 15, 21, 26, 31, 37])
"""Of 43 and 37 tokens in 9 and 7 parts: floor((i + 1) L / K)."""


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def family(request: Any) -> str:
    return request.param


@pytest.fixture
def make(make_backbone: Any) -> Any:
    """A method whose embedding and projections are not as they start."""

    def made(name: str = "beacon", prefix: str = "<|im_start|>sys\n", moved: float = 0.1) -> Any:
        method = METHODS.load(name)(make_backbone(lora=False), PromptLayout(prefix=prefix))
        with torch.no_grad():
            for i, p in enumerate(method.parameters().values()):
                p.add_(moved * (1 if p.ndim == 1 else 10) * torch.randn(p.shape, generator=seeded(i)))
        return method

    return made


def seeded(i: int) -> torch.Generator:
    return torch.Generator().manual_seed(i)


class Split(nn.Module):
    """A linear layer that takes other weights for some rows."""

    def __init__(self, layer: Any, method: Any, name: str, marked: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.method, self.name, self.marked = layer, method, name, marked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self.method.parameters()
        weight, bias = (own.get(f"beacon.{self.name}.{kind}") for kind in ("weight", "bias"))
        plain = self.layer(x)
        if weight is None:  # queries of the last layer serve nothing that is kept
            return plain
        weight = self.layer.weight + 0.1 * weight
        bias = self.layer.bias if bias is None else self.layer.bias + 0.1 * bias
        return torch.where(self.marked[:, None], nn.functional.linear(x, weight, bias), plain)


def by_transformers(method: Any, ids: list[int], ends: list[int], front: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated keys and values of a window's beacons, (layers, kv_heads, beacons, head_dim), each behind `front`."""
    row, marked = [], []
    for i, token in enumerate(ids):
        row.append(method.backbone.embed(torch.tensor([token]))[0])
        marked.append(False)
        if i + 1 in ends:
            row.append(method.embedding.detach())
            marked.append(True)
    at = torch.tensor(marked)
    model = copy.deepcopy(method.backbone.decoder)
    for index, layer in enumerate(model.model.layers):
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(layer.self_attn, name, Split(getattr(layer.self_attn, name), method, f"{index}.{name}", at))
    cache = DynamicCache()
    for index, (keys, values) in enumerate(zip(*grid(front), strict=True)):
        cache.update(keys[None], values[None], index)
    with torch.no_grad():
        n, slots = len(row), front.slots
        mask = torch.full((n, slots + n), torch.finfo(torch.float32).min).triu(slots + 1)
        places = torch.arange(front.next_position, front.next_position + n)[None]
        out = model(
            inputs_embeds=torch.stack(row)[None], position_ids=places, attention_mask=mask[None, None],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
    kept = [(x.keys[0, :, slots:][:, at], x.values[0, :, slots:][:, at]) for x in out.past_key_values.layers]
    return torch.stack([k for k, _ in kept]), torch.stack([v for _, v in kept])


@pytest.mark.parametrize("prefix", ["<|im_start|>sys\n", ""])
def test_windows_are_those_of_transformers(make: Any, prefix: str) -> None:
    """Two windows: tokens and beacons in a row behind sink and earlier beacons, which stand at compact positions."""
    method = make(prefix=prefix)
    (parts,) = method.compress_contexts([WINDOWS], RATIO)
    sink = len(method.front_ids)
    assert sink == (1 if not prefix else len(method.backbone.template(prefix)))
    for n, (ids, ends, kv) in enumerate(zip(WINDOWS, ENDS, parts, strict=True)):
        front = method.memory(parts[:n])
        assert front.next_position == front.slots == sink + sum(map(len, ENDS[:n]))
        keys, values = by_transformers(method, ids, ends, front)
        stood = torch.tensor([front.next_position + end + i for i, end in enumerate(ends)])
        compact = front.next_position + torch.arange(len(ends))
        keys = rotate(keys, compact - stood, method.backbone.inv_freq)
        memory = method.memory(parts[: n + 1])
        for got, want in zip(grid(memory), (keys, values), strict=True):
            torch.testing.assert_close(got[:, :, -len(ends) :], want, atol=3e-5, rtol=1e-4)
        assert kv.source_len == len(ids) and kv.slots.anchors.tolist() == [end - 1 for end in ends]


def test_before_training_a_beacon_is_the_token_that_ends_a_text(make: Any) -> None:
    """Its projections begin as the model's: its memory is that of the base model reading EOS there."""
    method = make(moved=0.0)
    ids, ends = WINDOWS[0], ENDS[0]
    (kv,) = method.compress([ids], RATIO)
    text, places = list(method.front_ids), []
    for i, token in enumerate(ids):
        text.append(token)
        if i + 1 in ends:
            places.append(len(text))
            text.append(method.backbone.tokenizer.eos_token_id)
    picks = [method.backbone.even(torch.tensor(places))]
    with torch.inference_mode():
        (want,) = method.backbone.encode([torch.tensor(text)], picks, causal=True)
    torch.testing.assert_close(kv.keys, want.keys, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(kv.values, want.values, atol=3e-5, rtol=1e-4)


def test_what_is_trained(make: Any, family: str) -> None:
    """The embedding and the projections of beacons, without the queries of the last layer; no LoRA."""
    method = make(moved=0.0)
    names = set(method.parameters())
    kinds = ("weight", "bias") if family == "qwen2" else ("weight",)
    shapes = {f"beacon.{i}.{p}.{k}" for i in range(3) for p in ("q_proj", "k_proj", "v_proj") for k in kinds}
    assert names == {"embedding", *shapes} - {f"beacon.2.q_proj.{k}" for k in kinds}
    eos = method.backbone.decoder.get_input_embeddings().weight[method.backbone.tokenizer.eos_token_id]
    assert torch.equal(method.embedding, eos)
    base = dict(method.backbone.decoder.model.layers.named_parameters())
    for name, p in method.differences.items():
        index, projection, kind = name.split(".")
        assert p.shape == base[f"{index}.self_attn.{projection}.{kind}"].shape and not bool(p.any())
    method = make()  # the tiny model's EOS has no embedding to learn from
    (kv,) = method.write([[WINDOWS[0]]], [RATIO])[0]
    (kv.keys + kv.values).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in method.parameters().items() if ".bias" not in n)


def test_beacons_stand_behind_equal_parts() -> None:
    assert [behind_parts(len(w), len(e)).tolist() for w, e in zip(WINDOWS, ENDS, strict=True)] == list(ENDS)
    assert behind_parts(510, 34).tolist() == [15 * (i + 1) for i in range(34)]
    assert behind_parts(7, 2).tolist() == [3, 7] and behind_parts(1, 1).tolist() == [1]
    assert cuts(510).tolist() == [51 * i for i in range(11)] and cuts(52).tolist() == [0, 26, 52]
    assert cuts(PIECE).tolist() == [0, 51] and cuts(1).tolist() == [0, 1]


def naive(weights: list[float], sizes: list[int], total: int) -> list[int]:
    """Slot by slot, to whoever lacks most: for one window, without equal remainders."""
    kept = [min(int(total * w), n) for w, n in zip(weights, sizes, strict=True)]
    while sum(kept) < total:
        lack = [total * w - k if k < n else -1e9 for w, k, n in zip(weights, kept, sizes, strict=True)]
        kept[lack.index(max(lack))] += 1
    return kept


@pytest.mark.parametrize("total", [1, 3, 10, 34, 102])
def test_slots_are_shared_out_by_the_largest_remainder(total: int) -> None:
    raw = torch.rand(10, dtype=torch.float64, generator=torch.Generator().manual_seed(total))
    weights, sizes = raw / raw.sum(), [51] * 10
    assert shared_out([weights], [sizes], total) == naive(weights.tolist(), sizes, total)


def test_every_window_and_no_piece_beyond_its_size() -> None:
    w = torch.tensor([0.97, 0.01]), torch.tensor([0.02])
    assert shared_out(w, [[5, 5], [5]], 3) == [2, 0, 1]
    assert shared_out(w, [[5, 5], [5]], 2) == [1, 0, 1]
    assert shared_out(w, [[5, 5], [5]], 9) == [5, 2, 2]
    assert shared_out(w, [[5, 5], [5]], 15) == [5, 5, 5]


def test_dast_weighs_perplexity_and_attention(make: Any, family: str) -> None:
    """Both by transformers' own eager attention over the same text."""
    method = make("dast", moved=0.0)
    ids, front = [*range(5, 110), *[70] * 60], method.front_ids
    model = copy.deepcopy(method.backbone.decoder)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[*front, *ids]]), output_attentions=True)
    lost = -out.logits[0].double().log_softmax(-1)[len(front) - 1 : -1][torch.arange(len(ids)), torch.tensor(ids)]
    paid = torch.stack([a[0, :, -1].mean(0) for a in out.attentions]).mean(0)[len(front) :].double()
    bounds = cuts(len(ids)).tolist()
    pieces = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    surprise, attention = method.needs(ids, cuts(len(ids)))
    torch.testing.assert_close(surprise, torch.stack([lost[p].mean().exp() for p in pieces]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(attention, torch.stack([paid[p].sum() for p in pieces]), atol=1e-6, rtol=1e-4)
    n = torch.tensor([p.stop - p.start for p in pieces])
    weights = (n * surprise / (n * surprise).sum() + attention / attention.sum()) / 2
    counts = naive(weights.tolist(), n.tolist(), 34)
    (ends,) = method.ends([ids], 4.9)
    found = [int(((ends > p.start) & (ends <= p.stop)).sum()) for p in pieces]
    assert len(ends) == 34 and found == counts and bool((ends.diff() > 0).all())
    assert counts != [9, 9, 8, 8]


def test_dast_shares_slots_among_windows(make: Any) -> None:
    """As many in all as counted window by window, but not where they would stand alone."""
    method = make("dast", moved=0.0)
    dull, varied = [70] * 200, [5 + (37 * i * i) % 250 for i in range(200)]
    (together,) = method.compress_contexts([[dull, varied]], 8.0)
    alone = method.compress([dull, varied], 8.0)
    assert [kv.anchors for kv in alone] == [25, 25]
    counts = [kv.anchors for kv in together]
    assert sum(counts) == 50 and counts[0] != counts[1]
    (surprise, _), (less, _) = (method.needs(ids, cuts(200)) for ids in (varied, dull))
    assert (counts[1] > counts[0]) is (float(surprise.sum()) > float(less.sum()))
