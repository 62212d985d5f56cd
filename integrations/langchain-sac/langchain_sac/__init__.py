"""LangChain on top of sac-rag: documents stay text, and a frozen Llama reads their compressed memories.

Needs langchain-core alone.
"""

from __future__ import annotations

from langchain_sac.chains import create_sac_chain, sac_prompt
from langchain_sac.chat_models import ChatSac
from langchain_sac.compressors import SacDocumentCompressor
from langchain_sac.embeddings import SacEmbeddings
from langchain_sac.formatting import SacDocumentPrompt, format_docs_sac
from langchain_sac.retrievers import SacRetriever
from langchain_sac.vectorstores import SacVectorStore

__all__ = [
    "ChatSac",
    "SacDocumentCompressor",
    "SacDocumentPrompt",
    "SacEmbeddings",
    "SacRetriever",
    "SacVectorStore",
    "create_sac_chain",
    "format_docs_sac",
    "sac_prompt",
]
