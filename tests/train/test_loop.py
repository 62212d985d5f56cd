"""Training: exact resume, honest objectives, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import os
import random

import pytest
import torch
import torch.nn.functional as F

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.backbone import LORA_TARGETS, Backbone, LoraSpec
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.full_ft import FullFt
from sac_rag.compress.placing import Placing
from sac_rag.compress.session import Session
from sac_rag.errors import AdapterError, ConfigError, TrainingError
from sac_rag.records import NO_ANSWER
from sac_rag.train import loop
from sac_rag.train.batch import Row, asking
from sac_rag.train.data import Mixture, Source, TokenisedContext
from sac_rag.train.loop import train
from sac_rag.train.objectives import OBJECTIVES, configured, questions
from sac_rag.train.objectives.base import loss_of
from sac_rag.train.objectives.questions import GAP, QuestionSettings, question_batch
from sac_rag.train.objectives.texts import CUE, QUOTED, continuation_batch
from tests.conftest import by_transformers, byte_tokenizer, grid, tiny_llama

CARD = Card(base="tiny", base_fingerprint="0", method="sac", ratios=(5.0,))
NAMES = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal"]


@pytest.fixture
def data(tmp_path):
    rng = random.Random(0)
    rows = []
    for i in range(40):
        who, where = rng.choice(NAMES), rng.choice(["Rome", "Oslo", "Lima", "Cork"])
        qas = [
            {"qid": f"{i}a", "question": "Who?", "answers": [who]},
            {"qid": f"{i}b", "question": "Where?", "answers": [where]},
        ]
        rows.append({"context": f"In the year {i} {who} went to {where} by boat.", "qas": qas})
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


SAME = {
    **{"steps": 6, "step_tokens": 150, "accumulate": 2, "ratios": (2.0, 5.0), "ratio_weights": (0.5, 0.5)},
    **{"warmup": 2, "learning_rate": 5e-3, "first_context": 64, "max_context": 80},
}
CONFIG = configured(**SAME)


def settings_of(**settings):
    """Settings of questions, alone and without recall but for what is named."""
    return QuestionSettings(**{"recall_weight": 0.0, "distractor_share": 0.0, **settings})


def drawn(method, mixed, config, step=0):
    return OBJECTIVES.load(config.objective)(config, method).draw(mixed, step, 0)


def mixture(method, data):
    return Mixture([Source(data, method.backbone.tokens, seed=1)], seed=1)


def weights(method):
    return {n: p.detach().clone() for n, p in method.parameters().items()}


@pytest.mark.parametrize("objective", ["qa", "lm", "ae"])
def test_a_resumed_run_is_the_undisturbed_run_bit_for_bit(make_sac, data, tmp_path, objective):
    config = configured(objective, **SAME)
    whole, broken = make_sac(), None
    if objective != "qa":
        plain = tmp_path / "plain.txt"
        plain.write_text("It was a dark and stormy night; the rain fell in torrents. " * 20)
        data = plain
    train(whole, mixture(whole, data), config, CARD, tmp_path / "whole")
    for steps in (2, 3, 1):
        broken = make_sac()
        left = iter([False] * (steps - 1) + [True])
        train(broken, mixture(broken, data), config, CARD, tmp_path / "broken", stop=left.__next__)
    for name, want in weights(whole).items():
        assert torch.equal(want, weights(broken)[name]), name
    before = (tmp_path / "broken/card.json").read_text()
    train(make_sac(), mixture(whole, data), config, CARD, tmp_path / "broken")
    assert (tmp_path / "broken/card.json").read_text() == before, "a finished run is not run again"
    assert (tmp_path / "whole/adapter.safetensors").read_bytes() == (
        tmp_path / "broken/adapter.safetensors"
    ).read_bytes()


def test_an_adapter_that_a_kill_left_behind_is_written_by_the_next_run(make_sac, data, tmp_path, monkeypatch):
    train(whole := make_sac(), mixture(whole, data), CONFIG, CARD, tmp_path / "whole")
    left = iter([False, True])
    train(method := make_sac(), mixture(method, data), CONFIG, CARD, tmp_path / "a", stop=left.__next__)
    with monkeypatch.context() as patch:
        patch.setattr(loop.adapter, "save", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            train(method := make_sac(), mixture(method, data), CONFIG, CARD, tmp_path / "a")
    assert Card.read(tmp_path / "a").training["stages"][-1]["steps_done"] == 2
    card = train(method := make_sac(), mixture(method, data), CONFIG, CARD, tmp_path / "a")
    assert card.training["stages"][-1]["steps_done"] == CONFIG.steps
    assert (tmp_path / "a/adapter.safetensors").read_bytes() == (tmp_path / "whole/adapter.safetensors").read_bytes()


def test_what_it_began_from_has_its_share_in_what_it_leaves(make_sac, data, tmp_path):
    plain, shared = make_sac(trained=True), make_sac(trained=True)
    before, config = weights(plain), CONFIG.changed(start_share=0.25)
    train(plain, mixture(plain, data), CONFIG, CARD, tmp_path / "plain")
    left = iter([False, True])
    train(shared, mixture(shared, data), config, CARD, tmp_path / "shared", stop=left.__next__)
    shared = make_sac(trained=True)  # a run that goes on begins from the same adapter
    train(shared, mixture(shared, data), config, CARD, tmp_path / "shared")
    found = weights(shared)
    for name, after in weights(plain).items():
        torch.testing.assert_close(found[name], 0.75 * after + 0.25 * before[name])
    assert any(not torch.equal(found[n], before[n]) for n in found)
    for bad in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="start_share is"):
            CONFIG.changed(start_share=bad)


def test_it_learns(make_sac, data, tmp_path):
    method, losses = make_sac(), []
    config = CONFIG.changed(steps=30, recall_weight=0.0, distractor_share=0.0)
    train(method, mixture(method, data), config, CARD, tmp_path, listen=lambda p: losses.append(p.loss))
    assert losses[-1] < losses[0] - 0.3


def test_an_adapter_comes_back_as_it_was_saved(make_sac, data, tmp_path):
    method = make_sac(trained=True)
    lora = {"rank": 4, "alpha": 8.0, "targets": list(LORA_TARGETS)}
    card = dataclasses.replace(CARD, lora=lora, layout=method.layout.to_mapping())
    written = adapter.save(method, card, tmp_path / "a")
    with (tmp_path / "a/adapter.safetensors").open("ab") as handle:
        size = handle.tell()
        handle.write(bytes(4 * sum(p.numel() for p in method.parameters().values()) + 2**20))
    with pytest.raises(AdapterError, match="by its card it has at most"):
        adapter.load(tmp_path / "a", tiny_llama(), byte_tokenizer())
    os.truncate(tmp_path / "a/adapter.safetensors", size)
    again, read = adapter.load(tmp_path / "a", tiny_llama(), byte_tokenizer())
    assert read == written
    for name, p in method.parameters().items():
        assert torch.equal(p.to(torch.bfloat16), again.parameters()[name].to(torch.bfloat16)), name


def test_loss_is_on_answer_and_end_only(make_sac):
    method = make_sac()
    b = method.backbone
    context = TokenisedContext(b.tokens("Ada went to Rome."), ((b.tokens("Who?"), b.tokens("Ada")),))
    batch = question_batch([context], [2.0], method, settings_of(), random.Random(0))
    (row,) = batch.readings[0]
    tokens, first, weight = row.ids, row.first, row.weight
    assert b.tokenizer.decode(tokens[first:]) == "Ada<|im_end|>" and weight == 1.0
    assert b.tokenizer.decode(tokens[:first]) == "\nQuestion: Who?<|im_end|>\n<|im_start|>assistant\n"


def test_loss_equals_a_slow_oracle(make_sac):
    """Through transformers' own forward, one question at a time, with a cache built by hand."""
    method = make_sac(trained=True)
    b = method.backbone
    pairs = ((b.tokens("Who?"), b.tokens("Ada")), (b.tokens("Where to?"), b.tokens("Rome")))
    context = TokenisedContext(b.tokens("Ada went to Rome by boat with Bo."), pairs)
    batch = question_batch([context], [3.0], method, settings_of(), random.Random(0))
    loss, _ = loss_of(batch, method)
    (kv,) = method.compress([context.ids], 3.0)
    nats = []
    for tokens, first, *_ in batch.readings[0]:
        for i in range(first, len(tokens)):
            logits = by_transformers(b, method.memory([kv]), tokens[:i])
            nats.append(F.cross_entropy(logits, torch.tensor(tokens[i])))
    assert loss.item() == pytest.approx(float(torch.stack(nats).mean()), abs=1e-4)


