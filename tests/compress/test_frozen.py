"""Methods without training, against transformers: what they keep, what they read, on every family of models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.frozen import REPEAT, best
from sac_rag.compress.session import Session
from sac_rag.errors import AdapterError, MemoryInvalid
from sac_rag.families import FAMILIES
from tests.conftest import by_transformers, byte_tokenizer, grid, tiny_model

FROZEN = ("full-kv", "kvzip")
LAYOUTS = {"prefix": PromptLayout(prefix="<|im_start|>sys\n"), "none": PromptLayout(prefix="")}
TEXT = [5 + (17 * i * i + 3 * i) % 250 for i in range(41)]
QUESTION = [40, 41, 42]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def made(name, family="llama", layout="prefix", **options):
    card = Card("tiny", "0", name, (), options=options, layout=LAYOUTS[layout].to_mapping())
    return adapter.build(tiny_model(family), byte_tokenizer(), card)


def model_of(method):
    return method.backbone.decoder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_memory_is_read_as_its_text(family, layout):
    """Law 1 for methods without training: full KV at its place has the logits of the prompt as plain text."""
    method = made("full-kv", family, layout)
    (kv,) = method.compress([TEXT], 1.0)
    prompt = [*method.backbone.template(method.layout.prefix), *TEXT, *QUESTION]
    with torch.inference_mode():
        read = Session(method.backbone, [[method.memory([kv]), QUESTION]])
        want = model_of(method)(input_ids=torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(read.logits[0], want, atol=2e-5, rtol=1e-4)
    assert read.positions == [len(prompt)] and kv.anchors == kv.source_len == len(TEXT)


def test_keys_are_stored_before_rope_and_rotated_where_they_are_placed(family):
    """The second of two passages: keys and values of reading it alone behind the prefix, keys at its place."""
    method = made("full-kv", family)
    first, second = method.compress([TEXT[:20], TEXT[20:]], 1.0)
    memory = method.memory([first, second])
    prefix = method.backbone.template(method.layout.prefix)
    cache = DynamicCache()
    with torch.inference_mode():
        model_of(method)(input_ids=torch.tensor([prefix]), past_key_values=cache)
        ahead = len(prefix) + 20
        model_of(method)(
            input_ids=torch.tensor([TEXT[20:]]),
            # Relative places alone decide: behind the prefix is where it was written.
            position_ids=torch.arange(len(prefix), len(prefix) + 21)[None],
            past_key_values=cache,
        )
    keys, values = grid(memory)
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        torch.testing.assert_close(v[:, ahead:], cache.layers[layer].values[0, :, len(prefix) :], atol=1e-5, rtol=1e-4)
        written = cache.layers[layer].keys[0, :, len(prefix) :]
        moved = method.backbone.rotate_like_model(written, torch.full((21,), 20))
        scaling = method.backbone.rope_scaling
        torch.testing.assert_close(k[:, ahead:], moved / scaling, atol=1e-5, rtol=1e-4)
    got = by_transformers(method.backbone, memory, QUESTION)
    read = Session(method.backbone, [[memory, QUESTION]]).logits[0]
    torch.testing.assert_close(read, got, atol=2e-5, rtol=1e-4)


def reference_scores(method, text):
    """KVzip's scores by transformers' own attention weights (eager) in one pass over everything, no memory of ours."""
    model = AutoModelForCausalLM.from_config(model_of(method).config, attn_implementation="eager").eval()
    model.load_state_dict(model_of(method).state_dict())
    prefix = method.backbone.template(method.layout.prefix)
    asked = [*method.backbone.tokens(REPEAT), *method.backbone.template(method.layout.after)]
    ids = [*prefix, *text, *asked, *text]
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    first, last = len(prefix), len(prefix) + len(text)
    layers, heads, _ = method.backbone.kv_shape
    # (query heads, queries, slots): the largest over queries behind the passage and over the query heads of a group
    seen = torch.stack([a[0, :, last:, first:last].amax(1) for a in found])
    return seen.view(layers, heads, -1, len(text)).amax(2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kvzip_scores_are_those_of_saying_the_text_again(family, layout):
    method = made("kvzip", family, layout)
    with torch.inference_mode():
        (whole,) = method.read([TEXT])
        got = method.scores(TEXT, whole)
    torch.testing.assert_close(got, reference_scores(method, TEXT), atol=1e-5, rtol=1e-4)


def test_kvzip_keeps_the_best_of_all_heads(family):
    """Which slots stay follows from the reference's scores; what they hold, from reading the text."""
    method = made("kvzip", family)
    (kv,) = method.compress([TEXT], 3.0)
    (whole,) = made("full-kv", family).compress([TEXT], 1.0)
    scores = reference_scores(method, TEXT)
    layers, heads, dim = method.backbone.kv_shape
    total = round(len(TEXT) / 3) * layers * heads
    wanted = sorted(scores.flatten().argsort(descending=True)[:total].tolist())
    places = (kv.slots.runs() * len(TEXT) + kv.positions).tolist()
    assert places == wanted and int(kv.counts.sum()) == total
    assert len(set(kv.counts.flatten().tolist())) > 1, "heads keep different numbers"
    torch.testing.assert_close(kv.keys, whole.keys[wanted], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(kv.values, whole.values[wanted], atol=1e-6, rtol=1e-5)
    even = made("kvzip", family, even_heads=True)
    (level,) = even.compress([TEXT], 3.0)
    assert set(level.counts.flatten().tolist()) == {round(len(TEXT) / 3)}
    for run, part in enumerate(level.positions.view(layers * heads, -1)):
        top = scores.flatten(0, 1)[run].argsort(descending=True)[: part.numel()]
        assert part.tolist() == sorted(top.tolist())


@pytest.mark.parametrize("ratio", (1.0, 2.0, 3.0, 5.0, 15.0, 600.0))
def test_the_budget_counts_as_that_of_sac(ratio):
    from sac_rag.compress.selectors import anchor_count

    method = made("kvzip")
    for length in (1, 2, 9, 41, 120):
        ids = [5 + (7 * i) % 250 for i in range(length)]
        (kv,) = method.compress([ids], ratio)
        assert kv.anchors == anchor_count(length, ratio) and kv.source_len == length
        assert kv.counts.sum() == anchor_count(length, ratio) * kv.counts.numel()


def test_at_1x_kvzip_is_full_kv(family):
    a, b = (made(name, family).compress([TEXT], 1.0)[0] for name in ("kvzip", "full-kv"))
    assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) and torch.equal(a.counts, b.counts)


