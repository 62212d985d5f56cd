"""The retrieved track on tiny models: batches answer as `ask` does, all readers see the same passages."""

from __future__ import annotations

import dataclasses

import pytest

from sac_rag import AskConfig, SacRag
from sac_rag.answer.assemble import text_prompt
from sac_rag.answer.engine import Engine
from sac_rag.answer.reader import Reader, Sampling, decode
from sac_rag.errors import ConfigError
from sac_rag.evaluate import retrieved
from sac_rag.evaluate.metrics import contains, score
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.retrieved import evaluate_retrieved
from sac_rag.evaluate.runs import RetrievedRun
from sac_rag.evaluate.tasks import load_task
from sac_rag.records import Document

ASK = AskConfig(k=2, max_new_tokens=12)
WHERE = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def full(tiny_full_ft) -> dict[str, str]:
    return {"full_ft_adapter": str(tiny_full_ft), **WHERE}


def test_batched_answers_are_those_of_ask_one_by_one(write_set, tiny_config, full, tmp_path, monkeypatch):
    path = write_set("lamps", contexts=5, questions=2)
    sizes, whole = [], Reader.generate
    monkeypatch.setattr(Reader, "generate", lambda self, p, s: sizes.append(len(p)) or whole(self, p, s))
    results = Results(tmp_path / "r")
    runs = evaluate_retrieved(
        [path], config=tiny_config, ask=ASK, batch=4, results=results,
        readers=("memory", "mixed", "text", "full-ft"), **full,
    )  # fmt: skip
    assert sizes == [4, 4, 2] * 4
    assert [(r.reader, r.method, r.ratio) for r in runs] == [
        ("memory", "sac", 5.0), ("mixed", "sac", 5.0), ("text", None, None), ("full-ft", "full-ft", None),
    ]  # fmt: skip
    monkeypatch.undo()

    task = load_task(path)
    with SacRag.index([], tmp_path / "a.lib", tiny_config, **WHERE) as rag:
        rag.put([Document(f"lamps/{i}", text) for i, (text, _) in enumerate(task.contexts)])
        engine = Engine.shared(rag.config.model, "full-ft", full["full_ft_adapter"], **WHERE)
        questions = [q for _, qs in task.contexts for q in qs]
        hits = [rag.retrieve(q.question, ASK) for q in questions]
        wanted = {
            name: [rag.ask(q.question, ASK, hits=h, fidelity=name).text for q, h in zip(questions, hits, strict=True)]
            for name in ("memory", "mixed", "text")
        }
        wanted["full-ft"] = []
        for q, h in zip(questions, hits, strict=True):
            prompt = text_prompt(engine.method, h, q.question, reserve=12).prompt
            (c,) = engine.reader.generate([prompt], Sampling(max_new_tokens=12))
            wanted["full-ft"].append(decode(engine.method.backbone.tokenizer, c.token_ids).strip())
        passages, stats = rag.stats().passages, rag.stats()
    assert wanted["full-ft"] != wanted["text"] != wanted["mixed"] != wanted["memory"]
    for run in runs:
        (file,) = (p for p in (tmp_path / "r").glob(f"lamps.{run.reader}.*.json"))
        scored = results.find(RetrievedRun, _settings(file))
        assert [p.prediction for p in scored.predictions] == wanted[run.reader]
        f1 = [score(a, q.answers).f1 for a, q in zip(wanted[run.reader], questions, strict=True)]
        assert run.f1 == pytest.approx(sum(f1) / 10) and run.f1_low <= run.f1 <= run.f1_high
        held = [any(contains(h.passage.text, q.answers) for h in hs) for q, hs in zip(questions, hits, strict=True)]
        assert run.recall == sum(held) / 10 and (run.k, run.passages, run.cut) == (2, passages, 0)
        assert run.retention is None or run.retention >= 0
    assert runs[0].bytes_per_source_token == stats.kv_bytes / stats.source_tokens
    assert runs[2].bytes_per_source_token is None


def _settings(file):
    import json

    return json.loads(file.read_text())["settings"]


def libraries(monkeypatch) -> list[int]:
    """Sizes of the libraries that are made from here on."""
    made, whole = [], retrieved.Found

    def found(task, rag, *rest):
        made.append((id(rag), rag.stats().documents))
        return whole(task, rag, *rest)

    monkeypatch.setattr(retrieved, "Found", found)
    return made


