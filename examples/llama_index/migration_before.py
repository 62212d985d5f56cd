"""The search of LlamaIndex's tutorial, over the texts in data/, with a local model. python migration_before.py QUESTION

After "Starter Tutorial (Using Local LLMs)", adding RAG capabilities:
https://developers.llamaindex.ai/python/framework/getting_started/starter_example_local
"""

import asyncio
import sys

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.ollama import Ollama

(question,) = sys.argv[1:]

Settings.embed_model = HuggingFaceEmbedding(model_name="BAAI/bge-base-en-v1.5")
Settings.llm = Ollama(model="llama3.1")

documents = SimpleDirectoryReader("data").load_data()
index = VectorStoreIndex.from_documents(documents)
query_engine = index.as_query_engine()


async def search_documents(query: str) -> str:
    """Answers a question about the documents; an agent can be given this as a tool."""
    return str(await query_engine.aquery(query))


print(asyncio.run(search_documents(question)))
