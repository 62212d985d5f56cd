"""Methods without training, against transformers: what they keep, what they read, on every family of models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.frozen import REPEAT, best
from sac_rag.compress.selectors import anchor_count
from sac_rag.compress.session import Session
from sac_rag.errors import AdapterError, MemoryInvalid
from sac_rag.families import FAMILIES
from tests.conftest import by_transformers, byte_tokenizer, grid, tiny_model

FROZEN = ("full-kv", "kvzip", "attention-matching")
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
        (whole,) = method.prefilled([TEXT])
        got = method.scores(TEXT, whole)
    torch.testing.assert_close(got, reference_scores(method, TEXT), atol=1e-5, rtol=1e-4)


def test_kvzip_keeps_the_best_of_all_heads(family):
    """Which slots stay follows from the reference's scores; what they hold, from reading the text."""
    method = made("kvzip", family)
    (kv,) = method.compress([TEXT], 3.0)
    (whole,) = made("full-kv", family).compress([TEXT], 1.0)
    scores = reference_scores(method, TEXT)
    layers, heads, _ = method.backbone.kv_shape
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
@pytest.mark.parametrize("name", FROZEN[1:])
def test_the_budget_counts_as_that_of_sac(name, ratio):
    method = made(name)
    for length in (1, 2, 9, 41, 120):
        ids = [5 + (7 * i) % 250 for i in range(length)]
        (kv,) = method.compress([ids], ratio)
        assert kv.anchors == anchor_count(length, ratio) and kv.source_len == length
        assert kv.counts.sum() == anchor_count(length, ratio) * kv.counts.numel()


@pytest.mark.parametrize("name", FROZEN[1:])
def test_at_1x_all_is_kept(family, name):
    a, b = (made(each, family).compress([TEXT], 1.0)[0] for each in (name, "full-kv"))
    assert a.bias is None and torch.equal(a.counts, b.counts)
    assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


@pytest.mark.parametrize("name", FROZEN[1:])
def test_what_is_kept_does_not_depend_on_the_batch(name):
    method = made(name)
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
    with pytest.raises(AdapterError, match="option even_heads of 'full-kv' is not known; it takes none"):
        made("full-kv", even_heads=True)
    with pytest.raises(AdapterError, match="even_heads of 'kvzip' is '3', not like False"):
        made("kvzip", even_heads=3)



# -- Attention Matching --------------------------------------------------------------------------------------


def attended_by_transformers(method, text):
    """Per layer queries (query heads, n, head_dim), keys and values (kv_heads, tokens, head_dim) of saying a text
    again: transformers' own layers in one pass over everything."""
    model = model_of(method)
    prefix = method.backbone.template(method.layout.prefix)
    asked = [*method.backbone.tokens(REPEAT), *method.backbone.template(method.layout.after)]
    ids, found, hooks = [*prefix, *text, *asked, *text], [], []
    for layer in model.model.layers:
        hooks.append(layer.self_attn.register_forward_pre_hook(lambda m, a, k: found.append((m, k)), with_kwargs=True))
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]), past_key_values=cache)
        out = []
        own, behind = slice(len(prefix), len(prefix) + len(text)), len(prefix) + len(text)
        for layer, (module, given) in enumerate(found):
            q = module.q_proj(given["hidden_states"]).view(len(ids), -1, method.backbone.head_dim)
            q = module.q_norm(q) if hasattr(module, "q_norm") else q
            cos, sin = (t[0, :, None] for t in given["position_embeddings"])
            left, right = q.chunk(2, dim=-1)
            q = q * cos + torch.cat((-right, left), -1) * sin
            held = cache.layers[layer]
            out.append((q[behind:].transpose(0, 1), held.keys[0, :, own], held.values[0, :, own]))
    for hook in hooks:
        hook.remove()
    return out


