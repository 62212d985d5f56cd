"""LlamaIndex on top of sac-rag: the frozen Llama of a library as an LLM. Needs llama-index-core alone."""

from llama_index.llms.sac.base import SacLLM
from llama_index.llms.sac.tokens import SacTokenizer

__all__ = ["SacLLM", "SacTokenizer"]