def test_what_is_kept_does_not_depend_on_the_batch():
    method = made("kvzip")
    chunks = [TEXT, TEXT[:7], [9] * 30, TEXT[::-1]]
    for together, chunk in zip(method.compress(chunks, 3.0), chunks, strict=True):
        (alone,) = method.compress([chunk], 3.0, batch_tokens=1)
        for field in ("keys", "values", "positions", "counts"):
            assert torch.equal(getattr(together, field), getattr(alone, field))


def test_best():
    scores = torch.tensor([[[0.9, 0.8, 0.8], [0.1, 0.85, 0.2]]])
    assert best(scores, 1, even=True).int().tolist() == [[[1, 0, 0], [0, 1, 0]]]
    assert best(scores, 2, even=False).int().tolist() == [[[1, 1, 1], [0, 1, 0]]]
    ties = torch.zeros(1, 1, 4)
    assert best(ties, 2, even=False).int().tolist() == [[[1, 1, 0, 0]]]


@pytest.mark.parametrize("name", FROZEN)
def test_an_empty_passage_is_refused(name):
    with pytest.raises(MemoryInvalid, match="empty passage"):
        made(name).compress([[]], 1.0)


def test_options():
    assert made("kvzip").identity() == {"prefix": "<|im_start|>sys\n"}
    assert made("kvzip", even_heads=True).identity() == {"prefix": "<|im_start|>sys\n", "even_heads": True}
    with pytest.raises(AdapterError, match="does not take the options"):
        made("full-kv", even_heads=True)
    with pytest.raises(AdapterError, match="even_heads of 'kvzip' is '3', not like False"):
        made("kvzip", even_heads=3)


def test_to_moves_and_the_memory_holds():
    (kv,) = made("kvzip").compress([TEXT], 2.0)
    assert isinstance(kv.to(dtype=torch.bfloat16).validate(), AnchorKV)
    assert dataclasses.replace(kv).validate() is not None
