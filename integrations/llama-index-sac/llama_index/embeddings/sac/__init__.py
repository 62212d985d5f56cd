"""LlamaIndex on top of sac-rag: the embedder of a library. Needs llama-index-core alone."""

from llama_index.embeddings.sac.base import SacEmbedding

__all__ = ["SacEmbedding"]
