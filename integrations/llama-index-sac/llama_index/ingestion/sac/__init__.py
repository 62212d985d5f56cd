"""LlamaIndex on top of sac-rag: compressing in an ingestion pipeline. Needs llama-index-core alone."""

from llama_index.ingestion.sac.base import SacCompressor

__all__ = ["SacCompressor"]
