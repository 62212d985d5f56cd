"""Readers on gold contexts, on tiny models: batching changes nothing, long contexts are cut or compressed in pieces."""

from __future__ import annotations

import math
import shutil
import weakref

import pytest
import torch

from sac_rag.answer.assemble import question_ids
from sac_rag.answer.engine import Engine
from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Reader, Sampling, decode
from sac_rag.compress.selectors import anchor_count
from sac_rag.compress.session import Session
from sac_rag.compress.words import most, scores_of
from sac_rag.config import IndexConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate import harness, prompts
from sac_rag.evaluate.harness import evaluate
from sac_rag.evaluate.metrics import Score
from sac_rag.evaluate.prompts import ANSWER_TOKENS, decoding_batches
from sac_rag.evaluate.readers import Closed, reader_of
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.sources import Given, score
from sac_rag.evaluate.tasks import load_task
from sac_rag.train.data import Question


def prompts_of(method, contexts, reader, ratio):
    return prompts.prompts_of(method, contexts, reader_of(reader), ratio)


def score_task(engine, task, reader, ratio, batch):
    return score(Given(task, ratio), engine, reader_of(reader), batch, reader)


def engine_of(tiny, method="sac"):
    return Engine.shared(
        tiny["model"], method, tiny["full_ft_adapter" if method == "full-ft" else "adapter"], device="cpu",
        dtype="float32",
    )  # fmt: skip


def test_every_reader_on_every_set_then_their_average(write_set, tiny):
    files = [write_set("lamps"), write_set("keys", contexts=5, questions=1)]
    heard = []
    runs = evaluate(
        files,
        readers=("closed", "text", "memory", "full-ft"),
        ratios=(5, 15.0),
        listen=lambda *a: heard.append(a),
        **tiny,
    )
    rows = [(r.set, r.reader, r.method, r.ratio) for r in runs]
    assert rows == [
        (s, *row)
        for row in (
            ("closed", None, None),
            ("text", None, None),
            ("memory", "sac", 5.0),
            ("memory", "sac", 15.0),
            ("full-ft", "full-ft", None),
        )
        for s in ("lamps", "keys", "macro")
    ]
    assert [r.n for r in runs[:3]] == [6, 5, 11]
    for a, b, both in (runs[i : i + 3] for i in range(0, len(runs), 3)):
        assert both.f1 == pytest.approx((a.f1 + b.f1) / 2)
    for r in runs:
        assert 0 <= r.f1_low <= r.f1 <= r.f1_high <= 1 and r.em_low <= r.em <= r.em_high
        assert r.seconds > 0 and r.examples_per_s == pytest.approx(r.n / r.seconds) and r.cut == 0
        assert r.peak_mib is None or 10 < r.peak_mib < 1e6
        assert (r.bytes_per_source_token is not None) == (r.reader == "memory")
    narrow, wide = (next(r for r in runs if r.ratio == x).bytes_per_source_token for x in (15.0, 5.0))
    assert 2 < wide / narrow < 4
    assert {(h[0], h[1]) for h in heard if h[2] == h[3]} >= {("lamps", "closed"), ("keys", "sac 15x")}


def test_retention_only_beside_full_ft(write_set, tiny, monkeypatch):
    monkeypatch.setattr("sac_rag.evaluate.runs.score", lambda *_: Score(0.5, 0.0, 0.5, 0.0))
    runs = evaluate([write_set("lamps")], readers=("memory", "full-ft"), **tiny)
    assert [r.retention for r in runs] == [1.0, 1.0]
    assert evaluate([write_set("lamps")], readers=("memory",), **tiny)[0].retention is None


def test_several_methods_side_by_side(write_set, tiny, tmp_path):
    """Those that have nothing to train once, at the ratios that they have; the others with each adapter; and the same
    rows again out of the folder of results, and out of workers' hands."""
    adapters = {"trained": tiny["adapter"], "none": "none"}
    how = {**tiny, "adapter": adapters, "method": ("kvzip", "full-kv", "sac"), "ratios": (2.0, 3.0), "limit": 3}
    kept = Results(tmp_path / "runs")
    runs = evaluate([write_set("lamps")], readers=("text", "memory"), results=kept, **how)
    assert [(r.reader, r.method, r.adapter, r.ratio) for r in runs] == [
        ("text", None, None, None),
        ("memory", "kvzip", None, 2.0),
        ("memory", "kvzip", None, 3.0),
        ("memory", "full-kv", None, 1.0),
        *(("memory", "sac", called, ratio) for called in adapters for ratio in (2.0, 3.0)),
    ]
    assert [r.difference is not None for r in runs] == [False] * 6 + [True] * 2
    (text,), stored = runs[:1], {r.method: r.bytes_per_source_token for r in runs if r.ratio in (1.0, 2.0)}
    assert all(r.of_text == (r.f1 / text.f1 if text.f1 else None) for r in runs)
    assert stored["full-kv"] > 1.8 * stored["kvzip"] > 1.7 * stored["sac"]
    again = evaluate([write_set("lamps")], readers=("text", "memory"), results=kept, **how)
    assert again == runs and kept.taken == len(runs)