def test_files_are_pooled_when_told_to(write_set, tiny_config, full, monkeypatch):
    files = [write_set("lamps", contexts=3), write_set("keys", contexts=2)]
    made = libraries(monkeypatch)
    rest = {"config": tiny_config, "ask": ASK, "readers": ("memory",), **full}
    apart = evaluate_retrieved(files, **rest)
    assert [n for _, n in made] == [3, 2]
    made.clear()
    pooled = evaluate_retrieved(files, pool=True, **rest)
    assert [n for _, n in made] == [5, 5] and len(set(made)) == 1
    assert [r.set for r in apart] == [r.set for r in pooled] == ["lamps", "keys", "macro"]
    sizes = [r.passages for r in apart]
    assert sizes[2] == sizes[0] + sizes[1] and [r.passages for r in pooled] == [sizes[2]] * 3
    assert pooled[2].recall == pytest.approx((pooled[0].recall + pooled[1].recall) / 2)
    assert all(r.n == n for r, n in zip(pooled, (6, 4, 10), strict=True))


def test_groups_have_an_average_each(write_set, tiny_config, full, monkeypatch):
    made = libraries(monkeypatch)
    files = {"in": [write_set("lamps", contexts=3), write_set("keys", contexts=1)], "out": [write_set("boats")]}
    runs = evaluate_retrieved(files, config=tiny_config, ask=ASK, readers=("text",), pool=True, limit=1, **full)
    assert [r.set for r in runs] == ["lamps", "keys", "macro in", "boats"] and [n for _, n in made] == [7] * 3
    assert runs[2].n == 2 and runs[2].recall == (runs[0].recall + runs[1].recall) / 2
    assert len({r.passages for r in runs}) == 1


def test_text_is_read_once_for_all_ratios_and_finished_runs_are_taken(
    write_set, tiny_config, full, tmp_path, monkeypatch
):
    files = [write_set("lamps", contexts=3), write_set("keys", contexts=2)]
    made = libraries(monkeypatch)
    rest = {"config": tiny_config, "ask": ASK, "pool": True, "limit": 2, **full}

    def run(**changes):
        made.clear()
        results = Results(tmp_path / "r")
        found = evaluate_retrieved(files, results=results, **{**rest, **changes})
        return found, results.taken, len(made)

    first, taken, answered = run(readers=("text", "memory"), ratios=(5.0, 15.0))
    assert (taken, answered) == (0, 6)
    rows = [(r.reader, r.ratio) for r in first]
    assert rows == [("text", None)] * 3 + [("memory", 5.0)] * 3 + [("memory", 15.0)] * 3
    assert run(readers=("text", "memory"), ratios=(5.0, 15.0)) == (first, 6, 0)
    assert run(readers=("text", "memory"), ratios=(15.0,))[1:] == (4, 0)
    assert run(readers=("memory", "full-ft"))[1:] == (2, 2)
    assert run(pool=False, readers=("memory",))[1:] == (0, 2)
    assert run(ask=dataclasses.replace(ASK, k=1), readers=("memory",))[1:] == (0, 2)
    assert run(limit=1, readers=("memory",))[1:] == (0, 2)


def test_passages_that_do_not_fit_are_counted(write_set, tiny_config, full):
    (run,) = evaluate_retrieved(
        [write_set("lamps", contexts=25, questions=1)],
        config=tiny_config, ask=AskConfig(k=25, max_new_tokens=4), readers=("text",), limit=3, **full,
    )  # fmt: skip
    assert run.cut == 3


def test_closed_book_cannot_retrieve(write_set, tiny_config):
    with pytest.raises(ConfigError, match="closed"):
        evaluate_retrieved([write_set("lamps")], config=tiny_config, readers=("closed",))


@pytest.mark.parametrize("reader", ["memory", "mixed"])
def test_what_cannot_be_compressed_is_refused_before_anything_is_read(tiny_config, reader):
    with pytest.raises(ConfigError, match=r"ratio is 0\.0; it must be at least 1"):
        evaluate_retrieved(["nowhere.jsonl"], config=tiny_config, readers=(reader,), ratios=(0,))
    with pytest.raises(ConfigError, match=f"'full-ft' .* no memory for the reader {reader}: .*--reader full-ft"):
        full_ft = dataclasses.replace(tiny_config, method="full-ft")
        evaluate_retrieved(["nowhere.jsonl"], config=full_ft, readers=("text", reader))
