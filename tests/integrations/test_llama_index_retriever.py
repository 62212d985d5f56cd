"""The LlamaIndex retriever: real text in every mode, ids and spans, the same nodes sync and async."""

from __future__ import annotations

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.retrievers.sac import SacRetriever

from sac_rag import AskConfig, SacRag

from .conftest import TEXTS


def test_it_is_a_retriever() -> None:
    assert BaseRetriever in SacRetriever.__mro__


def test_nodes_are_the_passages_found(rag: SacRag) -> None:
    found = SacRetriever(rag, search="lexical").retrieve("How many miles does the Erie Canal span?")
    assert found[0].text == TEXTS["canal.md"]
    for scored in found:
        node, m = scored.node, scored.node.metadata
        assert isinstance(node, TextNode)
        assert set(m) == {"sac_id", "document", "start", "end", "score", "heading"}
        assert node.text == TEXTS[m["document"]][m["start"] : m["end"]]
        assert (node.node_id, node.start_char_idx, node.end_char_idx) == (m["sac_id"], m["start"], m["end"])
        assert scored.score == m["score"]
        assert node.ref_doc_id == m["document"]
    seen = found[0].node.get_content(MetadataMode.LLM)
    assert seen.endswith(TEXTS["canal.md"])
    assert "canal.md" in seen
    assert found[0].node.node_id not in seen


async def test_k_where_and_async_agree_with_the_library(rag: SacRag) -> None:
    question = "Who crossed the bridge?"
    expected = [hit.passage.id for hit in rag.retrieve(question, AskConfig(k=5))]
    assert len(expected) == 3
    retriever = SacRetriever(rag, k=2)
    assert [n.node.node_id for n in retriever.retrieve(question)] == expected[:2]
    assert [n.node.node_id for n in await retriever.aretrieve(question)] == expected[:2]
    only = SacRetriever(rag, where={"kind": "t"})
    assert [n.node.metadata["document"] for n in only.retrieve(question)] == ["tides.md"]
