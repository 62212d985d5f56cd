"""Files of adapters: each appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sac_rag.compress.adapter import write_atomic


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "card.json"
    write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("card.json", b"old")]
