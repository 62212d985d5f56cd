"""LlamaIndex on top of sac-rag: a library as a vector store. Needs llama-index-core alone."""

from llama_index.vector_stores.sac.base import SacVectorStore

__all__ = ["SacVectorStore"]
