"""The same search over compressed memories: five lines are new. python migration_after.py QUESTION"""

import asyncio
import sys

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.vector_stores.sac import SacVectorStore

(question,) = sys.argv[1:]

store = SacVectorStore.from_library("tutorial.lib")
Settings.embed_model = store.embed_model()
Settings.llm = store.llm(max_tokens=64)

documents = SimpleDirectoryReader("data").load_data()
index = VectorStoreIndex.from_documents(documents, storage_context=store.storage_context())
query_engine = index.as_query_engine()


async def search_documents(query: str) -> str:
    """Answers a question about the documents; an agent can be given this as a tool."""
    return str(await query_engine.aquery(query))


print(asyncio.run(search_documents(question)))
