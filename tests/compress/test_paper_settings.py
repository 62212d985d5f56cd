"""What the published code has beyond the paper: header, [LM], anchors at a stride, a row of embeddings each, LoRA.

The oracle is transformers' own forward with the positions of the published code, which count from 1.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from sac_rag.compress.backbone import Backbone, LoraSpec
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods import METHODS
from sac_rag.compress.selectors import anchor_count, stride, uniform
from sac_rag.compress.session import Session
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.train.recipes import RECIPES
from tests.conftest import byte_tokenizer, grid, tiny_model

PAPER = {"lm_token": True, "header": "{bos}### Context:\n"}
SAC = {**PAPER, "selector": "stride", "anchor_rows": True, "learn_prefix": False}
TEXT, ASKED = list(range(5, 60)), [7, 8, 9]
RATIO = 5.0


@pytest.fixture(params=["llama", "qwen3"])
def family(request: Any) -> str:
    return request.param


def made(name: str, family: str, prefix: str = "", **options: Any) -> Any:
    spec = LoraSpec(4, 8.0, ("q_proj", "v_proj"), whole=METHODS.load(name).adapts == "whole", start="rank")
    method = METHODS.load(name)(Backbone(tiny_model(family), byte_tokenizer(), spec), PromptLayout(prefix), **options)
    with torch.no_grad():
        for i, p in enumerate(method.parameters().values()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return method


def encoded(method: Any, rows: torch.Tensor, positions: list[int], *, causal: bool) -> Any:
    n = len(rows)
    hidden = torch.full((n, n), torch.finfo(rows.dtype).min)
    mask = hidden.triu(1) if causal else torch.zeros(n, n)
    with torch.no_grad():
        return method.backbone.encoder(
            inputs_embeds=rows[None], position_ids=torch.tensor([positions]), attention_mask=mask[None, None],
            use_cache=True, output_hidden_states=True,
        )  # fmt: skip


def asked_behind(method: Any, out: Any, slots: list[int], lm_at: int, asked_from: int) -> torch.Tensor:
    """Next logits of the frozen decoder: cached slots of an encoder pass, [LM], the question."""
    cache = DynamicCache()
    for index, layer in enumerate(out.past_key_values.layers):
        cache.update(layer.keys[:, :, slots], layer.values[:, :, slots], index)
    table = method.backbone.decoder.get_input_embeddings()
    rows = torch.cat((method.lm[None], table(torch.tensor(ASKED))))
    places = [lm_at, *range(asked_from, asked_from + len(ASKED))]
    n, front = len(rows), len(slots)
    mask = torch.full((n, front + n), torch.finfo(rows.dtype).min).triu(front + 1)
    with torch.no_grad():
        out = method.backbone.decoder(
            inputs_embeds=rows[None], position_ids=torch.tensor([places]), attention_mask=mask[None, None],
            past_key_values=cache,
        )  # fmt: skip
    return out.logits[0, -1]


def answered(method: Any, memory: Any) -> torch.Tensor:
    with torch.inference_mode():
        return Session(method.backbone, [[memory, ASKED]]).logits[0]


def test_sac_reads_as_its_published_code(family: str) -> None:
    """BOS, header and text count; anchors at a stride, each with its row; [LM] on |C|, the question from |C| + 1."""
    method = made("sac", family, **SAC)
    table = method.backbone.decoder.get_input_embeddings()
    ids = [1, *method.backbone.template("### Context:\n"), *TEXT]
    assert list(method.header_ids) == ids[: -len(TEXT)] and ids[0] == method.backbone.tokenizer.bos_token_id
    anchors = list(range(2, len(ids), 5))[: round(len(ids) / 5)]
    rows = table(torch.tensor(ids)).detach().clone()
    for slot, place in enumerate(anchors):
        rows[place] += method.anchor_embedding.detach()[slot]
    out = encoded(method, rows, list(range(1, len(ids) + 1)), causal=False)
    want = asked_behind(method, out, anchors, len(ids), len(ids) + 1)
    (kv,) = method.compress([TEXT], RATIO)
    assert (kv.anchors, kv.source_len) == (len(anchors) + 1, len(ids) + 1)
    assert kv.slots.anchors.tolist() == [0, *(place + 1 for place in anchors)]
    torch.testing.assert_close(answered(method, method.memory([kv])), want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["epl", "500x", "icae"])
def test_rivals_end_with_lm_as_well(name: str, family: str) -> None:
    """Among the source's positions as SAC (EPL), or as the next of all (500xCompressor, ICAE)."""
    method = made(name, family, **PAPER)
    table = method.backbone.decoder.get_input_embeddings()
    ids = [1, *method.backbone.template("### Context:\n"), *TEXT]
    length, count = len(ids), round(len(ids) / 5)
    rows = torch.cat((table(torch.tensor(ids)), method.tokens[:count])).detach()
    slots = list(range(length, length + count))
    places = list(range(length + count))
    if name == "epl":
        places = [1 + p for p in [*range(length), *uniform(length, count).tolist()]]
    out = encoded(method, rows, places, causal=True)
    (kv,) = method.compress([TEXT], RATIO)
    assert kv.anchors == count + 1
    if name == "icae":
        with torch.no_grad():
            parts = [out.hidden_states[-1][0, slots], method.lm[None], table(torch.tensor(ASKED))]
            want = method.backbone.decoder(inputs_embeds=torch.cat(parts)[None]).logits[0, -1]
    elif name == "epl":
        want = asked_behind(method, out, slots, length, length + 1)
    else:
        want = asked_behind(method, out, slots, count, count + 1)
    torch.testing.assert_close(answered(method, method.memory([kv])), want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["sac", "epl", "500x", "icae"])
