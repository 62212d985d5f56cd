"""The default models, where they are in the cache."""

from __future__ import annotations

import pytest

from sac_rag.config import DEFAULT_EMBEDDER, DEFAULT_MODEL
from sac_rag.errors import ModelError
from sac_rag.models import sources


def default_models() -> None:
    """Skips the test when one of them would have to be fetched."""
    for name in (DEFAULT_MODEL, DEFAULT_EMBEDDER):
        try:
            sources.path(name)
        except ModelError:
            pytest.skip(f"{name} is not in the cache: `sac models pull {name}` fetches it")
