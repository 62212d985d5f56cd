"""The same chain over compressed memories: five lines are new. python migration_after.py FILE QUESTION"""

import sys
from pathlib import Path

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain_core.documents import Document
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_sac import ChatSac, SacVectorStore, format_docs_sac

file, question = sys.argv[1:]
document = Document(Path(file).read_text("utf-8"), metadata={"source": file})

vector_store = SacVectorStore(library="tutorial.lib")
model = ChatSac(rag=vector_store.rag, max_tokens=64)

splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
vector_store.add_documents(splitter.split_documents([document]))


@dynamic_prompt
def with_context(request: ModelRequest) -> str:
    found = vector_store.similarity_search(request.messages[-1].text, k=2, sac_metadata=True)
    context = format_docs_sac(found, model)
    return f"Answer the question in a few words, from the text.\n\n{context}"


agent = create_agent(model, tools=[], middleware=[with_context])
print(agent.invoke({"messages": [("user", question)]})["messages"][-1].text)