def test_header_and_lm_stand_once_in_a_context(name: str) -> None:
    """The first sub-context is shorter by the header; one [LM] follows the last, whatever else is in the batch."""
    method = made(name, "llama", prefix="<|im_start|>sys\n", **(SAC if name == "sac" else PAPER))
    header = len(method.header_ids)
    pieces = method.pieces(list(range(3, 253)) * 3)
    assert list(map(len, pieces)) == [510 - header, 240 + header]
    contexts = [pieces, [TEXT]]
    (parts, alone), (again,) = method.compress_contexts(contexts, 15.0), method.compress_contexts([pieces], 15.0)
    assert sum(kv.anchors for kv in parts) == anchor_count(510, 15) + anchor_count(240 + header, 15) + 1
    assert sum(kv.source_len for kv in parts) == header + 750 + 1 and len(alone) == 1
    for kv, other in zip(parts, again, strict=True):
        assert torch.equal(kv.positions, other.positions)
        torch.testing.assert_close(kv.keys, other.keys, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(kv.values, other.values, atol=2e-5, rtol=1e-4)


def test_lm_of_several_chunks_stands_on_the_last_token(family: str) -> None:
    """Its slot is in the first chunk, its key on |C| of the whole context: as the decoder reads it behind them all."""
    bare = {**SAC, "header": ""}
    method, plain = made("sac", family, **bare), made("sac", family, **{**bare, "lm_token": False})
    chunks = [TEXT, TEXT[::-1]]
    with torch.no_grad():
        for name, p in plain.parameters().items():
            p.copy_(method.parameters()[name])
    (parts,), (without,) = (m.compress_contexts([chunks], RATIO) for m in (method, plain))
    memory = plain.memory(without)
    cache = DynamicCache()
    for index, (keys, values) in enumerate(zip(*grid(memory), strict=True)):
        cache.update(keys[None], values[None], index)
    table = method.backbone.decoder.get_input_embeddings()
    last = len(chunks) * len(TEXT) - 1
    with torch.no_grad():
        want = method.backbone.decoder(
            inputs_embeds=torch.cat((method.lm[None], table(torch.tensor(ASKED))))[None],
            position_ids=torch.tensor([[last, *range(last + 1, last + 1 + len(ASKED))]]),
            past_key_values=cache,
        ).logits[0, -1]
    assert [kv.anchors for kv in parts] == [12, 11] and [kv.anchors for kv in without] == [11, 11]
    torch.testing.assert_close(answered(method, method.memory(parts)), want, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [2, 5, 15, 51])
def test_a_stride_has_the_counts_of_equal_chunks(ratio: int) -> None:
    """At 510 tokens their places as well; in shorter passages up to 2, 7 and 24 tokens beside them."""
    far = 0
    for length in range(1, 511):
        places, equal = stride(length, ratio), uniform(length, anchor_count(length, ratio))
        assert len(places) == len(equal) and bool((places.diff() > 0).all()) and int(places[0]) >= 0
        assert int(places[-1]) < length
        if length >= ratio:
            assert places.tolist() == [(ratio - 1) // 2 + ratio * i for i in range(len(places))]
            far = max(far, int((places - equal).abs().max()))
    if ratio > 2:
        assert torch.equal(stride(510, ratio), uniform(510, 510 // ratio))
        assert far == {5: 2, 15: 7, 51: 24}[ratio]


def test_lora_starts_as_in_the_published_code() -> None:
    """Uniform within 1 / sqrt(rank), 0.088 at 128; peft has 1 / sqrt(inputs)."""
    for start, bound in (("rank", 128**-0.5), ("inputs", 48**-0.5)):
        spec = LoraSpec(128, 256.0, ("q_proj", "v_proj"), start=start)
        named = dict(Backbone(tiny_model(), byte_tokenizer(), spec).trainable())
        a = torch.cat([p.detach().flatten() for n, p in named.items() if "lora_A" in n])
        assert 0.99 * bound < float(a.abs().max()) <= bound
        assert not any(bool(p.any()) for n, p in named.items() if "lora_B" in n)
        assert ("start" in spec.to_mapping()) is (start == "rank")
    with pytest.raises(AdapterError, match="LoRA start is 'zero'; use inputs or rank"):
        LoraSpec(start="zero")


def test_rows_of_anchors_start_small() -> None:
    method = METHODS.load("sac")(Backbone(tiny_model(), byte_tokenizer()), PromptLayout(""), anchor_rows=True)
    rows = method.anchor_embedding.detach()
    assert rows.shape == (510, 48) and float(rows.std()) == pytest.approx(0.02, rel=0.02)


def test_a_header_leaves_room_for_text() -> None:
    with pytest.raises(ConfigError, match="header has 600 tokens; a chunk has 510 with it"):
        METHODS.load("epl")(Backbone(tiny_model(), byte_tokenizer()), PromptLayout(""), header="x" * 600)


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("paper-")])
def test_recipes_have_the_settings_of_the_paper(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.lora == LoraSpec(128, 256.0, ("q_proj", "v_proj"), name == "paper-full-ft", "rank")
    assert recipe.layout == {"prefix": "", "before": "\n### Question:\n", "after": "\n### Answer:\n"}
    kinds = [stage.config.objective for stage in recipe.stages]
    lm = {"sac": ["lm", "qa"], "full-ft": ["qa"]}.get(recipe.method, ["ae+lm", "qa"])
    assert kinds == lm, "the paper's SAC has LM alone, whatever its example configuration says"
    for stage in recipe.stages:
        c = stage.config
        assert (c.steps, c.accumulate, c.warmup, c.clip, c.weight_decay) == (20000, 16, 300, 2.0, 0.1)
        assert c.betas == (0.9, 0.95) and c.rate(19999) == c.rate(300) == c.learning_rate
        assert c.learning_rate == (5e-5 if c.objective == "qa" else 1e-4) and len(c.ratios) == 1


def test_rivals_differ_in_their_method_alone() -> None:
    rivals = {n.removeprefix("rival-"): r for n, r in RECIPES.items() if n.startswith("rival-")}
    assert set(rivals) == {"sac", "icae", "500x", "epl", "beacon", "dast", "full-ft"}
    for name, recipe in rivals.items():
        (stage,), (base,) = recipe.stages, rivals["sac"].stages
        assert recipe.method == name and (recipe.lora is None) is (METHODS.load(name).adapts == "nothing")
        assert stage.config.steps == 300 and not recipe.options
        if name == "full-ft":
            assert stage.config == base.config.changed(ratios=(1.0,), ratio_weights=(1.0,))
        else:
            assert stage == base and stage.config.ratios == (5.0, 15.0, 51.0)
