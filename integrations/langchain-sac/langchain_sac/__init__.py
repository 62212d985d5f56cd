"""LangChain on top of sac-rag: documents stay text, and a frozen Llama reads their compressed memories.

Needs langchain-core alone.
"""

from __future__ import annotations

from langchain_sac.chains import create_sac_chain, sac_prompt
from langchain_sac.chat_models import ChatSac
from langchain_sac.compressors import SacDocumentCompressor
from langchain_sac.embeddings import SacEmbeddings
from langchain_sac.formatting import SacDocumentPrompt, TextWarning, format_docs_sac
from langchain_sac.indexes import SacDocumentIndex
from langchain_sac.retrievers import SacRetriever
from langchain_sac.structured import SacTranslator
from langchain_sac.vectorstores import SacVectorStore

__all__ = [
    "ChatSac",
    "SacDocumentCompressor",
    "SacDocumentIndex",
    "SacDocumentPrompt",
    "SacEmbeddings",
    "SacRetriever",
    "SacTranslator",
    "SacVectorStore",
    "TextWarning",
    "create_sac_chain",
    "format_docs_sac",
    "sac_prompt",
]
