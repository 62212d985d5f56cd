"""One question over the same passages through every shell: one prompt, read from anchors, and one answer.

On the default model with its shipped adapter; skipped where it is not in the cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
import torch
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langgraph.graph import START, StateGraph
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate as LlamaIndexTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.sac import SacLLM
from llama_index.response_synthesizers.sac import SacSynthesizer
from llama_index.retrievers.sac import SacRetriever as SacNodeRetriever

from langchain_sac import ChatSac, SacDocumentPrompt, SacRetriever, create_sac_chain, format_docs_sac, sac_prompt
from sac_rag import SacRag, samples
from sac_rag.answer.chat import Message, layout_messages
from sac_rag.answer.prompt import Prompt, Recall
from sac_rag.answer.reader import Sampling
from sac_rag.answer.service import Generation, Service
from sac_rag.compress.anchor_kv import Memory

from .real import default_models

pytestmark = [pytest.mark.model, pytest.mark.slow]

TOKENS = 24
DOCUMENTS = ("adermatoglyphia.txt", "plain_language.html", "pep_0628_tau.rst")
ASKED = [(k, q.question) for k, q in enumerate((q for q in samples.questions() if q.document in DOCUMENTS), start=1)]
"""k and a question of each document: one passage, two, three."""


@pytest.fixture(scope="module", params=["auto", "float32"])
def rag(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SacRag]:
    default_models()
    paths = [samples.documents() / name for name in DOCUMENTS]
    path = tmp_path_factory.mktemp("libraries") / "three.lib"
    with SacRag.index(paths, path, dtype=request.param) as opened:
        yield opened


@dataclass(frozen=True)
class Reading:
    """What the model was given and what it wrote, as numbers."""

    tokens: tuple[tuple[int, ...], ...]
    """Token ids of every stretch of text in the prompt."""
    memories: tuple[tuple[int, int, int, str], ...]
    """(first position, next position, anchors with the prefix, digest of keys and values) of every memory."""
    slots: int
    answer: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Prompt, generation: Generation) -> Reading:
        memories = [p.load() if isinstance(p, Recall) else p for p in prompt.parts if isinstance(p, Recall | Memory)]
        tokens = [tuple(p) for p in prompt.parts if not isinstance(p, Recall | Memory)]
        return cls(
            tuple(tokens),
            tuple((m.start, m.next_position, m.slots, _digest(m)) for m in memories),
            prompt.slots,
            tuple(generation.completion.token_ids),
        )


def _digest(memory: Memory) -> str:
    both = torch.stack([memory.keys.float(), memory.values.float()]).flatten()
    return f"{tuple(memory.keys.shape)} {both.double().sum():.9e} {both.double().square().sum():.9e}"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Reading]:
    """A function that has a shell answer and returns what reached the model."""
    begun: list[tuple[Prompt, Generation]] = []
    submit = Service.submit

    def listening(self: Service, prompt: Prompt, sampling: Sampling, **settings: Any) -> Generation:
        begun.append((prompt, submit(self, prompt, sampling, **settings)))
        return begun[-1][1]

    monkeypatch.setattr(Service, "submit", listening)

    def reading(shell: Callable[[], Any]) -> Reading:
        begun.clear()
        shell()
        ((prompt, generation),) = begun
        return Reading.of(prompt, generation)

    return reading


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    answer: Any


def shells(rag: SacRag, k: int, system: str | None, template: str) -> dict[str, Callable[[str], str]]:
    """Every shell with one prompt: question -> answer. template: a user message with {context} and {input}."""
    chat, retriever = ChatSac(rag=rag, max_tokens=TOKENS), SacRetriever(rag=rag, k=k)
    messages = [("system", system)] if system is not None else []
    prompt = ChatPromptTemplate.from_messages([*messages, ("human", template)])
    lcel = {"context": retriever | (lambda d: format_docs_sac(d, chat)), "input": RunnablePassthrough()} | prompt | chat
    stuff = create_stuff_documents_chain(chat, prompt, document_prompt=SacDocumentPrompt(llm=chat))
    stock = create_retrieval_chain(retriever, stuff)

    def retrieve(state: State) -> State:
        return {"documents": retriever.invoke(state["question"])}

    def answer(state: State) -> State:
        context = format_docs_sac(state["documents"], chat)
        return {"answer": chat.invoke(prompt.invoke({"context": context, "input": state["question"]}))}

    graph = StateGraph(State).add_sequence([retrieve, answer]).add_edge(START, "retrieve").compile()
    renamed = template.replace("{context}", "{context_str}").replace("{input}", "{query_str}")
    engine = RetrieverQueryEngine.from_args(
        SacNodeRetriever(rag, k=k, tags=True),
        llm=SacLLM(rag, max_tokens=TOKENS),
        text_qa_template=LlamaIndexTemplate(
            message_templates=[
                *(ChatMessage(role=role, content=text) for role, text in messages),
                ChatMessage(role="user", content=renamed),
            ]
        ),
    )
    return {
        "LCEL": lambda q: lcel.invoke(q).text,
        "create_retrieval_chain": lambda q: stock.invoke({"input": q})["answer"],
        "LangGraph": lambda q: graph.invoke({"question": q})["answer"].text,
        "RetrieverQueryEngine": lambda q: str(engine.query(q)),
    }


@pytest.mark.parametrize(("k", "question"), ASKED)
def test_all_shells_give_the_librarys_answer(
    rag: SacRag, readings: Callable[[Callable[[], Any]], Reading], k: int, question: str
) -> None:
    (_, system), (_, user) = layout_messages(rag.engine.method, "{context}", "{input}")
    ways = shells(rag, k, system, user)
    assert sac_prompt(rag).format_messages(context="C", input="Q")[1].text == user.format(context="C", input="Q")
    synthesizer = SacSynthesizer(SacLLM(rag, max_tokens=TOKENS))
    own_engine = RetrieverQueryEngine(SacNodeRetriever(rag, k=k), synthesizer)
    ways["SacSynthesizer"] = lambda q: str(own_engine.query(q))
    ways["create_sac_chain"] = lambda q: create_sac_chain(rag, k=k, max_tokens=TOKENS).invoke(q)["answer"]

    asked: list[Any] = []
    own = readings(lambda: asked.append(rag.ask(question, k=k, max_new_tokens=TOKENS)))
    told: dict[str, str] = {}
    for name, way in ways.items():
        other = readings(lambda name=name, way=way: told.setdefault(name, way(question)))  # type: ignore[misc]
        assert other == own, name
    assert own.answer
    assert {name: text.strip() for name, text in told.items()} == dict.fromkeys(ways, asked[0].text)

    # What was attended are the anchors of the passages, what was read the question in its template: no passage text.
    method, usage = rag.engine.method, asked[0].usage
    passages = [h.passage for h in asked[0].sources]
    assert len(passages) == k and method.prefix is not None
    anchors = sum(a for a, _ in rag.extents([p.id for p in passages]))
    around = [*method.backbone.template(method.layout.before), *method.backbone.template(method.layout.after)]
    assert usage.anchors == own.slots == method.prefix.anchors + anchors
    assert usage.source_tokens == sum(p.tokens for p in passages) > 4 * anchors
    assert usage.prompt_tokens == sum(map(len, own.tokens)) == len(around) + len(method.backbone.tokens(question))
    assert usage.completion_tokens == len(own.answer)


def test_all_shells_give_one_answer_to_a_prompt_of_the_users_own(
    rag: SacRag, readings: Callable[[Callable[[], Any]], Reading]
) -> None:
    template, (k, question) = "Context:\n{context}\n\nWith nothing but the context, answer: {input}", ASKED[1]
    tags = "\n\n".join(rag.tag(d.metadata["sac_id"]) for d in SacRetriever(rag=rag, k=k).invoke(question))
    message = Message("user", rag.cite(template.format(context=tags, input=question)))
    own = readings(lambda: list(rag.converse([message], Sampling(TOKENS, min_new_tokens=1))))
    ((start, end, *_),) = own.memories
    assert own.answer and end - start > 4 * own.slots > 0
    for name, way in shells(rag, k, None, template).items():
        assert readings(lambda way=way: way(question)) == own, name  # type: ignore[misc]


async def test_sixteen_at_once_are_answered_as_one_by_one(rag: SacRag) -> None:
    chat, prompts = ChatSac(rag=rag, max_tokens=TOKENS), []
    for n in range(16):
        k, question = ASKED[n % 3]
        found = SacRetriever(rag=rag, k=k).invoke(question)
        # Every other answer is longer than a name: more tokens in which company could be seen.
        asked = question if n % 2 else "Tell in your own words what the text is about."
        prompts.append(f"{format_docs_sac(found, chat)}\n{n}. {asked}")
    alone = [chat.invoke(p) for p in prompts]
    together = await asyncio.gather(*(chat.ainvoke(p) for p in prompts))
    rag.engine.service._kept.clear()
    anew = await asyncio.gather(*(chat.ainvoke(p) for p in prompts))
    for others in (together, anew):
        assert [m.content for m in others] == [m.content for m in alone]
    assert len({m.content for m in alone}) > 1
    chain = create_sac_chain(rag, llm=chat)
    served = await asyncio.gather(*(chain.ainvoke(q) for _, q in ASKED))
    assert [s["answer"] for s in served] == [chain.invoke(q)["answer"] for _, q in ASKED]
