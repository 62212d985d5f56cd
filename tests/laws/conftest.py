"""Laws hold for every family of models."""

from __future__ import annotations

import pytest

from sac_rag.families import FAMILIES


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