def test_the_queries_are_those_of_saying_the_text_again(family):
    method = made("attention-matching", family)
    with torch.inference_mode():
        (whole,) = method.prefilled([TEXT])
        queries, keys, values = method.attended(TEXT, whole)
    for layer, (q, k, v) in enumerate(attended_by_transformers(method, TEXT)):
        groups = k.shape[0]
        torch.testing.assert_close(queries[layer].view(groups, -1, *q.shape[1:]).flatten(0, 1), q, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(keys[layer], k, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(values[layer], v, atol=1e-4, rtol=1e-3)


def test_the_kept_keys_are_the_most_attended(family):
    """Root mean square of the attention within the passage, by queries of transformers; keys stay as they are."""
    method = made("attention-matching", family)
    (kv,), (whole,) = method.compress([TEXT], 3.0), made("full-kv", family).compress([TEXT], 1.0)
    count = anchor_count(len(TEXT), 3.0)
    runs = zip(*(t.split(kv.counts.flatten().tolist()) for t in (kv.positions, kv.keys)), strict=True)
    every = whole.keys.view(-1, len(TEXT), kv.keys.shape[1])
    at = 0
    for q, k, _ in attended_by_transformers(method, TEXT):
        share = q.shape[0] // k.shape[0]
        for head, keys in enumerate(k):
            seen = (q[head * share : (head + 1) * share].flatten(0, 1) @ keys.T * keys.shape[1] ** -0.5).softmax(-1)
            wanted = seen.square().mean(0).sqrt().argsort(descending=True)[:count].sort().values
            positions, stored = next(runs)
            assert positions.tolist() == wanted.tolist()
            torch.testing.assert_close(stored, every[at, wanted], atol=1e-6, rtol=1e-5)
            at += 1


def loss(memory, method, text, *, values=None, bias=None):
    """Sum over heads of the squared error of what they make of a passage, for the queries of saying it again."""
    sizes, found, at = memory.counts.flatten().tolist(), 0.0, 0
    parts = [t.split(sizes) for t in (memory.positions, memory.values if values is None else values)]
    biases = memory.bias if bias is None else bias
    biases = torch.zeros(len(memory.positions)) if biases is None else biases
    for q, k, v in attended_by_transformers(method, text):
        share = q.shape[0] // k.shape[0]
        for head in range(k.shape[0]):
            scores = q[head * share : (head + 1) * share].flatten(0, 1) @ k[head].T * k.shape[2] ** -0.5
            places, own = parts[0][at], parts[1][at]
            weight = (scores[:, places] + biases.split(sizes)[at]).softmax(-1)
            found += float((weight @ own - scores.softmax(-1) @ v[head]).square().sum())
            at += 1
    return found


def test_fitted_values_are_the_least_squares_of_a_ridge(family):
    """No small step away from them is better, and they are better by far than those that were there."""
    method = made("attention-matching", family, ridge=1e-6)
    (kv,), (whole,) = method.compress([TEXT], 3.0), made("full-kv", family).compress([TEXT], 1.0)
    at = kv.slots.runs() * len(TEXT) + kv.positions
    fitted, plain = loss(kv, method, TEXT), loss(kv, method, TEXT, values=whole.values[at])
    assert fitted < 0.8 * plain
    for seed in range(3):
        step = 1e-2 * torch.randn(kv.values.shape, generator=torch.Generator().manual_seed(seed))
        assert loss(kv, method, TEXT, values=kv.values + step) > fitted
        assert loss(kv, method, TEXT, values=kv.values - step) > fitted


def test_biases_restore_the_mass_of_what_is_left_out(family):
    """The attention that a passage draws from what stands around it: nearer to that of all its keys than without."""
    method = made("attention-matching", family)
    (kv,) = method.compress([TEXT], 3.0)
    sizes, at, errors = kv.counts.flatten().tolist(), 0, torch.zeros(2)
    for q, k, _ in attended_by_transformers(method, TEXT):
        share = q.shape[0] // k.shape[0]
        for head in range(k.shape[0]):
            scores = q[head * share : (head + 1) * share].flatten(0, 1) @ k[head].T * k.shape[2] ** -0.5
            own = scores[:, kv.positions.split(sizes)[at]]
            whole = scores.logsumexp(1)
            for i, biases in enumerate((0.0, kv.bias.split(sizes)[at])):
                errors[i] += (whole - (own + biases).logsumexp(1)).abs().mean()
            at += 1
    assert errors[1] < 0.5 * errors[0]
    assert float(kv.bias.abs().max()) <= 3.0 and torch.equal(kv.bias, kv.bias.half().float())
    assert made("attention-matching", family, bias=False).compress([TEXT], 3.0)[0].bias is None


def test_biases_are_read_wherever_a_memory_is_placed(family):
    """A memory with biases has the logits of transformers' forward with them in its mask; prior and prefix beside."""
    method = made("attention-matching", family)
    kvs = method.compress([TEXT[:20], TEXT[20:]], 2.0)
    placing = dataclasses.replace(method.placing, prior=0.3)
    memory = method.passages([[kv] for kv in kvs], placing=placing)
    with torch.inference_mode():
        read = Session(method.backbone, [[memory, QUESTION]]).logits[0]
    ahead = method.ahead_tokens
    wanted = torch.cat([torch.zeros(ahead), kvs[1].bias[: kvs[1].anchors] - 0.3, kvs[0].bias[: kvs[0].anchors]])
    torch.testing.assert_close(memory.layer_biases()[0][0], wanted)
    torch.testing.assert_close(read, biased_reference(method, memory, QUESTION), atol=3e-5, rtol=1e-4)


def biased_reference(method, memory, ids):
    """Next logits by transformers' eager attention, each layer and head with a mask of its own."""
    model = AutoModelForCausalLM.from_config(model_of(method).config, attn_implementation="eager").eval()
    model.load_state_dict(model_of(method).state_dict())
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(*grid(memory), strict=True)):
        cache.update(keys[None], values[None], layer)
    n, slots = len(ids), memory.slots
    later = torch.full((n, n), -torch.inf).triu(1)
    hooks = []
    for layer, module in enumerate(model.model.layers):
        biases = torch.stack(memory.layer_biases()[layer]).repeat_interleave(
            model.config.num_attention_heads // memory.counts.shape[1], dim=0
        )
        mask = torch.cat((biases[:, None].expand(-1, n, -1), later.expand(len(biases), -1, -1)), dim=2)[None]

        def put(m, given, named, mask=mask):
            return given, {**named, "attention_mask": mask}

        hooks.append(module.self_attn.register_forward_pre_hook(put, with_kwargs=True))
    with torch.inference_mode():
        start = memory.next_position
        places = torch.arange(start, start + n)[None]
        out = model(input_ids=torch.tensor([ids]), position_ids=places, past_key_values=cache)
    assert slots == cache.layers[0].keys.shape[2] - n
    return out.logits[0, -1]
