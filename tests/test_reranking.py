"""Reranking: a cross-encoder, or any function, orders what the search has found; nothing is fetched for it."""

from __future__ import annotations

import math

import pytest

from sac_rag import AskConfig, Document, SacRag
from sac_rag.errors import ConfigError, ModelError
from sac_rag.models.reranker import CrossEncoder

TEXTS = {
    "oil.txt": "The lamp of the harbour burned oil until 1907.",
    "gas.txt": "The lamp of the harbour has burned gas since 1907.",
    "dog.txt": "The lamp was guarded by a dog of the harbour.",
    "cat.txt": "A cat slept below the lamp of the harbour.",
}
QUESTION = "What did the lamp of the harbour burn?"


@pytest.fixture
def rag(tiny_config, tmp_path):
    with SacRag.open(tmp_path / "lib", config=tiny_config, create=True) as made:
        made.put([Document(uri, text) for uri, text in TEXTS.items()])
        yield made


@pytest.fixture(scope="module")
def cross_encoder(tiny_embedder, tmp_path_factory):
    """A random one, of the embedder's vocabulary."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("rerankers") / "tiny-cross-encoder"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_embedder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=1,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def uris(hits):
    return [hit.passage.document for hit in hits]


def by_name(question, texts):
    """Prefers dogs, then cats."""
    return [2.0 * ("dog" in t) + ("cat" in t) for t in texts]


def test_any_function_orders_what_was_found(rag):
    found = uris(rag.retrieve(QUESTION, AskConfig(k=4)))
    rag.reranker = by_name
    hits = rag.retrieve(QUESTION, AskConfig(k=4))
    others = [u for u in found if u not in ("dog.txt", "cat.txt")]
    assert uris(hits) == ["dog.txt", "cat.txt", *others], "equal ones keep the order of the search"
    assert [hit.reranked for hit in hits] == [2.0, 1.0, 0.0, 0.0]
    assert uris(rag.ask(QUESTION, k=1, max_new_tokens=2).sources) == ["dog.txt"]


def test_it_chooses_from_candidates(rag):
    """Of two candidates the better; what the search ranks behind them is not seen."""
    seen = []
    rag.reranker = lambda question, texts: [seen.append(texts) or 0.0, 1.0][: len(texts)]
    first, second = uris(rag.retrieve(QUESTION, AskConfig(k=2, candidates=2)))
    rag.reranker = None
    assert [second, first] == uris(rag.retrieve(QUESTION, AskConfig(k=2)))
    assert [len(texts) for texts in seen] == [2]


@pytest.mark.parametrize("scores", [[1.0], [math.nan] * 4, [1.0, 2.0, 3.0, math.inf]])
def test_scores_that_order_nothing_are_refused(rag, scores):
    rag.reranker = lambda question, texts: scores
    with pytest.raises(ConfigError, match="the reranker gave"):
        rag.retrieve(QUESTION, AskConfig(k=4))


def test_a_cross_encoder_scores_as_sentence_transformers_says(rag, cross_encoder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    hits = rag.retrieve(QUESTION, AskConfig(k=4, rerank=str(cross_encoder)))
    model = sentence_transformers.CrossEncoder(str(cross_encoder), device="cpu")
    want = model.predict([(QUESTION, TEXTS[u]) for u in uris(hits)])
    assert [hit.reranked for hit in hits] == pytest.approx(want.tolist(), abs=1e-5)
    assert sorted(want, reverse=True) == pytest.approx(want.tolist(), abs=1e-6)


def test_both_frameworks_retrievers_take_it(rag, cross_encoder):
    langchain = pytest.importorskip("langchain_sac")
    llama_index = pytest.importorskip("llama_index.retrievers.sac")
    name = str(cross_encoder)
    want = uris(rag.retrieve(QUESTION, AskConfig(k=3, rerank=name)))
    documents = langchain.SacRetriever(rag=rag, k=3, rerank=name).invoke(QUESTION)
    assert [d.metadata["document"] for d in documents] == want
    nodes = llama_index.SacRetriever(rag, 3, rerank=name).retrieve(QUESTION)
    assert [n.node.metadata["document"] for n in nodes] == want
    with pytest.raises(ConfigError, match="mmr"):
        langchain.SacRetriever(rag=rag, k=3, rerank=name, search_type="mmr").invoke(QUESTION)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: "nobody/no-such-reranker", "not in the local cache"),
        (lambda folder: str(folder / "missing"), "no reranker at"),
        (lambda folder: str(folder), "no config.json"),
    ],
)
def test_what_is_no_reranker_is_told_and_nothing_is_fetched(rag, tmp_path, make, says, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=says):
        rag.ask(QUESTION, rerank=make(tmp_path / "empty"))


def test_pickled_weights_are_not_read(cross_encoder, tmp_path):
    """A folder with a pickle in place of safetensors is refused, whatever it would give."""
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(cross_encoder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        CrossEncoder(str(folder))
