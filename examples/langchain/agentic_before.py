"""The RAG agent of LangChain's tutorial, over FAISS and text. python agentic_before.py FILE QUESTION

After "Build a RAG agent", RAG agents, with FAISS as the store: https://docs.langchain.com/oss/python/langchain/rag
"""

import sys
from pathlib import Path

import faiss
from langchain.agents import create_agent
from langchain.tools import tool
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

file, question = sys.argv[1:]
document = Document(Path(file).read_text("utf-8"), metadata={"source": file})

embeddings = OpenAIEmbeddings()
index = faiss.IndexFlatL2(len(embeddings.embed_query("How long is a vector?")))
vector_store = FAISS(embeddings, index, InMemoryDocstore(), {})
model = ChatOpenAI()

splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
vector_store.add_documents(splitter.split_documents([document]))


@tool(response_format="content_and_artifact")
def retrieve_context(query: str):
    """Retrieve information to help answer a query."""
    retrieved = vector_store.similarity_search(query, k=2)
    serialized = "\n\n".join(d.page_content for d in retrieved)
    return serialized, retrieved


agent = create_agent(model, tools=[retrieve_context])
for step in agent.stream({"messages": [("user", question)]}, stream_mode="values"):
    step["messages"][-1].pretty_print()