def test_a_finetuned_model_reads_the_words_that_are_kept(write_set, tiny):
    """At a ratio the answers from the kept tokens as text, in pieces; at 1x those of the reader of the whole text."""
    task = load_task(write_set("lamps", contexts=2, repeat=8))
    engine = engine_of(tiny, "full-ft")
    whole, same, few = (
        [(p.prediction, p.logprob) for p in score_task(engine, task, *how, batch=4).predictions]
        for how in (("full-ft", None), ("words", 1.0), ("words", 5.0))
    )
    assert same == whole != few
    tokenizer, kept = engine.method.backbone.tokenizer, []
    for text, questions in task.contexts:
        ids = engine.method.backbone.tokens(text)
        assert len(ids) > 510
        parts = [ids[:510], ids[510:]]
        best = [most(scores_of(tokenizer, p), anchor_count(len(p), 5.0)).tolist() for p in parts]
        told = [p[i] for p, at in zip(parts, best, strict=True) for i in at]
        for question in questions:
            prompt = [*engine.method.backbone.template(engine.method.layout.prefix), *told]
            prompt += question_ids(engine.method, question.question)
            (made,) = engine.reader.generate([Prompt((prompt,))], Sampling(max_new_tokens=ANSWER_TOKENS))
            kept.append((decode(tokenizer, made.token_ids).strip(), pytest.approx(made.logprob, abs=1e-3)))
    assert few == kept
    runs = evaluate([write_set("keys")], readers=("words", "full-ft"), ratios=(2.0, 5.0), **tiny)
    assert [(r.reader, r.ratio) for r in runs] == [("words", 2.0), ("words", 5.0), ("full-ft", None)]


def test_options_are_of_one_method_and_runs_are_stored_under_them(write_set, tiny, tmp_path):
    kept, files = Results(tmp_path / "runs"), [write_set("lamps")]
    how = {**tiny, "adapter": "default", "ratios": (2.0,), "limit": 2, "results": kept}
    for option in ((), ("even_heads=true",)):
        evaluate(files, method="kvzip", option=option, **how)
    assert kept.taken == 0 and len(list(kept.folder.glob("*.json"))) == 2
    with pytest.raises(ConfigError, match="2 methods and the options even_heads=true: name one method"):
        evaluate(files, method=("kvzip", "full-kv"), option=("even_heads=true",), **how)


@pytest.mark.parametrize("reader", ["closed", "text", "memory", "full-ft"])
def test_answers_are_those_of_one_prompt_at_a_time_in_the_order_of_the_file(write_set, tiny, reader):
    task = load_task(write_set("lamps", contexts=5, questions=3))
    engine = engine_of(tiny, "full-ft" if reader == "full-ft" else "sac")
    scored = score_task(engine, task, reader, 5.0 if reader == "memory" else None, batch=4)
    wanted = []
    for context in task.contexts:
        asked = prompts_of(engine.method, [context], reader, 5.0)
        for prompt in asked.prompts:
            (c,) = engine.reader.generate([prompt], Sampling(max_new_tokens=ANSWER_TOKENS))
            text = decode(engine.method.backbone.tokenizer, c.token_ids).strip()
            wanted.append((text, pytest.approx(c.logprob, abs=1e-4)))
    assert [(p.prediction, p.logprob) for p in scored.predictions] == wanted
    assert [p.qid for p in scored.predictions] == [q.qid for _, qs in task.contexts for q in qs]
    assert len({text for text, _ in wanted}) > 1


def test_closed_book_decodes_in_wide_batches_and_never_tokenises_contexts(write_set, tiny, monkeypatch):
    sizes, whole = [], Reader.generate
    monkeypatch.setattr(Reader, "generate", lambda self, p, s: sizes.append(len(p)) or whole(self, p, s))
    task, engine = load_task(write_set("lamps", contexts=10, questions=1)), engine_of(tiny)
    texts, tokens = [], engine.method.backbone.tokens
    monkeypatch.setattr(engine.method.backbone, "tokens", lambda t: texts.append(t) or tokens(t), raising=False)
    score_task(engine, task, "closed", None, batch=2)
    assert sizes == [8, 2] and Closed.wide == 4
    assert not set(texts) & {text for text, _ in task.contexts}


