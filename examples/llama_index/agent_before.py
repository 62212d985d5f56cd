"""The agent of LlamaIndex's starter tutorial, over vectors and text. python agent_before.py QUESTION

After "Starter Tutorial (Using Local LLMs)": https://developers.llamaindex.ai/python/framework/getting_started/
"""

import asyncio
import sys

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.ollama import Ollama

(question,) = sys.argv[1:]

Settings.embed_model = HuggingFaceEmbedding(model_name="BAAI/bge-base-en-v1.5")
Settings.llm = Ollama(model="llama3.1")

documents = SimpleDirectoryReader("data").load_data()
index = VectorStoreIndex.from_documents(documents)
query_engine = index.as_query_engine()


async def search_documents(query: str) -> str:
    """Useful for answering natural language questions about the documents."""
    return str(await query_engine.aquery(query))


agent = AgentWorkflow.from_tools_or_functions([search_documents], llm=Settings.llm)


async def main():
    print(await agent.run(question))


asyncio.run(main())
