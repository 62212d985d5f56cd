"""Law 7: FAISS equals brute force, in scores as well as order; filters, BM25 and fusion against slow oracles."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from library_support import memory_of, passages_of

from sac_rag.bm25 import STOP, words
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import LibraryError
from sac_rag.library import vectors
from sac_rag.library.lexical import LexicalIndex
from sac_rag.library.library import Library
from sac_rag.records import Document, Hit, Passage

D = 24
TINY = AnchorKV.even(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([0]), 1)
VOCABULARY = [f"{a}{b}" for a in ("river", "stone", "cloud", "engine", "violin") for b in ("", "bed", "s", "let")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Library, list[Passage], np.ndarray]]:
    """240 passages in 12 documents; some vectors are equal, some opposite, and one group is nearly equal."""
    rng = np.random.default_rng(5)
    passages, vectors = [], {}
    base = rng.normal(size=(40, D))
    with Library.create(tmp_path_factory.mktemp("search") / "library", {}, dim=D) as library:
        for n in range(12):
            uri = f"doc{n}"
            texts = [" ".join(rng.choice(VOCABULARY, size=rng.integers(1, 12))) for _ in range(20)]
            own = [
                Passage(p.id, uri, p.ordinal, p.text, p.start, p.end, meta={"even": p.ordinal % 2 == 0, "n": p.ordinal})
                for p in passages_of(uri, texts)
            ]
            for p in own:
                v = base[rng.integers(40)] * rng.choice([0.5, 1.0, 7.0])
                vectors[p.id] = v if rng.random() < 0.5 else v + rng.normal(size=D) * 10.0 ** -rng.integers(0, 9)
            with library.transaction() as tx:
                meta = {"kind": ["manual", "letter", "report"][n % 3], "n": "document's"}
                tx.put(Document(uri, "", meta=meta), own, dict.fromkeys(vectors.keys() & {p.id for p in own}, TINY),
                       {p.id: vectors[p.id] for p in own})  # fmt: skip
            passages += own
        units = np.stack([vectors[p.id] / np.linalg.norm(vectors[p.id]) for p in passages]).astype(np.float32)
        yield library, passages, units


def brute(passages: list[Passage], units: np.ndarray, query: np.ndarray, keep: Any = None) -> list[tuple[str, float]]:
    q = (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
    scores = (units.astype(np.float64) * q).sum(axis=1)
    pairs = [(p.id, float(s)) for p, s in zip(passages, scores, strict=True) if keep is None or keep(p)]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def bm25(passages: list[Passage], text: str) -> dict[str, float]:
    """Lucene's BM25 (k1 1.5, b 0.75), word by word."""
    split = dict(zip((p.id for p in passages), words(p.text for p in passages), strict=True))
    mean = sum(map(len, split.values())) / len(split)
    frequency = Counter(w for s in split.values() for w in set(s))
    scores: dict[str, float] = {}
    for passage_id, own in split.items():
        count, score = Counter(own), 0.0
        for w in words([text])[0]:
            if count[w]:
                idf = math.log(1 + (len(split) - frequency[w] + 0.5) / (frequency[w] + 0.5))
                score += idf * count[w] / (count[w] + 1.5 * (0.25 + 0.75 * len(own) / mean))
        if score > 0:
            scores[passage_id] = score
    return scores


def greatest(passages: list[Passage], text: str) -> float:
    """The sum of what each word of a text gives at most."""
    split = [set(s) for s in words(p.text for p in passages)]
    counts = [sum(w in s for s in split) for w in words([text])[0]]
    return sum(math.log(1 + (len(split) - n + 0.5) / (n + 0.5)) for n in counts) or 1.0


def pairs(hits: list[Hit], by: str = "dense") -> list[tuple[str, float]]:
    return [(h.passage.id, getattr(h, by)) for h in hits]


@pytest.mark.parametrize("k", [1, 2, 7, 50, 240, 1000])
def test_dense_equals_brute_force_in_scores_and_order(world: Any, k: int) -> None:
    library, passages, units = world
    rng = np.random.default_rng(k)
    for query in [*rng.normal(size=(10, D)), *units[:10], -units[3], units[7] * 1e-20, units[8] * 1e20]:
        hits = library.search(query, None, k, mode="dense")
        assert pairs(hits) == brute(passages, units, query.astype(np.float64))[:k]
        assert all(h.score == min(1.0, max(0.0, h.dense)) and h.lexical is h.fused is None for h in hits)