def some_contexts(b, n=6):
    pairs = ((b.tokens("Who?"), b.tokens("Ada")), (b.tokens("Where to?"), b.tokens("Rome")))
    return [TokenisedContext(b.tokens(f"Ada went to Rome by boat {i}."), pairs) for i in range(n)]


def test_a_missing_passage_is_answered_so(make_sac, monkeypatch):
    method = make_sac()
    b = method.backbone
    monkeypatch.setattr(questions, "RECALLED", 4)
    shares = settings_of(recall_weight=1.0, mismatch_share=1.0)
    batch = question_batch(some_contexts(b), [3.0] * 6, method, shares, random.Random(0))
    assert all(i not in front and front for i, front in enumerate(batch.front))
    for (row,) in batch.readings:
        tokens, first = row.ids, row.first
        assert row.weight == 1.0 and row.pair is None, "a teacher has no say in what it was not taught"
        assert b.tokenizer.decode(tokens[first:]) == NO_ANSWER + method.layout.end
    alone = question_batch(some_contexts(b, 1), [3.0], method, shares, random.Random(0))
    assert alone.front == [[0]], "with nothing to take its place a passage stays"


def test_distractors_stand_among_the_passages(make_sac):
    method = make_sac()
    shares = settings_of(distractor_share=1.0)
    batch = question_batch(some_contexts(method.backbone), [3.0] * 6, method, shares, random.Random(0))
    for i, front in enumerate(batch.front):
        assert i in front and 1 < len(front) <= 1 + shares.max_distractors and len(set(front)) == len(front)
    assert len({front.index(i) for i, front in enumerate(batch.front)}) > 1


