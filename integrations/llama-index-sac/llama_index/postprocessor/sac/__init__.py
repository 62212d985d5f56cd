"""LlamaIndex on top of sac-rag: memories for any retriever's nodes. Needs llama-index-core alone."""

from llama_index.postprocessor.sac.base import SacNodePostprocessor

__all__ = ["SacNodePostprocessor"]
