"""`sac bench` on a tiny model: every part once, rows that agree with each other, floors that are floors."""

from __future__ import annotations

import dataclasses
import sys
import types
import xml.etree.ElementTree as ET

import pytest
import torch

from sac_rag import SacRag
from sac_rag.config import AskConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate import machine as machines
from sac_rag.evaluate import speed, suite
from sac_rag.evaluate.machine import Machine, Work, cpu, measure
from sac_rag.evaluate.own import choices, made_questions

QUESTIONS = ("Who keeps the lamp of house 1?", "When was house 2 built?")


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text(
            f"The lamp of house {i} was kept by Ada Quill of Port Harrow until {1900 + i}, when the board paid for gas."
        )
    return (str(folder),)


@pytest.fixture
def plan(tiny_config, paths):
    config = dataclasses.replace(tiny_config, passage_tokens=64)
    return suite.Plan(config, paths, QUESTIONS, ratios=(2.0, 5.0, 9.0), long_ks=()).hurried()


def test_every_part_is_measured_and_rows_agree(plan):
    heard = []
    tables = suite.run(plan, dtype="float32", listen=lambda *told: heard.append(told))
    assert list(tables) == ["machine", "first_token", "cost", "cold", "decoding", "serving", "indexing", "storage"]
    (machine,) = tables["machine"]
    assert machine["dtype"] == "float32" and machine["gigabytes_per_s"] > 0 and machine["gigaflops"] > 0
    first = tables["first_token"]
    assert [(r["passages"], r["way"]) for r in first] == [
        (k, way) for k in (1, 2) for way in ("text", "2x", "5x", "full-kv")
    ]
    by_way = {(r["way"], r["passages"]): r for r in first}
    for row in first:
        assert row["passage_tokens"] == 64 and 0 < row["first_token_s"] <= row["answer_s"]
        assert 0 < row["floor_s"] < row["first_token_s"] and row["of_floor"] > 1, "no floor is undercut"
        assert row["sooner"] > 0 and (row["way"] != "text" or row["sooner"] == row["ended_sooner"] == 1)
    for k in (1, 2):
        text, two, five, whole = (by_way[way, k] for way in ("text", "2x", "5x", "full-kv"))
        assert text["source_tokens"] >= two["source_tokens"] == five["source_tokens"] == whole["source_tokens"]
        assert five["attended"] < two["attended"] < whole["attended"] <= text["attended"]
    assert [r["cold"] for r in tables["cold"]] == ["process", "disk", "warm"]
    assert tables["cold"][0]["answer_s"] > tables["cold"][2]["answer_s"]
    stepwise, drafted, *long = tables["decoding"]
    assert stepwise["tokens"] == drafted["tokens"] == stepwise["passes"] >= drafted["passes"] > 0
    assert [r["tokens"] for r in long] == [3, 3] and all(r["tokens_per_s"] > 0 for r in tables["decoding"])
    assert [r["in_flight"] for r in tables["serving"]] == [1, 2]
    assert all(r["times"] == pytest.approx(r["memory_per_s"] / r["text_per_s"]) for r in tables["serving"])
    assert [r["ratio"] for r in tables["indexing"]] == [2, 5] and all(r["of_prefill"] > 0 for r in tables["indexing"])
    sizes = {(r["codec"], r["ratio"]): r["bytes_per_source_token"] for r in tables["storage"]}
    assert sizes["int8", 5.0] < sizes["bf16", 5.0] < sizes["bf16", 2.0]
    assert [r["part"] for r in tables["cost"]] == list(suite.PARTS) and tables["cost"][0]["peak_mib"] > 0
    assert ("2 passages", "full-kv", 2, 2) in heard
    drawn = suite.pictures(tables)
    assert list(drawn) == ["first-token.svg"]
    assert {"text", "2x", "5x", "full-kv"} <= set(ET.fromstring(drawn["first-token.svg"]).itertext())


def test_an_unknown_part_is_refused(tiny_config):
    with pytest.raises(ConfigError, match="no part is called 'speed'"):
        suite.Plan(tiny_config, parts=("speed",))