def test_other_prompts_carry_the_same_answers_and_loss_reaches_the_encoder(make_sac):
    method = make_sac(layout=PromptLayout())
    b = method.backbone
    other = PromptLayout("<|im_start|>user\nRead:", "\nNow ", "<|im_end|>\n<|im_start|>assistant\n")
    settings = settings_of(prompt_share=1.0)
    batch = question_batch(some_contexts(b), [3.0] * 6, method, settings, random.Random(0), (other,))
    assert batch.layouts == [other] * 6
    tokens, first, *_ = batch.readings[0][0]
    assert b.tokenizer.decode(tokens[:first]).startswith("\nNow Wh")
    assert b.tokenizer.decode(tokens[first:]) in ("Ada<|im_end|>", "Rome<|im_end|>")
    loss, _ = loss_of(batch, method)
    loss.backward()
    assert method.parameters()["anchor_embedding"].grad.abs().sum() > 0
    prefix = [p.grad for n, p in method.parameters().items() if n.startswith("prefix")]
    assert all(g.any() for g in prefix), "the adapter's own prefix stands in front of the memory in every prompt"


@pytest.mark.parametrize("named", [False, True], ids=["own prompt", "another"])
def test_questions_stand_behind_sentences_of_what_is_in_memory(make_sac, named):
    """Of the passages by their ranks, in front of the question as answering puts them; what is recalled has none."""
    method = make_sac(layout=PromptLayout())
    b = method.backbone
    other = PromptLayout("<|im_start|>user\nRead:", "\nNow ", "<|im_end|>\n<|im_start|>assistant\n")
    pairs = ((b.tokens("Who went by boat?"), b.tokens("Ada")),)
    texts = [f"House {i} is green. Ada went to Rome by boat {i}. It rained." for i in range(4)]
    contexts = [TokenisedContext(b.tokens(text), pairs) for text in texts]
    settings = settings_of(
        evidence_share=1.0, most_evidence=2, distractor_share=1.0, prompt_share=float(named), recall_weight=1.0
    )
    batch = question_batch(contexts, [3.0] * 4, method, settings, random.Random(0), (other,) if named else ())
    counts = set()
    for rows in batch.readings:
        read = b.tokenizer.decode(rows[0].ids[: rows[0].first])
        gap, evidence = read.partition("\nNow " if named else "\nQuestion: ")[0].split("\n\n")
        assert gap == "" and all(line.startswith("Ada went to Rome by boat") for line in evidence.split("\n"))
        counts.add(evidence.count("\n") + 1)
        assert all("\n\n" not in b.tokenizer.decode(row.ids[: row.first]) for row in rows[1:] if row.recall)
    assert counts == {1, 2}


