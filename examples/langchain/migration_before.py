"""The RAG chain of LangChain's tutorial, over FAISS and text. python migration_before.py FILE QUESTION

After "Build a RAG agent", RAG chains, with FAISS as the store: https://docs.langchain.com/oss/python/langchain/rag
"""

import sys
from pathlib import Path

import faiss
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
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


@dynamic_prompt
def with_context(request: ModelRequest) -> str:
    found = vector_store.similarity_search(request.messages[-1].text, k=2)
    context = "\n\n".join(d.page_content for d in found)
    return f"Answer the question in a few words, from the text.\n\n{context}"


agent = create_agent(model, tools=[], middleware=[with_context])
print(agent.invoke({"messages": [("user", question)]})["messages"][-1].text)
