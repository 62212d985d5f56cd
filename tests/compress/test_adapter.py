"""Adapters: each file appears whole or not at all; what a card says of stored memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sac_rag.compress.adapter import Card, build, write_atomic
from tests.conftest import byte_tokenizer, tiny_llama


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


@pytest.mark.parametrize(
    ("options", "lora", "named"),
    [
        ({}, {}, {}),
        ({"causal": False, "sharpness": 0.0, "selector": "uniform"}, {"alpha": 64.0}, {}),
        ({"selector": "salient", "budget": "learned"}, {}, {"selector": "salient", "budget": "learned"}),
        ({"sharpness": 0.15, "causal": True}, {}, {"sharpness": 0.15, "causal": True}),
        ({"learn_prefix": False, "mark_anchors": False}, {"alpha": 8}, {"lora_alpha": 8}),
    ],
)
def test_what_libraries_were_made_with_is_named_as_it_always_was(
    options: dict[str, Any], lora: dict[str, Any], named: dict[str, Any]
) -> None:
    """By the names and values that the fingerprints of libraries hold: else no old one would open."""
    card = Card("tiny", "0", "sac", (5.0,), lora={"rank": 2, "targets": ["q_proj"], **lora}, options=options)
    method = build(tiny_llama(), byte_tokenizer(), card)
    assert method.identity() == {"selector": "uniform", "budget": "even", **named}
    without = build(tiny_llama(), byte_tokenizer(), Card("tiny", "0", "sac", (5.0,)))
    assert without.identity() == {"selector": "uniform", "budget": "even"}