def test_continuation_scores_the_second_half_behind_the_first(make_sac):
    batch = continuation_batch([TokenisedContext(list(range(20)), ())], [5.0], make_sac())
    assert batch.chunks == [list(range(10))] and batch.readings == [[Row(list(range(10, 20)), 1)]]


@pytest.mark.parametrize("length", [17, 40, 200])
def test_a_text_to_be_quoted_is_asked_for_piece_by_piece_by_their_first_tokens(make_sac, length):
    method, ids, step = make_sac(), [3 + i % 250 for i in range(length)], CUE + QUOTED
    ask = asking(method.backbone, method.layout)
    shares = settings_of(recall_weight=0.25, quote_weight=0.125, distractor_share=1.0)
    for seed in range(5):
        contexts = [TokenisedContext(ids, (), quoted=True), *some_contexts(method.backbone, 2)]
        batch = question_batch(contexts, [5.0] * 3, method, shares, random.Random(seed))
        rows = batch.readings[0]
        at = next(n for n in range(length) if rows[0].ids[: rows[0].first] == ask(ids[n : n + CUE]))
        assert [t for row in rows for t in row.ids[row.first :]] == [
            t for n, t in enumerate(ids[at : at + len(rows) * step]) if n % step >= CUE
        ]
        assert at < step and length - at - len(rows) * step < 2 * CUE, "nothing much is left out"
        assert all((row.weight, row.recall, row.pair) == (0.125, True, None) for row in rows)
        assert batch.front[0] == [0] and len(batch.front[1]) > 1, "quoted from a memory of its own"


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0])
def test_long_answers_weigh_more_than_short_ones_as_far_as_is_wanted(make_sac, norm):
    method = make_sac()
    b = method.backbone
    asked = (("Who?", "Ada"), ("Who else?", "Ada and her three brothers"))
    pairs = tuple((b.tokens(q), b.tokens(a)) for q, a in asked)
    context = TokenisedContext(b.tokens("Ada went to Rome by boat."), pairs)
    shares = settings_of(length_norm=norm)
    batch = question_batch([context], [2.0], method, shares, random.Random(0))
    counts = [len(row.ids) - row.first for row in batch.readings[0]]
    sums = [n * row.weight for n, row in zip(counts, batch.readings[0], strict=True)]
    assert max(counts) > 3 * min(counts)
    assert max(sums) / min(sums) == pytest.approx((max(counts) / min(counts)) ** (1 - norm))
    for bad in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=f"length_norm is {bad:g}; it must lie in 0..1"):
            CONFIG.changed(length_norm=bad)


