"""Query engines: SacSynthesizer answers as SacRag.ask does; stock response modes lose and cut no tag."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.llms.sac import SacLLM
from llama_index.postprocessor.sac import SacNodePostprocessor
from llama_index.response_synthesizers.sac import SacSynthesizer
from llama_index.retrievers.sac import SacRetriever
from llama_index.schema.sac.base import with_stored_memory
from llama_index.vector_stores.sac import SacVectorStore

from sac_rag import AskConfig, SacRag
from sac_rag.answer.assemble import memory_prompt
from sac_rag.answer.chat import layout_messages
from sac_rag.answer.prompt import Recall
from sac_rag.answer.reader import Sampling
from sac_rag.answer.tags import PassageRef
from sac_rag.records import Document

from .conftest import TEXTS
from .llama_index_chat import Seen, chatting

QUESTION = "How many miles does the Erie Canal span?"


@pytest.fixture
def rag(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> SacRag:
    return chatting(rag, monkeypatch)


@pytest.fixture
def settings() -> Iterator[Any]:
    """LlamaIndex's global settings, as they were afterwards."""
    before = dict(Settings.__dict__)
    yield Settings
    Settings.__dict__.clear()
    Settings.__dict__.update(before)
    Settings.tokenizer = None  # type: ignore[assignment]


@pytest.mark.parametrize("tags", [True, False])
async def test_the_query_engine_answers_as_the_library_does(
    rag: SacRag, monkeypatch: pytest.MonkeyPatch, tags: bool
) -> None:
    seen, retriever = Seen(rag, monkeypatch), SacRetriever(rag, k=3, tags=tags)
    llm = SacLLM(rag, max_tokens=16)
    engine = RetrieverQueryEngine(retriever, SacSynthesizer(llm))
    response = engine.query(QUESTION)
    own = rag.ask(QUESTION, k=3, max_new_tokens=16)
    hits = own.sources
    assert str(response).strip() == own.text
    assert [n.node.node_id for n in response.source_nodes] == [h.passage.id for h in hits]
    assert [n.get_content() for n in response.source_nodes] == [h.passage.text for h in hits]
    # The same tokens behind the same memory, not merely the same words.
    memories = rag.library.load([h.passage.id for h in hits])
    want = memory_prompt(rag.engine.method, hits, memories, QUESTION, reserve=16).prompt
    recall, tokens = seen.prompts[0].parts
    assert list(tokens) == list(want.parts[1])
    assert recall.load().keys.equal(want.parts[0].keys)
    assert recall.load().values.equal(want.parts[0].values)
    assert (seen.prompts[0].slots, seen.prompts[0].tokens) == (own.usage.anchors, own.usage.prompt_tokens)
    assert seen.ids() == [h.passage.id for h in hits]

    assert str(await engine.aquery(QUESTION)) == str(response)
    streaming = RetrieverQueryEngine(retriever, SacSynthesizer(llm, streaming=True))
    assert "".join(streaming.query(QUESTION).response_gen) == str(response)  # type: ignore[union-attr]
    pieces = [p async for p in (await streaming.aquery(QUESTION)).async_response_gen()]  # type: ignore[union-attr]
    assert "".join(pieces) == str(response)


