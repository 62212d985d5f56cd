"""The same query analysis over compressed memories: four lines are new. python analysis_after.py FILE QUESTION"""

import sys
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_text_splitters import RecursiveCharacterTextSplitter
from langgraph.graph import START, StateGraph

from langchain_sac import ChatSac, SacVectorStore, format_docs_sac

file, question = sys.argv[1:]
document = Document(Path(file).read_text("utf-8"), metadata={"source": file})

vector_store = SacVectorStore(library="tutorial.lib")
llm = ChatSac(rag=vector_store.rag, max_tokens=64)

splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
splits = splitter.split_documents([document])
for number, split in enumerate(splits):
    split.metadata["section"] = ("beginning", "middle", "end")[3 * number // len(splits)]
vector_store.add_documents(splits)

prompt = ChatPromptTemplate.from_messages(
    [("system", "Answer the question in a few words, from the text."), ("user", "{context}\nQuestion: {question}")]
)


class Search(TypedDict):
    """Search query."""

    query: Annotated[str, ..., "Search query to run."]
    section: Annotated[Literal["beginning", "middle", "end"], ..., "Section to query."]


class State(TypedDict):
    question: str
    query: Search
    context: list[Document]
    answer: str


def analyze_query(state: State):
    return {"query": llm.with_structured_output(Search).invoke(state["question"])}


def retrieve(state: State):
    query = state["query"]
    return {"context": vector_store.similarity_search(query["query"], k=2, filter={"section": query["section"]})}


def generate(state: State):
    context = format_docs_sac(state["context"], llm)
    return {"answer": llm.invoke(prompt.invoke({"question": state["question"], "context": context})).content}


graph = StateGraph(State).add_sequence([analyze_query, retrieve, generate]).add_edge(START, "analyze_query").compile()
state = graph.invoke({"question": question})
print(state["query"])
print(state["answer"])
