"""Few compiled kernels are kept where every batch has a new shape; what a user set stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sac_rag.models.kernels import INDEXING, SERVING, bound_caches

NAMES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


@pytest.mark.parametrize(("given", "kept"), [((), INDEXING), ((SERVING,), SERVING)])
def test_settings_from_outside_stay(given: tuple[int, ...], kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.setenv(NAMES[1], "")  # so that it is taken back
    monkeypatch.delenv(NAMES[1])
    bound_caches(*given)
    assert (os.environ[NAMES[0]], os.environ[NAMES[1]]) == ("7", str(kept))


def test_it_comes_before_torch() -> None:
    """The kernels ask once, when they are first used; what is set after torch was loaded may be too late."""
    code = "import sys, sac_rag.models.kernels as k; k.bound_caches(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
