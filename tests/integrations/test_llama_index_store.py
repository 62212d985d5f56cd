"""SacVectorStore: nodes go in, are compressed, come back whole; filters, modes and deletion; a tutorial ported."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.embeddings.sac import SacEmbedding
from llama_index.ingestion.sac import SacCompressor
from llama_index.llms.sac import SacLLM
from llama_index.schema.sac import SacNode
from llama_index.vector_stores.sac import SacVectorStore

from sac_rag import SacRag
from sac_rag.errors import LibraryError

from .llama_index_chat import Seen, chatting

BIRDS = ["heron", "crane", "stork", "ibis", "egret"]


@pytest.fixture
def rag(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> SacRag:
    return chatting(rag, monkeypatch)


def birds() -> list[TextNode]:
    return [
        TextNode(
            id_=f"n{i}",
            text=f"The {bird} stands in the water.\n\n  It eats {i + 2} fish a day.",
            metadata={"bird": bird, "legs": 2, "weight": i, "pages": 7, "document": "birds.pdf", "tags": ["a", bird]},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{i // 2}")},
            excluded_llm_metadata_keys=["legs"],
        )
        for i, bird in enumerate(BIRDS)
    ]


@pytest.fixture
def store(rag: SacRag) -> SacVectorStore:
    store = SacVectorStore(rag)
    assert store.add(birds()) == [n.node_id for n in birds()]
    return store


def only(*conditions: tuple[str, str, Any], condition: str = "and") -> MetadataFilters:
    filters = [MetadataFilter(key=k, operator=FilterOperator(o), value=v) for k, o, v in conditions]
    return MetadataFilters(filters=filters, condition=condition)  # type: ignore[arg-type]


def found(store: SacVectorStore, text: str = "fish", k: int = 5, mode: str = "default", **more: Any) -> list[str]:
    query = VectorStoreQuery(query_str=text, similarity_top_k=k, mode=VectorStoreQueryMode(mode), **more)
    result = store.query(query)
    assert result.nodes is not None and result.similarities is not None
    assert [n.node_id for n in result.nodes] == result.ids
    assert all(0 <= s <= 1 for s in result.similarities)
    if mode == "default":  # others rank by words too, and the similarity stays the cosine
        assert result.similarities == sorted(result.similarities, reverse=True)
    return list(result.ids or [])


def test_nodes_come_back_as_they_went_in(store: SacVectorStore) -> None:
    assert store.get_nodes([f"n{i}" for i in range(4, -1, -1)] + ["unknown"]) == birds()[::-1]
    assert store.get_nodes() == birds()  # the library's other documents are no nodes
    (same,) = store.query(VectorStoreQuery(query_str="ibis", similarity_top_k=1, mode="sparse")).nodes or []  # type: ignore[arg-type]
    assert same == birds()[3]
    assert json.loads(same.to_json())["metadata"]["tags"] == ["a", "ibis"]


def test_adding_again_replaces(store: SacVectorStore, rag: SacRag) -> None:
    generation = rag.library.head.generation
    store.add(birds())
    assert rag.library.head.generation == generation
    changed = birds()[0]
    changed.text = "The heron sleeps."
    store.add([changed, TextNode(id_="blank", text="  ")])
    assert store.get_nodes(["n0", "blank"]) == [changed]
    assert len(store.get_nodes()) == 5


def test_a_node_longer_than_a_passage_is_found_whole(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(f"Herons of pond {i} wait in shallow water. They eat {i} fish and a frog." for i in range(8))
    store, seen = SacVectorStore(rag, tags=True), Seen(rag, monkeypatch)
    store.add([TextNode(id_="long", text=text), TextNode(id_="short", text="Herons sleep.")])
    ids = rag.library.passage_ids("long")
    assert len(ids) > 3
    nodes = store.query(VectorStoreQuery(query_str="herons fish frog", similarity_top_k=2, mode="sparse")).nodes or []  # type: ignore[arg-type]
    assert [n.node_id for n in nodes] == ["long", "short"]
    assert isinstance(nodes[0], SacNode) and nodes[0].get_content() == text
    SacLLM(rag, max_tokens=1).complete(nodes[0].get_content(MetadataMode.LLM))
    assert seen.ids() == ids
    assert seen.prompts[0].source_tokens == sum(p.tokens for p in rag.library.get(ids))


def test_modes(store: SacVectorStore, rag: SacRag) -> None:
    (asked,) = rag.embedder.encode(["Which one is the stork?"], kind="query")
    vector = SacEmbedding(rag).get_query_embedding("Which one is the stork?")
    assert vector == asked.tolist()
    dense = [h.passage.document for h in rag.library.search(asked, None, 8, mode="dense")]
    assert found(store, "unlike", query_embedding=vector) == [d for d in dense if d.startswith("n")]
    assert found(store, "Which one is the stork?") == [d for d in dense if d.startswith("n")]
    assert found(store, "stork", mode="sparse") == found(store, "stork", mode="text_search") == ["n2"]
    assert found(store, "stork", mode="hybrid", query_embedding=vector)[0] == "n2"
    assert len(found(store, "stork", mode="hybrid", hybrid_top_k=2)) == 2
    assert len(found(store, k=2)) == 2
    with pytest.raises(ValueError, match="'svm'.*sparse"):
        found(store, mode="svm")
    with pytest.raises(ValueError, match="alpha"):
        found(store, mode="hybrid", alpha=0.5)
    with pytest.raises(ValueError, match="3 numbers.*32.*SacEmbedding"):
        found(store, query_embedding=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="neither"):
        store.query(VectorStoreQuery(similarity_top_k=1))


def test_filters(store: SacVectorStore) -> None:
    def by(*conditions: tuple[str, str, Any], condition: str = "and", **more: Any) -> list[str]:
        return sorted(found(store, filters=only(*conditions, condition=condition), **more))

    assert by(("bird", "==", "crane")) == ["n1"]
    assert by(("bird", "in", ["crane", "ibis"])) == ["n1", "n3"]
    assert by(("bird", "in", ["crane", "ibis"]), ("weight", "==", 3)) == ["n3"]
    assert by(("weight", ">", 2)) == ["n3", "n4"]
    assert by(("weight", ">", 0), ("weight", "<=", 2), k=1)[0] in ("n1", "n2")
    assert by(("bird", "==", "crane"), ("weight", "==", 4), condition="or") == ["n1", "n4"]
    assert by(("bird", "!=", "crane"), ("legs", "==", 2)) == ["n0", "n2", "n3", "n4"]
    assert by(("tags", "contains", "ibis")) == ["n3"]
    assert by(("pages", "==", 7), ("document", "==", "birds.pdf")) == [f"n{i}" for i in range(5)]
    assert by(("document", "==", "n1")) == []
    nested = MetadataFilters(filters=[only(("weight", "<", 1)), only(("weight", ">", 3))], condition="or")  # type: ignore[arg-type]
    assert sorted(found(store, filters=nested)) == ["n0", "n4"]
    assert sorted(found(store, node_ids=["n1", "n2"])) == ["n1", "n2"]
    assert sorted(found(store, doc_ids=["doc0"])) == ["n0", "n1"]
    assert by(("ref_doc_id", "in", ["doc0", "doc1"]), doc_ids=["doc1", "doc2"]) == ["n2", "n3"]
    assert [n.node_id for n in store.get_nodes(filters=only(("weight", ">=", 3)))] == ["n3", "n4"]


async def test_deleting(store: SacVectorStore, rag: SacRag) -> None:
    store.delete("doc0")
    store.delete("unknown")
    assert [n.node_id for n in store.get_nodes()] == ["n2", "n3", "n4"]
    await store.adelete_nodes(["n2", "n3"], filters=only(("bird", "==", "ibis")))
    assert [n.node_id for n in store.get_nodes()] == ["n2", "n4"]
    store.delete_nodes(filters=only(("weight", ">", 3)))
    assert [n.node_id for n in await store.aget_nodes()] == ["n2"]
    with pytest.raises(ValueError, match="clear"):
        store.delete_nodes()
    await store.aclear()
    assert store.get_nodes() == [] and found(store) == []
    assert len(rag.library.documents()) == 3


async def test_async_does_the_same(store: SacVectorStore) -> None:
    query = VectorStoreQuery(query_str="stork", similarity_top_k=3, mode=VectorStoreQueryMode.HYBRID)
    one, two = store.query(query), await store.aquery(query)
    assert (one.ids, one.similarities, one.nodes) == (two.ids, two.similarities, two.nodes)
    assert await store.async_add([TextNode(id_="late", text="A swan.")]) == ["late"]
    await store.adelete("doc2")
    assert [n.node_id for n in await store.aget_nodes(["late", "n4"])] == ["late"]


def test_vectors_of_another_embedder_are_refused(store: SacVectorStore, rag: SacRag) -> None:
    node = birds()[0]
    node.embedding = [0.5] * rag.embedder.dim
    with pytest.raises(ValueError, match="n0 comes with a vector of another embedder"):
        store.add([node])
    with pytest.raises(ValueError, match="3 numbers"):
        store.add([node.model_copy(update={"embedding": [1.0, 0.0, 0.0]})])
    own = SacVectorStore(rag, is_embedding_query=False)
    index = VectorStoreIndex([node], storage_context=own.storage_context(), embed_model=MockEmbedding(3))
    assert index.as_retriever(similarity_top_k=1).retrieve("heron")[0].node.node_id.startswith("n")


def test_nodes_are_embedded_once(rag: SacRag, embedded: list[str]) -> None:
    store = SacVectorStore(rag)
    nodes = [*birds(), TextNode(id_="long", text="\n\n".join(f"Herons of pond {i} eat {i} fish." for i in range(9)))]
    index = VectorStoreIndex(nodes, storage_context=store.storage_context(), embed_model=store.embed_model())
    parts = [p.text for p in rag.library.passages("long")]
    assert len(parts) > 1
    # A node's vector is that of its text with its metadata, as LlamaIndex means it; only parts of one have their own.
    assert embedded == [n.get_content(MetadataMode.EMBED) for n in nodes] + parts
    (vector,) = rag.library.vectors(rag.library.passage_ids("n2"))
    assert np.allclose(vector, rag.embedder.encode([nodes[2].get_content(MetadataMode.EMBED)])[0], atol=1e-6)
    embedded.clear()
    index.insert_nodes([TextNode(id_="late", text="A swan.")])
    pipeline = IngestionPipeline(transformations=[SacEmbedding(rag), SacCompressor(rag)], vector_store=store)
    pipeline.run(nodes=[TextNode(id_="later", text="A duck.")])
    assert embedded == ["A swan.", "A duck."]


def test_vectors_that_were_made_elsewhere_are_tried_once(rag: SacRag, embedded: list[str]) -> None:
    store, nodes = SacVectorStore(rag), birds()
    for node, vector in zip(
        nodes, rag.embedder.encode([n.get_content(MetadataMode.EMBED) for n in nodes]), strict=True
    ):
        node.embedding = vector.tolist()
    embedded.clear()
    store.add(nodes)
    assert embedded == [nodes[0].get_content(MetadataMode.EMBED)]
    # Meant for another store: the library has its own.
    for i, node in enumerate(nodes):
        node.embedding, node.text = [0.5] * rag.embedder.dim, f"Bird {i} has flown."
    embedded.clear()
    SacCompressor(rag)(nodes)
    assert embedded[1:] == [n.text for n in nodes]


def test_a_reader_cannot_add(store: SacVectorStore, rag: SacRag) -> None:
    reader = SacVectorStore(library=str(rag.library.path))
    assert [n.node_id for n in reader.get_nodes()] == [n.node_id for n in birds()]
    with pytest.raises(LibraryError, match="write=True"):
        reader.add([TextNode(text="x")])
    store.delete("doc0")
    assert len(reader.get_nodes()) == 3  # what was opened by its folder follows the writer


def test_a_stock_index_over_it(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, store = Seen(rag, monkeypatch), SacVectorStore(rag, tags=True)
    documents = [Document(text=n.text, doc_id=f"d{i}", metadata={"bird": BIRDS[i]}) for i, n in enumerate(birds())]
    index = VectorStoreIndex.from_documents(
        documents, storage_context=store.storage_context(), embed_model=store.embed_model()
    )
    engine = index.as_query_engine(llm=store.llm(max_tokens=4), similarity_top_k=2)
    response = engine.query("What does the ibis eat?")
    assert len(response.source_nodes) == 2
    assert seen.ids() == [i for n in response.source_nodes for i in rag.library.passage_ids(n.node.node_id)]
    assert "fish" not in seen.text()
    index.delete_ref_doc("d3")
    index.insert(Document(text="The ibis flew away.", doc_id="d3", metadata={"bird": "ibis"}))
    again = VectorStoreIndex.from_vector_store(SacVectorStore(rag), embed_model=store.embed_model())
    filters = only(("bird", "==", "ibis"))
    assert [n.get_content() for n in again.as_retriever(filters=filters).retrieve("fish")] == ["The ibis flew away."]


def test_an_ingestion_pipeline_fills_it(rag: SacRag) -> None:
    store = SacVectorStore(rag)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), SacEmbedding(rag)], vector_store=store
    )
    nodes = pipeline.run(documents=[Document(text="Herons wait. " * 30, doc_id="d")])
    assert {n.node_id for n in store.get_nodes()} == {n.node_id for n in nodes}
    assert all(n.ref_doc_id == "d" for n in store.get_nodes())


def test_persisting_is_the_librarys_own_business(store: SacVectorStore, rag: SacRag, tmp_path: Any) -> None:
    context = StorageContext.from_defaults(vector_store=store)
    context.persist(str(tmp_path / "storage"))
    back = SacVectorStore.from_dict(store.to_dict())
    assert back.rag is not rag and back.get_nodes() == store.get_nodes()