def test_reopened_and_rebuilt_indexes_answer_alike(world: Any) -> None:
    library, passages, units = world
    faiss_file = next(library.path.glob("faiss-*.idx"))
    good, query = faiss_file.read_bytes(), np.random.default_rng(1).normal(size=D)
    expected = brute(passages, units, query)[:20]
    try:
        for content in (good, good[:-1], b"", good[:50] + b"\xff" + good[51:]):
            faiss_file.write_bytes(content)
            with Library.open(library.path) as reader:
                assert pairs(reader.search(query, None, 20, mode="dense")) == expected
        faiss_file.unlink()
        with Library.open(library.path) as reader:
            assert pairs(reader.search(query, None, 20, mode="dense")) == expected
            assert "rebuild" in reader.verify()[0]
    finally:
        faiss_file.write_bytes(good)
    assert library.verify() == []


def test_indexes_are_parsed_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS has one limit on what it parses, for the whole process."""
    faiss, limits, failures = vectors._faiss(), [], []
    before, units = faiss.get_deserialization_vector_byte_limit(), np.eye(D, dtype=np.float32)
    parse = faiss.deserialize_index

    def slow(data: np.ndarray) -> Any:
        time.sleep(0.05)
        limits.append(faiss.get_deserialization_vector_byte_limit() - len(data))
        return parse(data)

    def work(count: int) -> None:
        try:
            data = vectors.VectorIndex.build(D, range(count), units[:count]).serialize()
            assert vectors.VectorIndex.parse(data, D, count).keys().tolist() == list(range(count))
        except BaseException as e:
            failures.append(e)

    monkeypatch.setattr(faiss, "deserialize_index", slow)
    threads = [threading.Thread(target=work, args=(count,)) for count in (1, 8, 24)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == [] and len(set(limits)) == 1
    assert faiss.get_deserialization_vector_byte_limit() == before


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ({"document": "doc3"}, lambda p: p.document == "doc3"),
        ({"document": ["doc3", "doc5", "nope"]}, lambda p: p.document in ("doc3", "doc5")),
        ({"kind": "letter"}, lambda p: int(p.document[3:]) % 3 == 1),
        ({"kind": ("letter", "manual"), "n": 4}, lambda p: int(p.document[3:]) % 3 < 2 and p.ordinal == 4),
        ({"even": True, "document": {"doc1", "doc2"}}, lambda p: p.ordinal % 2 == 0 and p.document in ("doc1", "doc2")),
        ({"n": "document's"}, lambda p: False),  # a passage's own key hides its document's
        ({"absent": None, "document": "doc0"}, lambda p: p.document == "doc0"),
        ({"absent": "x"}, lambda p: False),
        ({"kind": []}, lambda p: False),
        ({}, lambda p: True),
    ],
)
def test_filters_hold_in_every_mode(world: Any, where: dict[str, Any], keep: Any) -> None:
    library, passages, units = world
    query, text = np.random.default_rng(2).normal(size=D), "stone violinlet river"
    assert pairs(library.search(query, None, 15, mode="dense", where=where)) == brute(passages, units, query, keep)[:15]
    allowed = {p.id for p in passages if keep(p)}
    lexical = {i: s for i, s in bm25(passages, text).items() if i in allowed}
    found = library.search(None, text, 500, mode="lexical", where=where)
    assert {h.passage.id for h in found} == set(lexical)
    assert {h.passage.id for h in library.search(query, text, 500, where=where)} <= allowed


def test_lexical_equals_bm25_word_by_word(world: Any) -> None:
    library, passages, _ = world
    for text in ("stone", "the violin of the river", "Engines ENGINE engine", "cloudlet stonebed unknownword", "a"):
        expected = bm25(passages, text)
        for k in (5, 500):
            hits = library.search(None, text, k, mode="lexical")
            assert len(hits) == min(k, len(expected))
            assert np.allclose([h.lexical for h in hits], [expected[h.passage.id] for h in hits], rtol=1e-5)
            assert np.allclose([h.lexical for h in hits], sorted(expected.values(), reverse=True)[:k], rtol=1e-5)
            order = [(-h.lexical, h.passage.id) for h in hits]
            assert order == sorted(order)
            assert all(h.dense is h.fused is None for h in hits)
            most = greatest(passages, text)
            assert all(0 < h.score <= 1 and h.score == pytest.approx(h.lexical / most, rel=1e-5) for h in hits)


def test_lexical_scores_are_those_of_bm25s_bit_by_bit() -> None:
    import bm25s
    from bm25s.stopwords import STOPWORDS_EN
    from safetensors.numpy import load

    rng = np.random.default_rng(7)
    vocabulary = [f"word{i}" for i in range(90)] + ["stones", "the"]
    texts = [" ".join(rng.choice(vocabulary, size)) for size in rng.integers(0, 60, 200)]
    split = words(texts)
    terms = sorted({w for text in split for w in text})
    number = {w: i for i, w in enumerate(terms)}
    theirs = bm25s.BM25(method="lucene", backend="numpy", csc_backend="numpy")
    ids = [[number[w] for w in text] for text in split]
    theirs.index((ids, number), create_empty_token=False, show_progress=False)
    index = LexicalIndex.build(range(len(texts)), texts)
    ours = load(index.serialize())
    assert set(STOPWORDS_EN) == STOP and ours["vocabulary"].tobytes().decode().split("\n") == terms
    for name in ("data", "indices", "indptr"):
        assert ours[name].dtype == theirs.scores[name].dtype
        assert ours[name].tobytes() == theirs.scores[name].tobytes()
    for text in ("word3 stone word3", "word89"):
        found = theirs.get_scores_from_ids([number[w] for w in words([text])[0]])
        assert dict(index.search(text, None)) == {i: float(s) for i, s in enumerate(found) if s > 0}


def test_hybrid_is_reciprocal_rank_fusion(world: Any) -> None:
    library, passages, units = world
    for seed, text in enumerate(("stone violin", "riverbed", "nothing of the sort", "cloud engine stones")):
        query = np.random.default_rng(seed).normal(size=D)
        dense = [i for i, _ in brute(passages, units, query)[:100]]
        lexical = [h.passage.id for h in library.search(None, text, 100, mode="lexical")]
        scores: dict[str, float] = {}
        for ranking in (dense, lexical):
            for rank, i in enumerate(ranking, 1):
                scores[i] = scores.get(i, 0.0) + 1 / (60 + rank)
        expected = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:12]
        hits = library.search(query, text, 12)
        assert pairs(hits, "fused") == expected
        cosine = dict(brute(passages, units, query))
        assert all(h.score == pytest.approx(max(0.0, cosine[h.passage.id]), abs=1e-6) for h in hits)
        assert all((h.dense is not None) == (h.passage.id in dense) for h in hits)
        assert all((h.lexical is not None) == (h.passage.id in lexical) for h in hits)
        assert pairs(library.search(query, text, 12), "fused") == expected


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_min_score_is_a_cosine_in_every_mode(world: Any, mode: str) -> None:
    library, passages, units = world
    query, text = units[11].astype(np.float64), "stone cloud violin"
    cosine = dict(brute(passages, units, query))
    plain = library.search(query, text, 240, mode=mode)
    kept = library.search(query, text, 240, mode=mode, min_score=0.3)
    assert [h.passage.id for h in kept] == [h.passage.id for h in plain if cosine[h.passage.id] >= 0.3]
    assert 0 < len(kept) < len(plain)
    assert library.search(query, text, 240, mode=mode, min_score=1.1) == []


def test_arguments_that_do_not_fit_are_named(world: Any) -> None:
    library, _, units = world
    q = units[0]
    for arguments, message in (
        ((q, "x", 0, {}), "k is 0"),
        ((q, "x", 3, {"mode": "fuzzy"}), "'fuzzy'"),
        ((None, "x", 3, {}), "vector"),
        ((q, None, 3, {}), "text"),
        ((None, "x", 3, {"mode": "lexical", "min_score": 0.1}), "vector"),
        ((q[:5], "x", 3, {}), r"\(5,\).*\(24,\)"),
        ((q * 0, "x", 3, {}), "length 0"),
        ((q * np.nan, "x", 3, {}), "length nan"),
    ):
        *plain, named = arguments
        with pytest.raises(LibraryError, match=message):
            library.search(*plain, **named)


def test_an_empty_library_finds_nothing(library: Library, folder: Path) -> None:
    assert library.search(np.ones(8), "x", 3) == []
    with library.transaction() as tx:
        p = passages_of("a", ["..."])  # no words at all
        tx.put(Document("a", ""), p, {p[0].id: memory_of(p[0].id)}, {p[0].id: np.ones(8)})
    assert library.search(None, "...", 3, mode="lexical") == []
    assert len(library.search(np.ones(8), "x", 3)) == 1
    with library.transaction() as tx:
        tx.remove_document("a")
    with Library.open(folder) as reader:
        assert reader.search(np.ones(8), "x", 3) == []
    assert library.verify() == []


def test_words_fold_case_stem_and_split_ideographs() -> None:
    assert words(["The Engines RUNNING"])[0][0] == words(["engine"])[0][0]
    assert words(["東京タワー and 塔"])[0][:2] == ["東", "京"]
    assert words(["Straße"]) == words(["STRASSE"])
    assert words(["", "the of"]) == [[], []]


def copies(library: Library, texts: dict[str, str], near: float = 0.0) -> None:
    with library.transaction() as tx:
        for n, (uri, text) in enumerate(texts.items()):
            (p,) = passages_of(uri, [text])
            vector = np.eye(8)[0] + near * n * np.eye(8)[1]
            tx.put(Document(uri, ""), [p], {p.id: memory_of(p.id)}, {p.id: vector})


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_copies_of_one_text_take_one_place(library: Library, mode: str) -> None:
    same = {
        f"copy{n:03}": ("The Gate closes  at nine.", "the gate closes at nine.\n", "The gate\tCLOSES at nine.")[n % 3]
        for n in range(300)
    }
    others = {
        "ferry": "The gate of the ferry.",
        "lab": "A gate in the lab closes.",
        "tower": "Closes the tower its gate?",
    }
    copies(library, {**same, **others}, near=1e-3)
    query = np.eye(8)[0]
    found = library.search(query, "gate closes nine", 4, mode=mode, distinct=True)
    assert found[0].passage.document.startswith("copy")
    assert sorted(h.passage.document for h in found[1:]) == sorted(others)
    every = library.search(query, "gate closes nine", 4, mode=mode)
    assert all(h.passage.document.startswith("copy") for h in every)
    assert len(library.search(query, "gate closes nine", 400, mode=mode, distinct=True)) == 4


def test_a_filter_goes_before_copies(library: Library) -> None:
    copies(library, {"a": "One text.", "b": "One text.", "c": "Another text."})
    (only,) = library.search(None, "text one", 3, mode="lexical", where={"document": ["b"]}, distinct=True)
    assert only.passage.document == "b"


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Die Infor-\n  mation kam.", "Information"),
        ("a soft\u00adhyphen here", "softhyphen"),
        ("zero\u200bwidth and\ufeff mark", "zerowidth"),
        ("na\u00efve", "naive"),
        ("\u0391\u03b8\u03ae\u03bd\u03b1", "\u03b1\u03b8\u03b7\u03bd\u03b1"),
        ("\u0401\u043b\u043a\u0430", "\u0435\u043b\u043a\u0430"),
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
        ("\u0645\u064f\u062d\u0645\u0651\u062f", "\u0645\u062d\u0645\u062f"),
        ("\ufb01ne \uff21\uff22", "fine ab"),
    ],
)
def test_words_are_found_in_other_spellings(text: str, query: str) -> None:
    assert set(words([query])[0]) <= set(words([text])[0])


def test_words_that_differ_stay_apart() -> None:
    assert words(["\u043c\u043e\u0439"]) != words(["\u043c\u043e\u0438"])  # the breve makes another letter
    assert words(["well-known"])[0] == ["well", "known"] and words(["1-\n2"])[0] == ["1", "2"]
    assert words(["\u304c"]) != words(["\u304b"])  # as the voiced mark does
    assert words(["\u0939\u093f\u0928\u094d\u0926\u0940"])[0] == ["\u0939\u093f\u0928\u094d\u0926\u0940"]
