"""LlamaIndex on top of sac-rag: answers as `SacRag.ask` gives them. Needs llama-index-core alone."""

from llama_index.response_synthesizers.sac.base import SacSynthesizer

__all__ = ["SacSynthesizer"]