def test_llama_cpp_reads_the_same_tokens(tiny_config, paths, tmp_path, monkeypatch):
    read = []

    class Llama:
        def __init__(self, path, n_ctx, n_threads, verbose):
            assert (path, verbose) == ("model.gguf", False) and n_ctx > 0 and n_threads > 0

        def reset(self):
            read.append([])

        def create_completion(self, ids, max_tokens, temperature, stream):
            read[-1] += ids
            yield from ({"choices": [{"text": "a"}]} for _ in range(max_tokens))

    with SacRag.index(paths, tmp_path / "a.lib", tiny_config, dtype="float32") as rag:
        monkeypatch.setitem(sys.modules, "llama_cpp", None)
        with pytest.raises(ConfigError, match="llama-cpp-python is not installed"):
            speed.llama_cpp(rag, "model.gguf")
        monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=Llama))
        way, ask = speed.llama_cpp(rag, "model.gguf"), AskConfig(k=2, max_new_tokens=3)
        hits = rag.retrieve(QUESTIONS[0], ask)
        took = [way(QUESTIONS[0], ask, hits) for _ in range(2)]
        text = rag.engine.tokenizer.decode(read[0])
        assert read[0] == read[1] and all(h.passage.text in text for h in hits) and QUESTIONS[0] in text
        assert [(t.tokens, t.passages, t.prompt_tokens) for t in took] == [(3, 2, len(read[0]))] * 2
        assert all(0 < t.first_s <= t.total_s for t in took)


def test_what_is_least_is_the_larger_of_moving_and_computing(tiny_config):
    from sac_rag.answer.engine import Engine

    machine = Machine("a", "", "cpu", 1, "float32", 100.0, 1000.0)
    assert machine.least(50.0, 100.0) == 0.5 and machine.least(5.0, 800.0) == 0.8
    backbone = Engine.shared(tiny_config.model, "sac", tiny_config.adapter, dtype="float32").method.backbone
    weights = sum(p.numel() for p in backbone.decoder.model.layers.parameters())
    head = backbone.config.vocab_size * backbone.width
    one, more = Work.of(backbone, 1), Work.of(backbone, 100, 50)
    layers, groups, dim = backbone.kv_shape
    assert one.bytes_moved == 4 * (weights + head + 2 * layers * groups * dim)
    assert more.bytes_moved - one.bytes_moved == 4 * 2 * layers * groups * dim * 149
    assert more.flops == 200 * weights + 2 * head + 4 * layers * 4 * dim * 100 * 100
    assert Work.of(backbone, 1, scored=False).bytes_moved == one.bytes_moved - 4 * head


def test_a_cpu_is_named_with_its_matrix_unit(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: Some Chip 9\nflags\t\t: fpu avx2 avx512f amx_bf16 amx_tile\n")
    assert cpu(path) == ("Some Chip 9", "amx_bf16 avx512f avx2")
    assert cpu(tmp_path / "none")[1] == ""
    path.write_text("Processor : odd\n")
    assert cpu(path)[1] == ""
    found = measure(torch.device("cpu"), torch.float32, quick=True, rounds=2)
    assert found.bytes_per_s > 0 < found.flops_per_s and found.threads == torch.get_num_threads()
    assert set(found.units.split()) <= set(machines.UNITS)


def test_choices_of_own_documents(tiny_config, paths, tmp_path):
    config = dataclasses.replace(tiny_config, passage_tokens=64)
    rows = choices(
        paths, tmp_path / "made", config, ratios=(2.0, 8.0), codecs=("bf16", "int8"), ks=(1, 2), questions=5, tokens=3,
        dtype="float32",
    )  # fmt: skip
    assert [(r["way"], r["codec"], r["passages"]) for r in rows] == [
        *(("text", "", k) for k in (1, 2)),
        *((way, codec, k) for way in ("2x", "8x") for codec in ("bf16", "int8") for k in (1, 2)),
    ]
    size = {(r["way"], r["codec"]): r["bytes_per_source_token"] for r in rows if r["codec"]}
    assert size["2x", "int8"] < size["2x", "bf16"] > 2 * size["8x", "bf16"] and size["8x", "int8"] < size["8x", "bf16"]
    for r in rows:
        assert r["questions"] == 5 and 0 <= r["f1"] <= 100 and r["first_token_s"] > 0
    assert len({r["found"] for r in rows if r["passages"] == 1}) == 1, "codec and ratio change nothing of what is found"
    assert rows[0]["found"] <= rows[1]["found"]
    drawn = suite.pictures({"choices": rows})
    assert list(drawn) == ["f1-by-bytes.svg", "f1-by-passages.svg", "f1-by-seconds.svg"]
    assert {"bf16", "int8", "text, 2 passages"} <= set(ET.fromstring(drawn["f1-by-bytes.svg"]).itertext())


def test_made_questions_have_their_answer_in_one_passage(tiny_config, paths, tmp_path):
    with SacRag.index(paths, tmp_path / "a.lib", tiny_config, dtype="float32") as rag:
        passages = rag.library.passages()
        found = made_questions(passages, 5)
        assert len(found) == 5 and made_questions(passages, 5) == found
        assert all(any(answer in p.text for p in passages) and answer not in question for question, answer in found)
        with pytest.raises(ConfigError, match="gave 3 questions, 4 are needed"):
            made_questions(passages[:3], 5)
