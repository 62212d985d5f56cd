"""The indexing room: documents into a library, in three steps.

`plan` says what is new, changed and gone, and cuts it into orders of bounded size; `make` turns an order into finished
segment files and vectors, needing neither library nor lock, here, in child processes or on Ray (`makers`); the indexer
commits what was made, in order, as the one writer. Knows nothing of answering.
"""

from sac_rag.indexing.indexer import Indexer
from sac_rag.indexing.known_vectors import KnownVectors
from sac_rag.indexing.makers import Workers
from sac_rag.indexing.on_ray import RayWorkers
from sac_rag.indexing.plan import check_meta, cut
from sac_rag.indexing.report import IndexReport, Listen, Notice, Skip

__all__ = [
    "IndexReport",
    "Indexer",
    "KnownVectors",
    "Listen",
    "Notice",
    "RayWorkers",
    "Skip",
    "Workers",
    "check_meta",
    "cut",
]
