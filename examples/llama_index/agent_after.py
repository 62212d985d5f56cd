"""The same agent over compressed memories: five lines are new. python agent_after.py QUESTION"""

import asyncio
import sys

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow
from llama_index.vector_stores.sac import SacVectorStore

(question,) = sys.argv[1:]

store = SacVectorStore.from_library("tutorial.lib")
Settings.embed_model = store.embed_model()
Settings.llm = store.llm(max_tokens=64)

documents = SimpleDirectoryReader("data").load_data()
index = VectorStoreIndex.from_documents(documents, storage_context=store.storage_context())
query_engine = index.as_query_engine()


async def search_documents(query: str) -> str:
    """Useful for answering natural language questions about the documents."""
    return str(await query_engine.aquery(query))


agent = AgentWorkflow.from_tools_or_functions([search_documents], llm=Settings.llm)


async def main():
    print(await agent.run(question))


asyncio.run(main())
