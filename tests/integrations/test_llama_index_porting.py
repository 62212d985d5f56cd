"""As LlamaIndex's users write it: folders by name, copies, diverse results, other stores beside the library."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.embeddings.sac import SacEmbedding
from llama_index.ingestion.sac import SacCompressor
from llama_index.llms.sac import SacLLM
from llama_index.postprocessor.sac import SacNodePostprocessor
from llama_index.response_synthesizers.sac import SacSynthesizer
from llama_index.retrievers.sac import SacRetriever
from llama_index.vector_stores.sac import SacVectorStore

from sac_rag import SacRag
from sac_rag.errors import ConfigError

from .conftest import TEXTS
from .llama_index_chat import chatting

QUESTION = "How many miles does the Erie Canal span?"


@pytest.fixture
def rag(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> SacRag:
    return chatting(rag, monkeypatch)


def test_a_folder_may_stand_in_place_of_an_open_library(rag: SacRag) -> None:
    path = rag.library.path
    assert SacLLM(str(path), max_tokens=2).complete("Hi").text
    assert len(SacRetriever(path, similarity_top_k=2).retrieve(QUESTION)) == 2
    assert len(SacEmbedding(str(path)).get_query_embedding("x")) == rag.embedder.dim
    with pytest.raises(ValueError, match="give one"):
        SacLLM(str(path), library=str(path))


def test_a_typo_is_no_setting(rag: SacRag) -> None:
    for wrong in ("max_new_tokens", "model", "temprature"):
        with pytest.raises(ConfigError, match=f"'{wrong}'.*max_tokens"):
            SacLLM(rag, **{wrong: 1})
    with pytest.raises(ConfigError, match="k is 3 and similarity_top_k 4"):
        SacRetriever(rag, 3, similarity_top_k=4)
    with pytest.raises(ConfigError, match="regex"):
        SacLLM(rag, where={"a": {"$regex": "b"}})
    for k in (0, -1, True, 1.5):
        with pytest.raises(ConfigError, match="k is"):
            SacRetriever(rag, k)  # type: ignore[arg-type]
    again = SacLLM.from_dict(SacLLM(rag, max_tokens=7, where={"kind": "c"}).to_dict())
    assert (again.max_tokens, again.where, again.library) == (7, {"kind": "c"}, str(rag.library.path))


def test_used_components_are_copied_and_pickled(rag: SacRag, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(rag.library.path)
    node = NodeWithScore(node=TextNode(text="An otter swims."))
    made: list[tuple[Any, Any]] = [
        (SacLLM(library=path, max_tokens=3), lambda c: c.complete("Hi").text),
        (SacRetriever.from_library(path, 2), lambda c: [n.node.node_id for n in c.retrieve(QUESTION)]),
        (SacEmbedding(library=path), lambda c: c.get_query_embedding("x")),
        (SacNodePostprocessor(library=path), lambda c: [n.node.sac_tag for n in c.postprocess_nodes([node])]),
        (SacVectorStore(library=path), lambda c: [n.node_id for n in c.get_nodes()]),
        (SacLLM(rag, max_tokens=3), lambda c: c.complete("Hi").text),
        (SacRetriever(rag, 2), lambda c: [n.node.node_id for n in c.retrieve(QUESTION)]),
    ]
    for component, use in made:
        want = use(component)
        for again in (copy.deepcopy(component), pickle.loads(pickle.dumps(component))):
            assert use(again) == want
            del again
    assert "Exception ignored" not in capfd.readouterr().err


def test_cut_offs_mean_what_they_say(rag: SacRag) -> None:
    (query,) = rag.embed([QUESTION], kind="query")
    for search in ("hybrid", "dense"):
        found = SacRetriever(rag, 3, search=search).retrieve(QUESTION)
        cosines = rag.library.vectors([n.node.node_id for n in found]) @ query
        assert [n.score for n in found] == pytest.approx([max(0.0, float(c)) for c in cosines], abs=1e-5)
        middle = sorted(float(n.score or 0) for n in found)[1]
        kept = SimilarityPostprocessor(similarity_cutoff=middle).postprocess_nodes(found)
        assert len(kept) == 2 and all((n.score or 0) >= middle for n in kept)


def test_nothing_found_is_no_answer(rag: SacRag) -> None:
    engine = RetrieverQueryEngine(SacRetriever(rag, where={"kind": {"$gt": "x"}}), SacSynthesizer(rag))
    assert str(engine.query(QUESTION)) == "Empty Response"
    said = SacSynthesizer(rag, empty_response="The passages do not say.")
    assert (
        str(RetrieverQueryEngine(SacRetriever(rag, where={"kind": "x"}), said).query(QUESTION)) == said._empty_response
    )


def test_a_store_searches_for_diversity(rag: SacRag) -> None:
    store = SacVectorStore(rag)
    alike = [f"The heron of pond {n} waits in shallow water." for n in range(4)]
    store.add([TextNode(id_=f"n{i}", text=t) for i, t in enumerate([*alike, "Granite is a hard stone."])])

    def ids(mode: VectorStoreQueryMode, **more: Any) -> list[str]:
        query = VectorStoreQuery(query_str="herons in water", similarity_top_k=2, mode=mode, **more)
        return store.query(query).ids or []

    dense = ids(VectorStoreQueryMode.DEFAULT)
    assert ids(VectorStoreQueryMode.MMR, mmr_threshold=1.0) == dense
    diverse = ids(VectorStoreQueryMode.MMR, mmr_threshold=0.0)
    assert diverse[0] == dense[0] and set(diverse) != set(dense)
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model())
    by_index = index.as_retriever(similarity_top_k=2, vector_store_query_mode="mmr", vector_store_kwargs={})
    assert len(by_index.retrieve("herons in water")) == 2


def test_a_store_says_whether_it_is_empty_and_how_it_is_loaded(
    tiny_config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, kept = tmp_path / "a.lib", str(tmp_path / "storage")
    store = SacVectorStore.from_library(folder, tiny_config)
    assert store.count() == 0 and not store.rag.library.writable
    documents = [Document(text=text, doc_id=name) for name, text in TEXTS.items()]
    context = store.storage_context()
    VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=store.embed_model())
    assert store.count() == 3
    with caplog.at_level(logging.WARNING):
        context.persist(kept)
    assert "SacVectorStore.from_library(" in caplog.text and str(folder) in caplog.text
    store.rag.close()
    again = SacVectorStore.from_library(folder)
    assert again.count() == 3
    loaded = StorageContext.from_defaults(persist_dir=kept, vector_store=again)
    index = load_index_from_storage(loaded, embed_model=again.embed_model())
    (found,) = index.as_retriever(similarity_top_k=1).retrieve(TEXTS["canal.md"])
    assert found.node.get_content() == TEXTS["canal.md"]


def test_an_index_without_its_docstore_adds_nothing_twice(rag: SacRag) -> None:
    long = " ".join(f"Member {i} pays {i} euros in May." for i in range(40))
    store = SacVectorStore(rag)
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    made = {"embed_model": store.embed_model(), "transformations": [splitter]}
    documents = [Document(text="The gate closes at nine.", doc_id="a"), Document(text=long, doc_id="b")]
    VectorStoreIndex.from_documents(documents, storage_context=store.storage_context(), **made)
    before = sorted(n.get_content() for n in store.get_nodes())
    count = store.count()
    assert count > 4
    for _ in range(2):
        index = VectorStoreIndex.from_vector_store(store, **made)
        index.refresh_ref_docs(documents)
        assert store.count() == count and sorted(n.get_content() for n in store.get_nodes()) == before
    index = VectorStoreIndex.from_vector_store(store, **made)
    index.refresh_ref_docs([Document(text="The gate closes at TEN.", doc_id="a")])
    assert [n.get_content() for n in store.get_nodes() if n.ref_doc_id == "a"] == ["The gate closes at TEN."]
    twice = [TextNode(text="The same.", id_=i) for i in ("one", "two")]
    store.add(twice)
    assert len(store.get_nodes(["one", "two"])) == 2, "nodes of no document, or given together, all stay"


def test_two_workers_that_search_do_not_lock_each_other_out(rag: SacRag) -> None:
    path = str(rag.library.path)
    SacVectorStore(rag).add([TextNode(id_="n", text="A heron waits.")])
    rag.close()
    one = SacVectorStore.from_library(path)
    assert len(one.get_nodes()) == 1
    code = "import sys; from sac_rag.library.library import Library; Library.open(sys.argv[1], write=True).close()"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = SacVectorStore.from_library(path)
    one.add([TextNode(id_="m", text="An otter swims.")])
    two.add([TextNode(id_="o", text="A crane flies.")])  # the same process shares
    assert sorted(n.node_id for n in one.get_nodes()) == ["m", "n", "o"]
    assert "LibraryLocked" in subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True).stderr
    one.rag.close()
    two.rag.close()


def test_a_step_beside_another_store_forgets_what_was_edited_and_deleted(rag: SacRag) -> None:
    long = " ".join(f"Member {i} pays {i} euros in May." for i in range(12))
    docstore, compressor = SimpleDocumentStore(), SacCompressor(rag)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), compressor, SacEmbedding(rag)],
        vector_store=SimpleVectorStore(),
        docstore=docstore,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )

    def stored() -> dict[str, set[str]]:
        out: dict[str, set[str]] = {}
        for node in SacVectorStore(rag).get_nodes():
            out.setdefault(node.ref_doc_id or "", set()).add(node.get_content())
        return out

    def version(**texts: str) -> list[Document]:
        return [Document(text=text, doc_id=name) for name, text in texts.items()]

    pipeline.run(documents=version(a="The code is 1111.", b=long, c="A heron waits."))
    assert stored()["a"] == {"The code is 1111."} and len(stored()["b"]) > 1
    pipeline.run(documents=version(a="The code is 2222.", b=long, c="A heron waits."))
    assert stored()["a"] == {"The code is 2222."} and len(stored()["b"]) > 1
    before = stored()["b"]
    pipeline.run(documents=version(a="The code is 2222.", b=long + " Member 99 pays nothing."))
    assert any("Member 99" in t for t in stored()["b"]) and stored()["b"] != before
    assert compressor.sync(docstore) == ["c"] and set(stored()) == {"a", "b"}
    assert compressor.sync(docstore) == []
    assert len(rag.library.documents()) == 3 + len(SacVectorStore(rag).get_nodes()), "other documents stay"
    # Nodes of one version may come in several calls.
    nodes = SentenceSplitter(chunk_size=64, chunk_overlap=0)(version(d=long))
    for node in nodes:
        compressor([node])
    assert len(stored()["d"]) == len(nodes)


def test_what_an_index_hands_on_to_its_store_counts(rag: SacRag) -> None:
    store = SacVectorStore(rag)
    texts = ["The canal is long.", "The canal is long indeed.", "A rooster crossed the bridge."]
    store.add([TextNode(id_=str(n), text=text) for n, text in enumerate(texts)])
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model())

    def ids(**given: Any) -> list[str]:
        retriever = index.as_retriever(similarity_top_k=2, vector_store_query_mode="mmr", vector_store_kwargs=given)
        return [n.node.node_id for n in retriever.retrieve(texts[0])]

    assert ids(mmr_threshold=1.0) == ["0", "1"]
    assert ids(mmr_threshold=0.01) == ["0", "2"]
    assert ids(mmr_threshold=0.01, mmr_prefetch_k=2) == ids(mmr_threshold=0.01, mmr_prefetch_factor=1) == ["0", "1"]
    with pytest.raises(ValueError, match="a query takes no 'threshold'; it takes mmr_threshold"):
        ids(threshold=1.0)


def test_a_retriever_searches_by_what_a_query_transform_made(rag: SacRag) -> None:
    from llama_index.core.schema import QueryBundle

    retriever = SacRetriever(rag, similarity_top_k=3, search="dense")
    for made in (["It spans 363 miles."], ["A canal.", "Miles of water."]):
        found = retriever.retrieve(QueryBundle("What?", custom_embedding_strs=made))
        mean = rag.embed(made, kind="query").mean(axis=0)
        stored = rag.library.vectors([n.node.metadata["sac_id"] for n in found])
        assert [n.score for n in found] == pytest.approx(list(stored @ mean / np.linalg.norm(mean)), abs=1e-5)
        assert [n.score for n in found] != pytest.approx([n.score for n in retriever.retrieve("What?")], abs=1e-4)
    retriever.similarity_top_k = 1
    assert len(retriever.retrieve("canal")) == retriever.similarity_top_k == 1
    with pytest.raises(ConfigError, match="k is 0"):
        retriever.similarity_top_k = 0


def test_filters_mean_what_those_of_the_simple_store_mean(rag: SacRag) -> None:
    from llama_index.core.vector_stores.types import FilterOperator as O
    from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.utils import build_metadata_filter_fn
    from llama_index.schema.sac.filters import where_of

    from sac_rag.library.filters import fitting

    metas: list[dict[str, Any]] = [
        {"t": ["law", "tax"]},
        {"t": ["lawful"]},
        {"t": "law firm"},
        {"t": ""},
        {"t": []},
        {},
    ]
    for operator, value in (
        (O.CONTAINS, "law"),
        (O.ANY, ["tax", "no"]),
        (O.ALL, ["law", "tax"]),
        (O.ALL, ["law"]),
        (O.EQ, "law firm"),
        (O.NE, "law firm"),
        (O.IS_EMPTY, None),
    ):
        filters = MetadataFilters(filters=[MetadataFilter(key="t", operator=operator, value=value)])
        theirs = [build_metadata_filter_fn(lambda _, m=m: m, filters)("") for m in metas]
        if operator in (O.ANY, O.ALL):  # theirs takes the letters of a text for members
            theirs[2] = False
        assert [fitting(where_of(filters))(m) for m in metas] == theirs, operator
    one = MetadataFilters(filters=[MetadataFilter(key="t", operator=O.ANY, value="tax")])
    assert [fitting(where_of(one))(m) for m in metas] == [True, False, False, False, False, False]
    with pytest.raises(ConfigError, match="filters is a dict: give MetadataFilters"):
        SacRetriever(rag, filters={"t": "law"})  # type: ignore[arg-type]


def test_no_component_swallows_a_setting(rag: SacRag) -> None:
    for component, setting in (
        (SacVectorStore, "collection_name"),
        (SacNodePostprocessor, "top_n"),
        (SacCompressor, "chunk_size"),
        (SacEmbedding, "device"),
        (SacLLM, "context_window"),
    ):
        with pytest.raises(ConfigError, match=f"{component.__name__} takes no '{setting}'; it takes .*"):
            component(rag, **{setting: 3})  # type: ignore[arg-type]
    assert SacNodePostprocessor(rag, remember=False, meta={"a": 1}).meta == {"a": 1}
    assert SacEmbedding(rag, embed_batch_size=3).embed_batch_size == 3
    for made in (SacCompressor(rag, store=False), SacEmbedding(rag), SacNodePostprocessor(rag)):
        assert type(made).from_dict(made.to_dict()).library == made.library