def test_full_ft_equals_reading_the_whole_text_with_lora():
    spec = LoraSpec(4, 8.0, LORA_TARGETS, whole=True)
    b = Backbone(tiny_llama(), byte_tokenizer(), spec)
    with torch.no_grad():
        for _, p in b.trainable():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    method = FullFt(b, PromptLayout())
    text, tail = b.tokens("Ada went to Rome by boat."), b.tokens("Who went?")
    (kv,) = method.compress([text], 1.0)
    got = Session(b, [[method.memory([kv]), tail]], use_lora=True).logits[0]
    with torch.no_grad():
        whole = [*b.template(PromptLayout().prefix), *text, *tail]
        want = b.encoder(torch.tensor([whole])).logits[0, -1]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_another_data_set_or_shape_is_refused_on_resume(make_sac, data, tmp_path):
    method = make_sac()
    train(method, mixture(method, data), CONFIG.changed(steps=1), CARD, tmp_path / "run")
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text())
    with pytest.raises(TrainingError, match=r"other\.jsonl"):
        train(make_sac(), mixture(method, other), CONFIG, CARD, tmp_path / "run")
    with pytest.raises(TrainingError, match="another adapter shape"):
        train(make_sac(layout=PromptLayout(prefix="")), mixture(method, data), CONFIG, CARD, tmp_path / "run")
    longer = make_sac(layout=PromptLayout(prefix="<|im_start|>system\n"))
    with pytest.raises(TrainingError, match=r"another adapter shape \(differs in \['prefix\.keys', 'prefix\.values'\]"):
        train(longer, mixture(method, data), CONFIG, CARD, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0, this one has 1"),
        ({"objective": "lm"}, "objective 'qa', this one has 'lm'"),
        ({"ratios": (3.0, 5.0)}, r"ratios \[2\.0, 5\.0\], this one has \[3\.0, 5\.0\]"),
        ({"weight": 0.5}, r"weight of toy\.jsonl 1\.0, this one has 0\.5"),
        ({"options": {"selector": "random"}}, r"options {}, this one has {'selector': 'random'}"),
        ({"base_fingerprint": "1"}, "base_fingerprint '0', this one has '1'"),
        ({"start_from": "a"}, "start_from None, this one has 'a'"),
    ],
)
@pytest.mark.parametrize("done", [1, CONFIG.steps])
def test_a_run_with_other_settings_is_refused_stopped_or_finished(make_sac, data, tmp_path, changes, said, done):
    method, left = make_sac(), iter([False] * (done - 1) + [True])
    train(method, mixture(method, data), CONFIG, CARD, tmp_path / "run", stop=left.__next__)
    before = (tmp_path / "run/card.json").read_text()
    of = {key: value for key, value in changes.items() if key in ("seed", "objective", "ratios")}
    card = {key: value for key, value in changes.items() if key in ("options", "base_fingerprint")}
    mixed = mixture(method, data)
    mixed.sources[0].weight = changes.get("weight", 1.0)
    with pytest.raises(ConfigError, match=f"run holds a run with {said}; use another output folder, or the same"):
        train(
            make_sac(), mixed, configured(**{**SAME, **of}), dataclasses.replace(CARD, **card), tmp_path / "run",
            start_from=changes.get("start_from"),
        )  # fmt: skip
    assert (tmp_path / "run/card.json").read_text() == before