def test_decoding_batches_are_bounded_in_rows_and_slots(monkeypatch):
    monkeypatch.setattr(prompts, "BATCH_TOKENS", 100)
    sizes = [10, 90, 20, 30, 300, 25, 10, 45]
    found = list(decoding_batches(sizes, 3))
    assert sorted(i for rows in found for i in rows) == list(range(8))
    assert all(len(rows) <= 3 for rows in found)
    assert all(len(rows) == 1 or len(rows) * max(sizes[i] for i in rows) <= 100 for rows in found)
    assert len(found) == 5


def test_a_context_beyond_the_model_is_cut_for_every_reader_and_compressed_in_pieces_for_memory(write_set, tiny):
    path = write_set("long", contexts=2, questions=2, repeat=40)
    task = load_task(path)
    engine, full = engine_of(tiny), engine_of(tiny, "full-ft")
    limit = engine.method.backbone.context_length
    lengths = [len(engine.method.backbone.tokens(text)) for text, _ in task.contexts]
    assert min(lengths) > limit
    asked = prompts_of(engine.method, task.contexts, "text", None)
    assert asked.cut == 2 and {p.tokens for p in asked.prompts} & {limit - ANSWER_TOKENS}
    assert max(p.tokens for p in asked.prompts) == limit - ANSWER_TOKENS
    asked = prompts_of(full.method, task.contexts, "full-ft", None)
    assert asked.cut == 2 and max(p.tokens + p.slots for p in asked.prompts) == limit - ANSWER_TOKENS
    asked = prompts_of(engine.method, task.contexts, "memory", 5.0)
    prefix = engine.method.prefix.source_len
    ends = [p.parts[0].next_position + p.tokens + ANSWER_TOKENS for p in asked.prompts]
    assert asked.cut == 2 and max(ends) == limit and min(ends) > limit - 10
    kept = [limit - ANSWER_TOKENS - prefix - max(p.tokens for p in ps) for ps in (asked.prompts[:2], asked.prompts[2:])]
    assert asked.source_tokens == sum(kept)
    pieces = [[min(510, n - at) for at in range(0, n, 510)] for n in kept]
    wanted = [prefix + sum(max(1, round(p / 5)) for p in ps) for ps in pieces for _ in range(2)]
    assert [p.slots for p in asked.prompts] == pytest.approx(wanted, abs=len(pieces[0]))
    short = load_task(write_set("short", contexts=2, questions=2, repeat=10))
    whole = [engine.method.backbone.tokens(text) for text, _ in short.contexts]
    asked = prompts_of(engine.method, short.contexts, "memory", 5.0)
    assert asked.cut == 0 and asked.source_tokens / 2 > 510 and asked.source_tokens == sum(map(len, whole))
    runs = evaluate([path], readers=("text", "full-ft", "memory", "closed"), batch=2, **tiny)
    assert [r.cut for r in runs] == [2, 2, 2, 0]


def test_full_ft_memory_reads_like_the_text_with_lora(write_set, tiny):
    task, full = load_task(write_set("lamps", contexts=1, questions=1)), engine_of(tiny, "full-ft")
    backbone = full.method.backbone
    with torch.inference_mode():
        memory, text = (
            Session(backbone, [prompts_of(full.method, task.contexts, r, None).prompts[0].parts], use_lora=True).logits
            for r in ("full-ft", "text")
        )
        frozen = Session(backbone, [prompts_of(full.method, task.contexts, "text", None).prompts[0].parts]).logits
    assert torch.allclose(memory, text, atol=1e-4)
    assert not torch.allclose(frozen, text, atol=1e-2)


def test_a_question_that_leaves_no_room_is_an_error(tiny):
    contexts = [("A context.", (Question("", "why " * 600, ("a",)),))]
    with pytest.raises(ConfigError, match="2048"):
        prompts_of(engine_of(tiny).method, contexts, "text", None)


def test_groups_and_adapters_in_one_table(write_set, tiny, tiny_adapter, tmp_path, monkeypatch):
    gain = {"whole": 0.0, "other": 0.25}
    now = []
    monkeypatch.setattr("sac_rag.evaluate.runs.score", lambda *_: Score(0.5 + now[0], 0.0, 0.5, 0.0))
    whole = harness.score

    def scoring(source, engine, reader, batch, label, listen):
        now[:] = [gain.get(label.rpartition(" ")[2], 0.25)]
        return whole(source, engine, reader, batch, label, listen)

    monkeypatch.setattr(harness, "score", scoring)
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    files = {"in": [write_set("lamps"), write_set("keys", contexts=5, questions=1)], "out": [write_set("boats")]}
    readers, adapters = ("text", "memory", "full-ft"), {"whole": str(tiny_adapter), "other": str(other)}
    runs = evaluate(files, readers=readers, ratios=(5, 15), **{**tiny, "adapter": adapters})
    rows = [("text", None, None)]
    rows += [("memory", a, r) for a in adapters for r in (5.0, 15.0)] + [("full-ft", None, None)]
    sets = ("lamps", "keys", "macro in", "boats")  # one set alone is no average
    assert [(r.reader, r.adapter, r.ratio, r.set) for r in runs] == [(*row, s) for row in rows for s in sets]
    ends = ("difference", "difference_low", "difference_high")
    for r in runs:
        assert [getattr(r, e) for e in ends] == ([0.25] * 3 if r.adapter == "other" else [None] * 3)
        assert r.retention == (pytest.approx(2 / 3) if r.adapter == "whole" else 1.0)
    for wrong in ({}, adapters):
        with pytest.raises(ConfigError, match="adapter"):
            evaluate(files, readers=("text",), **{**tiny, "adapter": wrong})


