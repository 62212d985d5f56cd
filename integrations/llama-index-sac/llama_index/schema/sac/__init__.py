"""LlamaIndex nodes with memories of sac-rag. Needs llama-index-core alone."""

from llama_index.schema.sac.base import SacNode

__all__ = ["SacNode"]