def test_a_run_goes_on_at_another_rate_for_more_steps_and_from_a_checkpoint_that_says_less(
    make_sac, data, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_settings", lambda config, *_: {"seed": config.seed, "learning_rate": 1.0, "dropped": 3})
        train(method := make_sac(), mixture(method, data), CONFIG, CARD, tmp_path / "run", stop=lambda: True)
    config = CONFIG.changed(learning_rate=1e-3, steps=3, clip=0.5, checkpoint_minutes=1.0)
    card = train(method := make_sac(), mixture(method, data), config, CARD, tmp_path / "run")
    (stage,) = card.training["stages"]
    assert (stage["steps_done"], stage["learning_rate"]) == (3, 1e-3)


def test_rates_warm_up_hold_and_decay():
    c = configured(steps=100, warmup=10, learning_rate=1.0, decay_from=0.6)
    rates = [c.rate(s) for s in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[59] == 1.0
    assert all(a > b for a, b in zip(rates[60:], rates[61:], strict=False)) and 0.05 <= rates[-1] < 0.08


BAD = [
    {"objective": "mlm"},
    {"steps": 0},
    {"ratios": (0.5,), "ratio_weights": (1,)},
    {"ratios": (float("nan"),), "ratio_weights": (1,)},
    {"future_from": 2.0},
    {"future_steps": 1200, "future_from": -8.0},
    {"future_from": float("nan")},
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_settings_name_the_value(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad.values()))}".strip("(),").split(",")[0].removesuffix(".0")):
        configured(**bad)


def test_the_future_opens_linearly():
    c = configured(steps=10, future_from=-8.0, future_steps=4)
    assert [c.own.future(s) for s in range(6)] == [-8.0, -6.0, -4.0, -2.0, None, None]
    assert configured().own.future(0) is None


def test_a_bias_of_zero_is_bidirectional_and_a_large_one_causal(make_sac):
    method = make_sac(trained=True)
    chunks, ratios = [list(range(5, 45)), list(range(9, 30))], [4.0, 2.0]

    def written(bias, by):
        return [t.detach() for kv in by.write_chunks(chunks, ratios, future_bias=bias) for t in (kv.keys, kv.values)]

    causal = make_sac(trained=True, causal=True)
    for exact in (False, True):  # by the differentiable matmuls, and by the fused attention
        with torch.inference_mode() if exact else torch.enable_grad():
            both = written(None, method)
            assert all(torch.equal(a, b) for a, b in zip(both, written(0.0, method), strict=True))
            for large in (-1e4, -torch.inf):
                for a, b in zip(written(large, method), written(None, causal), strict=True):
                    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
            between = written(-2.0, method)
            for other in (both, written(None, causal)):
                assert max(float((a - b).abs().max()) for a, b in zip(between, other, strict=True)) > 1e-3


def test_a_biased_encoder_equals_a_slow_oracle_and_learns_through_it(make_sac):
    """Transformers' own encoder under an additive mask of the same numbers; and gradients reach all LoRA matrices."""
    method = make_sac(trained=True)
    b, ids = method.backbone, list(range(7, 31))
    ((kv,),) = method.write([[ids]], [1.0], future_bias=-1.5)
    with torch.no_grad():
        h = b.encoder.model.embed_tokens(torch.tensor([ids])) + method.anchor_embedding
        mask = torch.full((len(ids), len(ids)), -1.5).triu(1)[None, None]
        cache = b.encoder.model(inputs_embeds=h, attention_mask=mask, use_cache=True).past_key_values
    for layer, values in enumerate(grid(kv)[1]):
        torch.testing.assert_close(values.detach(), cache.layers[layer].values[0], atol=2e-5, rtol=1e-4)
    batch = question_batch(some_contexts(b), [3.0] * 6, method, settings_of(recall_weight=0.25), random.Random(0))
    loss, _ = loss_of(batch, method, future_bias=-1.5)
    loss.backward()
    dead = [n for n, p in method.parameters().items() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead


def test_a_run_that_opens_the_future_resumes_exactly_and_is_not_the_plain_run(make_sac, data, tmp_path):
    config = CONFIG.changed(future_from=-8.0, future_steps=5)
    runs = {}
    for name, c in (("whole", config), ("broken", config), ("plain", CONFIG)):
        if name == "broken":
            method, left = make_sac(), iter([False, False, True])
            train(method, mixture(method, data), c, CARD, tmp_path / name, stop=left.__next__)
        runs[name] = make_sac()
        train(runs[name], mixture(runs[name], data), c, CARD, tmp_path / name)
    whole = weights(runs["whole"])
    assert all(torch.equal(w, weights(runs["broken"])[n]) for n, w in whole.items())
    assert any(not torch.equal(w, weights(runs["plain"])[n]) for n, w in whole.items())


def test_a_causal_adapter_has_no_future_to_open(make_sac, data, tmp_path):
    method = make_sac(causal=True)
    with pytest.raises(ConfigError, match="future_from is -8"):
        train(
            method, mixture(method, data), CONFIG.changed(future_from=-8.0, future_steps=2), CARD, tmp_path
        )


def test_long_contexts_are_written_as_sub_contexts(make_sac):
    """Side by side as at serving: each piece alone, at consecutive positions."""
    method = make_sac(trained=True)
    b = method.backbone
    pairs = ((b.tokens("Who?"), b.tokens("Ada")),)
    long, short = b.tokens("Ada went to Rome by boat. " * 45), b.tokens("Bo stayed at home.")
    contexts = [TokenisedContext(long, pairs), TokenisedContext(short, pairs)]
    shares = settings_of(distractor_share=1.0)
    batch = question_batch(contexts, [9.0, 3.0], method, shares, random.Random(1))
    assert [len(c) for c in batch.chunks] == [510, 510, 150, 18] and batch.ratios == [9.0, 9.0, 9.0, 3.0]
    assert batch.pieces == [[0, 1, 2], [3]] and sorted(batch.front[0]) == [0, 1]
    loss, _ = loss_of(batch, method)
    kvs = {0: method.compress(method.pieces(long), 9.0), 1: method.compress([short], 3.0)}
    nats = []
    for front, rows in zip(batch.front, batch.readings, strict=True):
        memory = method.memory([kv for j in front for kv in kvs[j]])
        for tokens, first, *_ in rows:
            for i in range(first, len(tokens)):
                nats.append(F.cross_entropy(by_transformers(b, memory, tokens[:i]), torch.tensor(tokens[i])))
    assert loss.item() == pytest.approx(float(torch.stack(nats).mean()), abs=1e-4)
    halves = continuation_batch([TokenisedContext(long, ())], [9.0], method)
    assert [len(c) for c in halves.chunks] == [510, 75] and halves.front == [[0]] and halves.tokens == 2 * 585 - 1


def test_texts_alone_do_not_make_a_batch_of_nothing(make_sac, data, tmp_path):
    method = make_sac()
    (tmp_path / "book.txt").write_text("It was a dark and stormy night; the rain fell in torrents. " * 20)
    both = [Source(path, method.backbone.tokens, seed=1) for path in (data, str(tmp_path / "book.txt"))]
    both[0].weight = 0.02
    config = CONFIG.changed(recall_weight=0.0, step_tokens=64)
    for step in range(20):
        batch = drawn(method, Mixture(both, seed=step), config.changed(seed=step))
        assert any(batch.readings)
    alone = Mixture(both[1:], seed=1)
    with pytest.raises(
        TrainingError, match="the last 500 micro-batches have no questions, and recall_weight is 0.*cloze:"
    ):
        drawn(method, alone, config)


@pytest.mark.parametrize("length", [32, 40])
@pytest.mark.parametrize("objective", ["qa", "budget"])
def test_texts_that_are_too_short_to_be_recalled_make_no_batch_of_nothing(make_sac, tmp_path, length, objective):
    method = make_sac(budget="learned" if objective == "budget" else "even")
    texts = ["x" * length] * 9 + ["y" * 60]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = configured(objective, **{**SAME, "step_tokens": 64})

    def of(seed):
        source = Source(tmp_path / "texts.jsonl", method.backbone.tokens, seed=seed)
        return drawn(method, Mixture([source]), config.changed(seed=seed))

    for seed in range(10):
        batch = of(seed)
        assert any(batch.readings) and of(seed) == batch
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": texts[0]}))
    with pytest.raises(TrainingError, match=r"no questions, and recall takes texts of more than 40 tokens .*is 0\)"):
        of(0)


def test_texts_whose_memory_holds_others_alone_teach_nothing(make_sac, tmp_path):
    method = make_sac()
    (tmp_path / "texts.txt").write_text("It was a dark and stormy night; the rain fell in torrents. " * 20)
    config = CONFIG.changed(mismatch_share=1.0, step_tokens=150)
    mixed = Mixture([Source(tmp_path / "texts.txt", method.backbone.tokens)])
    with pytest.raises(TrainingError, match=r"in their own memory \(mismatch_share is 1\)"):
        drawn(method, mixed, config)


def test_no_context_is_longer_than_the_longest(make_sac, data):
    method = make_sac()
    config = CONFIG.changed(first_context=500, max_context=70, step_tokens=600)
    assert max(len(c) for c in drawn(method, mixture(method, data), config).chunks) <= 70


def test_joined_contexts_are_one_passage_with_the_questions_of_both(make_sac, data):
    method = make_sac()
    config = CONFIG.changed(step_tokens=400, distractor_share=0.0, recall_weight=0.0)
    plain = drawn(method, mixture(method, data), config)
    some = drawn(method, mixture(method, data), config.changed(joined_share=1.0))
    gap = method.backbone.tokens(GAP)
    assert len(plain.chunks) == 5 and len(some.chunks) == 3
    assert some.chunks[2] == plain.chunks[4]
    for i, chunk in enumerate(some.chunks[:2]):
        assert list(chunk) == [*plain.chunks[2 * i], *gap, *plain.chunks[2 * i + 1]]
        both = {tuple(row.ids) for row in (*plain.readings[2 * i], *plain.readings[2 * i + 1])}
        assert {tuple(row.ids) for row in some.readings[i]} == both and len(some.readings[i]) == 4
    assert some.examples == plain.examples


def test_as_many_contexts_are_joined_as_are_asked_for(make_sac, data):
    method = make_sac()
    config = CONFIG.changed(step_tokens=400, joined_share=1.0, joined_texts=3, recall_weight=0.0)
    plain = drawn(method, mixture(method, data), config.changed(joined_share=0.0))
    some = drawn(method, mixture(method, data), config)
    gap, (a, b, c, *_) = method.backbone.tokens(GAP), plain.chunks
    assert len(plain.chunks) == 5 and len(some.chunks) == 2 and some.examples == plain.examples
    assert list(some.chunks[0]) == [*a, *gap, *b, *gap, *c]


def test_a_config_says_how_many_distractors(make_sac, data):
    method = make_sac()
    config = CONFIG.changed(step_tokens=800, distractor_share=1.0, distractors_from=0.0)
    most = {}
    for n in (1, 9):
        some = [
            drawn(method, mixture(method, data), config.changed(max_distractors=n), step)
            for step in range(4)
        ]
        most[n] = max(len(front) for batch in some for front in batch.front)
    assert most[1] == 2 and 6 < most[9] <= 10
    for bad in ({"max_distractors": 0}, {"joined_texts": 1}):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))} {next(iter(bad.values()))}"):
            CONFIG.changed(**bad)


