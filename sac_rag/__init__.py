"""sac-rag: compress documents once; every later question reads the compressed memory instead of the text."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sac_rag.answer.conversation import Conversation
    from sac_rag.answer.stream import Stream
    from sac_rag.config import AskConfig, IndexConfig
    from sac_rag.errors import SacError
    from sac_rag.indexing import IndexReport, Skip
    from sac_rag.pipeline import SacRag
    from sac_rag.records import Answer, Document, Hit, Passage, Timings, Usage

__version__ = "0.1.0"

_HOMES = {
    "SacRag": "pipeline",
    "IndexReport": "indexing",
    "Skip": "indexing",
    "Conversation": "answer.conversation",
    "Stream": "answer.stream",
    "AskConfig": "config",
    "IndexConfig": "config",
    "SacError": "errors",
    "Answer": "records",
    "Document": "records",
    "Hit": "records",
    "Passage": "records",
    "Timings": "records",
    "Usage": "records",
}

__all__ = [
    "Answer",
    "AskConfig",
    "Conversation",
    "Document",
    "Hit",
    "IndexConfig",
    "IndexReport",
    "Passage",
    "SacError",
    "SacRag",
    "Skip",
    "Stream",
    "Timings",
    "Usage",
]


def __getattr__(name: str) -> Any:
    # Names resolve at first use: importing sac_rag never imports torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'sac_rag' has no attribute {name!r}")
    return getattr(import_module(f"sac_rag.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
