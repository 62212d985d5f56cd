"""LlamaIndex on top of sac-rag: a retriever over a library. Needs llama-index-core alone."""

from llama_index.retrievers.sac.base import SacRetriever

__all__ = ["SacRetriever"]
