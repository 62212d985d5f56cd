"""Query analysis as in LangChain's RAG tutorial, over FAISS and text. python analysis_before.py FILE QUESTION

A model turns the question into a search of a part of the document; the graph searches, and the model answers.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import faiss
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from langgraph.graph import START, StateGraph

file, question = sys.argv[1:]
document = Document(Path(file).read_text("utf-8"), metadata={"source": file})

embeddings = OpenAIEmbeddings()
index = faiss.IndexFlatL2(len(embeddings.embed_query("How long is a vector?")))
vector_store = FAISS(embeddings, index, InMemoryDocstore(), {})
llm = ChatOpenAI()

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
    context = "\n\n".join(d.page_content for d in state["context"])
    return {"answer": llm.invoke(prompt.invoke({"question": state["question"], "context": context})).content}


graph = StateGraph(State).add_sequence([analyze_query, retrieve, generate]).add_edge(START, "analyze_query").compile()
state = graph.invoke({"question": question})
print(state["query"])
print(state["answer"])
