"""LangChain on top of sac-rag: a retriever over a library. Needs langchain-core alone."""

from __future__ import annotations

from langchain_sac.retrievers import SacRetriever

__all__ = ["SacRetriever"]
