"""The same agent over compressed memories: five lines are new. python agentic_after.py FILE QUESTION"""

import sys
from pathlib import Path

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.documents import Document
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_sac import ChatSac, SacVectorStore, format_docs_sac

file, question = sys.argv[1:]
document = Document(Path(file).read_text("utf-8"), metadata={"source": file})

vector_store = SacVectorStore(library="tutorial.lib")
model = ChatSac(rag=vector_store.rag, max_tokens=64)

splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
vector_store.add_documents(splitter.split_documents([document]))


@tool(response_format="content_and_artifact")
def retrieve_context(query: str):
    """Retrieve information to help answer a query."""
    retrieved = vector_store.similarity_search(query, k=2, sac_metadata=True)
    serialized = format_docs_sac(retrieved, model)
    return serialized, retrieved


agent = create_agent(model, tools=[retrieve_context])
for step in agent.stream({"messages": [("user", question)]}, stream_mode="values"):
    step["messages"][-1].pretty_print()
