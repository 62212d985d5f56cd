"""How conversations over the sample documents do: questions that stand by themselves, and questions that refer back.

    python scripts/follow_ups.py [LIBRARY] [--history auto,all] [--k 1,5]

LIBRARY: a library of the sample documents; without one, one is made in a temporary folder. Prints how many of the 30
sample questions are answered right as first, third and sixth turn, behind the questions that stand before them in the
list, by `SacRag.ask`, a LangChain chain and LlamaIndex's ContextChatEngine, and how many of twelve follow-up questions,
behind the question that they refer to.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

from sac_rag import AskConfig, Conversation, SacRag, samples
from sac_rag.evaluate.metrics import contains

PAIRS = json.loads((Path(samples.__file__).parent / "follow_ups.json").read_text("utf-8"))
TOKENS = 24
Say = Callable[[str], tuple[str, list[str]]]
"""A question -> its answer and the documents that it is from, in one conversation."""


def ask(rag: SacRag, k: int, history: str) -> Say:
    """`SacRag.ask`, and so `sac chat` and the server."""
    talk, settings = Conversation(), AskConfig(k=k, history=history, max_new_tokens=TOKENS)

    def say(question: str) -> tuple[str, list[str]]:
        answer = rag.ask(question, settings, conversation=talk)
        return answer.text, [hit.passage.document for hit in answer.sources]

    return say


def langchain(rag: SacRag, k: int, history: str) -> Say:
    """The conversation of LangChain's page."""
    from langchain_core.runnables import RunnablePassthrough

    from langchain_sac import ChatSac, SacRetriever, format_docs_sac, sac_prompt

    chat, retriever = ChatSac(rag=rag, max_tokens=TOKENS, history=history), SacRetriever(rag=rag, k=k)
    documents = RunnablePassthrough.assign(documents=itemgetter("input") | retriever)
    context = RunnablePassthrough.assign(context=lambda x: format_docs_sac(x["documents"], chat))
    said = []

    def say(question: str) -> tuple[str, list[str]]:
        found = (documents | context).invoke({"input": question, "chat_history": list(said)})
        messages = sac_prompt(chat).invoke(found).to_messages()
        said.extend([messages[-1], chat.invoke(messages)])
        return said[-1].text, [d.metadata["document"] for d in found["documents"]]

    return say


def llama_index(rag: SacRag, k: int, history: str) -> Say:
    """A stock chat engine, whose passages stand in the system message."""
    from llama_index.core.chat_engine import ContextChatEngine
    from llama_index.llms.sac import SacLLM
    from llama_index.retrievers.sac import SacRetriever

    llm = SacLLM(rag, max_tokens=TOKENS, history=history)
    engine = ContextChatEngine.from_defaults(SacRetriever(rag, k=k), llm=llm)

    def say(question: str) -> tuple[str, list[str]]:
        answer = engine.chat(question)
        return str(answer), [n.node.metadata["document"] for n in answer.source_nodes]

    return say


WAYS = (ask, langchain, llama_index)


def right_as_turn(way: Callable[[], Say], turn: int) -> int:
    """Sample questions answered right behind `turn` - 1 others."""
    asked, right = samples.questions(), 0
    for last in range(len(asked)):
        say = way()
        for n in range(last - turn + 1, last + 1):
            answer, _ = say(asked[n].question)
        right += contains(answer, asked[last].answers)
    return right


def follow_ups(way: Callable[[], Say]) -> tuple[int, int]:
    """Follow-up questions whose document was found, and those answered right."""
    found = right = 0
    for pair in PAIRS:
        say = way()
        say(pair["question"])
        answer, documents = say(pair["follow_up"])
        found += any(d.endswith(pair["document"]) for d in documents)
        right += contains(answer, pair["answers"])
    return found, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="?")
    parser.add_argument("--history", default="auto,all")
    parser.add_argument("--k", default="1,5")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rag = SacRag.open(args.library) if args.library else SacRag.index(samples.documents(), f"{folder}/samples.lib")
        with rag:
            for k in map(int, args.k.split(",")):
                for make in WAYS:
                    for history in args.history.split(","):

                        def way() -> Say:
                            return make(rag, k, history)  # noqa: B023

                        turns = ", ".join(f"turn {n} {right_as_turn(way, n)}" for n in (1, 3, 6))
                        found, right = follow_ups(way)
                        print(
                            f"k {k}, {make.__name__}, history {history}: right of {len(samples.questions())} as "
                            f"{turns}; follow-ups: document found {found}, answered {right} of {len(PAIRS)}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
