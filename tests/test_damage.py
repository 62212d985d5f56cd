"""Damage end to end: what is sound still answers, with a notice, and what follows from the rest is made again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from sac_rag import AskConfig, SacRag
from sac_rag.config import fingerprint
from sac_rag.errors import ConfigError, GateError, LibraryMismatch, MemoryDamaged
from sac_rag.library.library import Library
from sac_rag.pipeline import repair
from sac_rag.records import Document
from tests.indexing.test_workers import sentences

SHORT = {"max_new_tokens": 4, "k": 3, "search": "lexical"}
QUESTION = "Who met the birch of house 3?"


@pytest.fixture
def path(tmp_path, tiny_config) -> Path:
    """Four documents, a segment each."""
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, create=True) as rag:
        for i in range(4):
            rag.put([Document(f"d{i}", sentences(i, 6))])
    return tmp_path / "a.lib"


def zeroed(path: Path, uri: str) -> None:
    """Store memories of zeros for a document, as a broken writer would: every checksum is right."""
    with Library.open(path, write=True) as library:
        passages = library.passages(uri)
        ids = [p.id for p in passages]
        kept = zip(ids, library.load(ids), strict=True)
        memories = {
            i: dataclasses.replace(m, keys=torch.zeros_like(m.keys), values=torch.zeros_like(m.values)) for i, m in kept
        }
        vectors = dict(zip(ids, library.vectors(ids), strict=True))
        with library.transaction() as tx:
            tx.remove_document(uri)
            tx.put(Document(uri, ""), passages, memories, vectors)
        assert library.verify() == []


def test_a_missing_segment_costs_its_passages_and_repair_makes_them_again(path):
    with SacRag.open(path) as rag:
        first = rag.ask(QUESTION, **SHORT)
        assert {h.passage.document for h in first.sources} == {"d3"} and first.notices == ()
    (path / "seg-4.safetensors").unlink()
    with SacRag.open(path) as rag:
        answer = rag.ask(QUESTION, **SHORT)
        assert answer.sources and "d3" not in {h.passage.document for h in answer.sources}
        assert any("1 documents (d3)" in notice and "sac repair" in notice for notice in answer.notices)
        assert any("'d3'" in line for line in rag.library.verify())
        with pytest.raises(MemoryDamaged, match="'d3'"):
            rag.library.load(rag.library.passage_ids("d3"))
    report = repair(path)
    assert report.memories > 1 and report.lost == [] and report.vectors == 0
    with SacRag.open(path) as rag:
        assert rag.library.verify() == [] and rag.mismatches() == []
        answer = rag.ask(QUESTION, **SHORT)
        assert (answer.text, answer.sources, answer.notices) == (first.text, first.sources, ())
    assert repair(path).problems == []


def test_a_rotten_byte_is_passed_over_while_a_question_is_answered(path):
    with SacRag.open(path) as rag:
        found = rag.retrieve(QUESTION, AskConfig(k=1, search="lexical"))[0].passage
    segment = path / "seg-4.safetensors"
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2 :: 64] = bytes(255 - b for b in raw[len(raw) // 2 :: 64])
    segment.write_bytes(raw)
    with SacRag.open(path) as rag:
        answer = rag.ask(QUESTION, **{**SHORT, "k": 8})
        damaged = [i for i in rag.library.passage_ids("d3") if i not in {h.passage.id for h in answer.sources}]
        assert answer.sources and damaged
        assert any("sac verify" in notice for notice in answer.notices)
        text = rag.ask(QUESTION, hits=rag.retrieve(QUESTION, AskConfig(k=1)), text=True, max_new_tokens=2)
        assert text.sources
    assert repair(path).memories >= len(damaged)
    with SacRag.open(path) as rag:
        assert rag.retrieve(QUESTION, AskConfig(k=1, search="lexical"))[0].passage == found
        assert rag.library.verify() == [] and rag.mismatches() == []


def test_repair_is_refused_with_another_adapter(path, tiny_config, tmp_path, monkeypatch):
    (path / "seg-2.safetensors").unlink()
    from sac_rag.models import adapters

    monkeypatch.setattr("sac_rag.answer.engine.adapter_sha256", lambda folder: "0" * 64)
    with pytest.raises(LibraryMismatch, match="adapter_sha256"):
        repair(path)
    assert adapters.adapter_sha256
    monkeypatch.undo()
    assert repair(path).memories > 0


def test_the_gate_judges_each_library_and_each_generation(path, tmp_path):
    with SacRag.open(path) as rag:
        assert rag.ask(QUESTION, **SHORT).sources
    other = shutil.copytree(path, tmp_path / "b.lib")
    for uri in ("d0", "d1", "d2", "d3"):
        zeroed(other, uri)
    with SacRag.open(other) as rag, pytest.raises(GateError, match="stored error is 1"):
        rag.ask(QUESTION, **SHORT)
    zeroed(path, "d0")  # the first passage of a generation that did not pass yet
    with SacRag.open(path) as rag, pytest.raises(GateError, match="stored error is 1"):
        rag.ask(QUESTION, **SHORT)


class Coarse:
    """A codec that loses a third of what it stores, as `transform` may with a short passage."""

    def encode(self, memory):
        return {"memory": memory}

    def decode(self, stored):
        memory = stored["memory"]
        spread = [3.0 * getattr(memory, n).float().std() / 2.5 for n in ("keys", "values")]
        keys, values = ((t.float() / s).round() * s for t, s in zip((memory.keys, memory.values), spread, strict=True))
        return dataclasses.replace(memory, keys=keys, values=values)


@pytest.mark.parametrize("sound", [True, False])
def test_what_a_codec_loses_is_no_error(path, monkeypatch, sound):
    """A library of the default codec with passages of two sentences was refused."""
    from sac_rag.answer import gate

    load, coarse, lost = Library.load, Coarse(), []

    def stored(library, ids):
        made = load(library, ids)
        kept = [coarse.decode(coarse.encode(m)) for m in made]
        lost.extend(
            float((a.keys.float() - b.keys).norm() / a.keys.float().norm()) for a, b in zip(made, kept, strict=True)
        )
        return kept if sound else [dataclasses.replace(m, keys=-m.keys) for m in kept]

    monkeypatch.setattr(Library, "load", stored)
    monkeypatch.setattr(Library, "codec", lambda library: coarse)
    with SacRag.open(path) as rag:
        if sound:
            assert rag.ask(QUESTION, **SHORT).sources and rag.mismatches() == []
        else:
            with pytest.raises(GateError, match="stored error is 2"):
                rag.ask(QUESTION, **SHORT)
            assert len(rag.mismatches()) == rag.stats().passages
    assert min(lost) > gate.STORED


def test_a_pass_is_noted_with_library_and_generation(path, tmp_path, monkeypatch):
    from sac_rag.answer import gate

    measured = []
    for name in ("_rotation", "_stored"):
        whole = getattr(gate, name)
        monkeypatch.setattr(gate, name, lambda *a, n=name, w=whole: measured.append(n) or w(*a))
    for _ in range(2):
        with SacRag.open(path) as rag:
            rag.ask(QUESTION, **SHORT)
    assert measured == ["_rotation", "_stored"]
    with SacRag.open(path, write=True) as rag:
        note = json.loads(gate._note(rag.engine, rag.library).read_text())
        assert (note["library"], note["generation"]) == (fingerprint({"library": rag.library.head.library})[:32], 4)
        assert rag.library.head.library not in gate._note(rag.engine, rag.library).read_text()
        rag.put([Document("new", sentences(7, 3))])
        rag.ask(QUESTION, **SHORT)
    assert measured == ["_rotation", "_stored", "_stored"]


def test_memories_are_compared_with_what_the_model_makes(path):
    zeroed(path, "d2")
    with SacRag.open(path) as rag:
        lines = rag.mismatches()
        ids = rag.library.passage_ids("d2")
        assert len(lines) == len(ids) and all(i in line for i, line in zip(ids, lines, strict=True))
        count = rag.stats().passages
        assert len(rag.mismatches(count)) == len(ids) and len(rag.mismatches(count - 1)) >= len(ids) - 1
        assert rag.mismatches(1) == rag.mismatches(1)
        with pytest.raises(ConfigError, match="sample of 0"):
            rag.mismatches(0)