def test_contexts_that_together_are_no_passage_stay_apart(make_sac, data, monkeypatch):
    method = make_sac()
    monkeypatch.setattr(questions, "MAX_PASSAGE_TOKENS", 60)
    config = CONFIG.changed(step_tokens=400, joined_share=1.0)
    assert all(len(chunk) <= 60 for chunk in drawn(method, mixture(method, data), config).chunks)


def test_the_mean_of_the_last_steps_is_left_and_resumes_exactly(make_sac, data, tmp_path):
    """Weights of each step from the half on, averaged; stopped in between or not."""
    config = CONFIG.changed(average_from=0.5)
    seen = []

    def go(folder, stop_at=None):
        method = make_sac()

        train(
            method, mixture(method, data), config, CARD, tmp_path / folder,
            listen=lambda progress: seen.append(weights(method)), stop=lambda: len(seen) == stop_at,
        )  # fmt: skip
        return weights(method)

    whole = go("whole")
    for name, got in whole.items():
        assert torch.allclose(got, torch.stack([step[name] for step in seen[3:6]]).mean(0), atol=1e-6), name
    assert not torch.equal(whole["anchor_embedding"], seen[5]["anchor_embedding"])
    seen.clear()
    go("parts", stop_at=4)
    seen.clear()
    resumed = go("parts")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_ranks_fall_off_and_neighbours_come_first(make_sac):
    """With rank_decay the passage that answers mostly has the best rank, stands nearest and is held back least."""
    method = make_sac()
    method.placing = Placing(prior=0.5)
    contexts = [TokenisedContext([i] * 9, (([1], [2]),), cluster=i // 3 + 1) for i in range(6)]
    shares = settings_of(distractor_share=1.0, max_distractors=3, rank_decay=0.3)
    ranks, first_beside = [], []
    for seed in range(60):
        batch = question_batch(contexts, [5.0] * 6, method, shares, random.Random(seed))
        for i, (front, biases) in enumerate(zip(batch.front, batch.biases, strict=True)):
            assert biases == [-0.5 * r for r in reversed(range(len(front)))], "the best stands last"
            ranks.append(len(front) - 1 - front.index(i))
            beside = [j for j in front if j != i]
            first_beside.append(len(beside) > 2 or {j // 3 for j in beside} == {i // 3})
    assert all(first_beside), "two neighbours come before any other"
    counts = [ranks.count(r) for r in range(4)]
    assert 0.65 < counts[0] / len(ranks) < 0.85 and counts == sorted(counts, reverse=True)
    memories = batch.memories(method, batch.written(method))
    assert {round(float(m.bias.min()), 4) for m in memories} == {-0.5 * (len(f) - 1) for f in batch.front}