def test_repeats_are_read_once_and_edited_nodes_as_text(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SacRetriever(rag, k=2, search="lexical", tags=True).retrieve(QUESTION)
    seen = Seen(rag, monkeypatch)
    synthesizer = SacSynthesizer(SacLLM(rag, max_tokens=2))
    edited = TextNode(id_=found[0].node.node_id, text="The Erie Canal spans 9 miles.")
    response = synthesizer.synthesize(QUESTION, [*found, *found, NodeWithScore(node=edited)])
    assert seen.ids() == [n.node.node_id for n in found]
    assert seen.text().count("9 miles") == 1
    assert "363 miles" not in seen.text()
    assert len(response.source_nodes) == 2 * len(found) + 1
    assert str(synthesizer.synthesize(QUESTION, [])) == "Empty Response"
    with pytest.raises(ValueError, match="text_qa_template"):
        synthesizer.update_prompts({"text_qa_template": None})  # type: ignore[dict-item]


async def test_memories_of_nodes_that_others_add_are_read(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = SacLLM(library=str(rag.library.path), max_tokens=2)
    assert llm.rag is not rag
    seen, synthesizer = Seen(llm.rag, monkeypatch), SacSynthesizer(llm)
    for n, ask in enumerate((synthesizer.synthesize, synthesizer.asynthesize)):
        rag.put([Document(f"{n}", f"The barn of number {n} burned down.")])
        (found,) = SacRetriever(rag, k=1, where={"document": f"{n}"}).retrieve("Which barn?")
        answer = ask("Which barn?", [found])
        await answer if n else answer
        assert seen.ids() == [found.node.node_id]


def test_what_does_not_fit_is_left_out_with_a_word(
    many: SacRag, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(many, monkeypatch)
    found = SacRetriever(many, k=40, tags=True).retrieve("the bird")
    SacSynthesizer(SacLLM(many, max_tokens=8)).synthesize("Which bird?", found)
    ids = [n.node.node_id for n in found]
    own = many.ask("Which bird?", hits=many.retrieve("the bird", AskConfig(k=40)), max_new_tokens=8)
    assert seen.ids() == ids[: len(seen.ids())] == [h.passage.id for h in own.sources]
    assert 10 < len(seen.ids()) < 40
    assert f"{40 - len(seen.ids())} of 40 nodes" in caplog.text


def test_separators_have_their_room_too(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = SacLLM(rag, max_tokens=8)
    texts = [f"{n:02d}." for n in range(2000)]
    synthesizer, backbone = SacSynthesizer(llm), rag.engine.method.backbone
    messages = synthesizer._messages("Which?", texts)
    (text,) = (m.content for m in messages if m.content and "00." in m.content)
    kept = text.count(backbone.tokenizer.decode(backbone.template(rag.engine.method.layout.separator)))
    one = len(llm.tokenizer("00.")) + len(backbone.template(rag.engine.method.layout.separator))
    prompt = rag.conversation([llm._message(rag, m) for m in messages], Sampling(max_new_tokens=8))
    _, taken = prompt.extent(len(prompt.units()))
    assert kept > 10 and taken <= backbone.context_length - 8 < taken + 2 * one


def test_a_template_without_system_messages(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    method = rag.engine.method
    system, user = layout_messages(method, "BODY", "Who?")
    assert system == ("system", "Answer the question in a few words, from the text.")
    assert user == ("user", "BODY\nQuestion: Who?")
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0]['content'] }}"
    )
    for template in (strict, None):
        monkeypatch.setattr(method.backbone.tokenizer, "chat_template", template)
        assert layout_messages(method, "BODY", "Who?") == [user]


@pytest.fixture
def many(rag: SacRag, tiny_config: Any, tmp_path: Path) -> Iterator[SacRag]:
    """40 passages that together take half as much again as the model reads at once."""
    with SacRag.open(tmp_path / "many.lib", config=tiny_config, write=True, create=True) as opened:
        text = "The bird of number {0} is a heron; it waits in the shallow water and eats {0} fish."
        opened.put([Document(f"{i}", text.format(i)) for i in range(40)])
        yield opened


MODES = ["compact", "refine", "tree_summarize", "accumulate", "compact_accumulate"]


@pytest.mark.parametrize("mode", MODES)
def test_stock_modes_neither_lose_nor_repeat_a_tag(
    many: SacRag, monkeypatch: pytest.MonkeyPatch, settings: Any, mode: str
) -> None:
    seen, llm = Seen(many, monkeypatch), SacLLM(many, max_tokens=2)
    settings.tokenizer, settings.prompt_helper = llm.tokenizer, llm.prompt_helper()
    found = SacRetriever(many, k=40 if "compact" in mode or "tree" in mode else 6, tags=True).retrieve("the bird")
    get_response_synthesizer(llm=llm, response_mode=mode).synthesize("Which?", found)  # type: ignore[arg-type]
    read = Counter(i for call in range(len(seen.calls)) for i in seen.ids(call))
    assert read == Counter(n.node.node_id for n in found)
    assert len(seen.calls) > 1
    assert "heron" not in "".join(seen.text(i) for i in range(len(seen.calls)))


def test_simple_summarize_leaves_out_whole_passages(
    many: SacRag, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    seen, llm = Seen(many, monkeypatch), SacLLM(many, max_tokens=2)
    settings.tokenizer, settings.prompt_helper = llm.tokenizer, llm.prompt_helper()
    found = SacRetriever(many, k=40, tags=True).retrieve("the bird")
    for k in (8, 40):
        get_response_synthesizer(llm=llm, response_mode="simple_summarize").synthesize("Which?", found[:k])  # type: ignore[arg-type]
        ids = [n.node.node_id for n in found[:k]]
        assert seen.ids() == ids[: len(seen.ids())]
        assert "[[" not in seen.text() and "sac:" not in seen.text()
        assert len(seen.ids()) == 8 if k == 8 else 10 < len(seen.ids()) < 40


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
def test_a_stock_engine_reads_memory_with_no_more_than_its_llm_changed(
    rag: SacRag, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    seen = Seen(rag, monkeypatch)
    retriever = SacRetriever(rag, k=3, tags=True)
    engine = RetrieverQueryEngine.from_args(retriever, llm=SacLLM(rag, max_tokens=4), response_mode=mode)  # type: ignore[arg-type]
    response = engine.query(QUESTION)
    assert str(response)
    texts, ids = "".join(map(seen.text, range(len(seen.calls)))), [p.id for p in rag.library.passages()]
    assert sorted(i for c in range(len(seen.calls)) for i in seen.ids(c)) == sorted(ids)
    assert not any(text in texts for text in TEXTS.values())
    calls = sum(p.slots > 0 for p in seen.prompts)
    assert sum(p.slots for p in seen.prompts) == calls * rag.engine.method.prefix.anchors + sum(
        a for a, _ in rag.extents(ids)
    )
    assert not re.search(r"\[\[sac", texts)


@pytest.mark.parametrize("mode", ["no_text", "context_only"])
def test_modes_without_a_model_are_made_without_ours(
    rag: SacRag, settings: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LlamaIndex makes these without the `llm` that it is given, and any synthesizer takes that of its Settings: where
    nothing is set there it looks for OpenAI's, whoever wrote the llm."""
    store = SacVectorStore(rag)
    store.add([TextNode(text=text, id_=uri) for uri, text in TEXTS.items()])
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model())
    settings.llm = store.llm()
    monkeypatch.setattr(SacLLM, "chat", lambda *_: pytest.fail("the model was asked"))
    monkeypatch.setattr(SacLLM, "complete", lambda *_: pytest.fail("the model was asked"))
    found = index.as_query_engine(response_mode=mode, llm=store.llm(), similarity_top_k=2).query(QUESTION)
    assert [n.node_id for n in found.source_nodes][:1] == ["canal.md"] and len(found.source_nodes) == 2
    assert found.response == "" if mode == "no_text" else TEXTS["canal.md"] in found.response


def test_stored_memory_is_found_for_plain_nodes(rag: SacRag) -> None:
    plain = SacRetriever(rag, k=3, tags=False).retrieve(QUESTION)
    assert all(type(n.node) is TextNode for n in plain)
    for n in with_stored_memory(rag, plain):
        assert rag.recall(n.node.get_content(MetadataMode.LLM)) == (PassageRef(n.node.node_id),)


def test_nodes_longer_than_a_passage_are_read_as_their_best_passages(
    rag: SacRag, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stored and remembered ones, by both synthesizers. A token of this model is a byte: 12 passages a node."""
    question, llm = "Which house?", SacLLM(rag, max_tokens=2)
    stored, foreign = (
        TextNode(
            id_=name, text="\n\n".join(f"House {n}, {name}. " + "It has a door and a roof. " * 3 for n in range(12))
        )
        for name in ("stored", "foreign")
    )
    SacVectorStore(rag).add([stored])
    (remembered,) = SacNodePostprocessor(rag).postprocess_nodes([NodeWithScore(node=foreign)])
    ids = rag.library.passage_ids("stored")
    fit = dict(zip(ids, rag.library.vectors(ids) @ rag.embed([question], kind="query")[0], strict=True))
    assert len(ids) == 12
    seen = Seen(rag, monkeypatch)

    def read() -> list[str]:
        return [i for part in seen.prompts[-1].parts if isinstance(part, Recall) for i in part.key[1]]

    for synthesizer in (SacSynthesizer(llm), get_response_synthesizer(llm=llm)):
        for nodes in ([NodeWithScore(node=stored)], [remembered]):
            if not isinstance(synthesizer, SacSynthesizer):
                nodes = [NodeWithScore(node=with_stored_memory(rag, nodes)[0].node)]
            response = synthesizer.synthesize(question, nodes)
            assert response.source_nodes[0].node.get_content() == nodes[0].node.get_content()
            chosen = read()
            assert len(chosen) == 5 == len(set(chosen))
            if nodes[0].node.node_id == "stored":
                values = [fit[i] for i in chosen]
                assert values == sorted(values, reverse=True)
                assert min(values) >= max(v for i, v in fit.items() if i not in chosen) - 1e-5
        both = [
            NodeWithScore(node=with_stored_memory(rag, [n])[0].node) for n in (NodeWithScore(node=stored), remembered)
        ]
        synthesizer.synthesize(question, both)
        assert len(read()) == 5 and len(set(read()) & set(ids)) in range(1, 5)
    assert not caplog.records, "all that is read fits, though the nodes would not"