def test_of_many_adapters_one_is_held_at_a_time(write_set, tiny, tiny_adapter, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []
    whole = harness.Engine.__init__

    def loading(self, *args, **kwargs):
        alive.add(self)
        most.append(len(alive))
        whole(self, *args, **kwargs)

    monkeypatch.setattr(harness.Engine, "__init__", loading)
    names = ("a", "b", "c")
    adapters = {name: str(shutil.copytree(tiny_adapter, tmp_path / name)) for name in names}
    runs = evaluate([write_set("lamps")], ratios=(5, 15), **{**tiny, "adapter": adapters})
    assert [r.adapter for r in runs] == [n for n in names for _ in range(2)] and most == [1, 1, 1]


def test_unknown_readers_are_named(write_set, tiny):
    with pytest.raises(ConfigError, match="magic"):
        evaluate([write_set("lamps")], readers=("closed", "magic"), **tiny)


@pytest.mark.parametrize("ratio", [0, 0.5, -5.0, math.nan, math.inf])
def test_a_ratio_that_cannot_be_is_refused_before_anything_is_read(ratio):
    with pytest.raises(ConfigError, match=f"ratio is {ratio}; it must be at least 1 and finite"):
        evaluate(["nowhere.jsonl"], ratios=(5.0, ratio))
    with pytest.raises(ConfigError, match=f"ratio is {ratio}; it must be at least 1 and finite"):
        IndexConfig(ratio=ratio)


def test_a_method_that_compresses_nothing_has_no_memory_to_score(write_set, tiny):
    full_ft = {**tiny, "method": "full-ft", "adapter": tiny["full_ft_adapter"]}
    with pytest.raises(ConfigError, match="'full-ft' .* no memory for the reader memory: .*--reader full-ft"):
        evaluate([write_set("lamps")], readers=("text", "memory"), **full_ft)
    (run,) = evaluate([write_set("lamps")], readers=("text",), **full_ft)
    assert run.method is None and run.n == 6


def test_named_prompts_are_runs_of_their_own(write_set, tiny, monkeypatch):
    sent = []
    real = prompts.joined_ids
    monkeypatch.setattr(prompts, "joined_ids", lambda b, layout, q: sent.append(layout) or real(b, layout, q))
    runs = evaluate([write_set("lamps")], readers=("memory", "full-ft"), prompts=("langchain", "chat"), **tiny)
    assert [(r.reader, r.prompt) for r in runs] == [("memory", "langchain"), ("memory", "chat"), ("full-ft", None)]
    assert len(set(sent)) == 2 and len(sent) == 12
    with pytest.raises(ConfigError, match="unknown prompt 'poem'"):
        evaluate([write_set("lamps")], prompts=("poem",), **tiny)


def test_a_reader_of_memory_may_read_sentences_beside_it(write_set, tiny):
    """NAME+N: memories as they are, and the prompt of `question_ids` behind them."""
    file = write_set("lamps", contexts=2, questions=1)
    engine, task = engine_of(tiny), load_task(file)
    bare, more = (prompts_of(engine.method, task.contexts, name, 5.0) for name in ("memory", "memory+1"))
    for (text, (question,)), a, b in zip(task.contexts, bare.prompts, more.prompts, strict=True):
        assert a.slots == b.slots and a.tokens < b.tokens
        said = engine.tokenizer.decode(b.parts[1])
        line, *_ = said.strip().split("\n")
        assert line in text and said.endswith(engine.tokenizer.decode(a.parts[1])) and question.question in said
    (run,) = evaluate([file], readers=("memory+1",), ratios=(5,), **tiny)
    assert run.reader == "memory+1" and run.bytes_per_source_token


@pytest.mark.parametrize("name", ["text+1", "memory+", "memory+0", "memory+17", "memory+one", "nothing+1"])
def test_sentences_beside_anything_else_are_refused(name):
    with pytest.raises(ConfigError):
        reader_of(name)
