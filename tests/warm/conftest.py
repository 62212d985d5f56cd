"""A library of the tiny models, and a runtime folder of a test's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """XDG_RUNTIME_DIR for one test; short, as paths of sockets are."""
    root = Path(tempfile.mkdtemp(prefix="sac-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def library(tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three documents, indexed in fp32."""
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "cache"))
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("oak", "elm", "ash"):
        (docs / f"{name}.txt").write_text(f"The {name} was planted by Ada Quill in the harbour garden. " * 6)
    with SacRag.index(docs, tmp_path / "a.lib", tiny_config, dtype="float32"):
        pass
    return os.path.realpath(tmp_path / "a.lib")
