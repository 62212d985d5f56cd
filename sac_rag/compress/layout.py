"""The prompt around a memory. It is part of an adapter: what it was trained with is what serving uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sac_rag.errors import AdapterError

MAX_CHARS = 4096
"""Longest part of a layout: what stands around every memory is read with every question, and attends to itself."""


@dataclass(frozen=True)
class PromptLayout:
    """prefix, memory, before, question, after, answer, end. Only these strings may hold special tokens."""

    prefix: str = "<|im_start|>system\nAnswer the question in a few words, from the text.<|im_end|>\n<|im_start|>user\n"
    """Kept uncompressed in front of the memory: it carries the attention sink and the instruction."""
    before: str = "\nQuestion: "
    """Between memory and question."""
    after: str = "<|im_end|>\n<|im_start|>assistant\n"
    """Between question and answer."""
    end: str = "<|im_end|>"
    """Ends an answer; its first token stops generation."""
    separator: str = "\n\n"
    """Between passages when they are read as plain text."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PromptLayout:
        """Read a card's layout; raises AdapterError on unknown, non-text or endless fields."""
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping):
            raise AdapterError(f"prompt layout is {type(values).__name__}, not {', '.join(sorted(known))}")
        bad = [k for k, v in values.items() if k not in known or not isinstance(v, str)]
        if bad:
            raise AdapterError(f"prompt layout has unknown or non-text fields {bad}; known: {sorted(known)}")
        for name, text in values.items():
            if len(text) > MAX_CHARS:
                raise AdapterError(
                    f"{name} of the prompt layout has {len(text):,} characters; {MAX_CHARS:,} are the most"
                )
        return cls(**values)

    def to_mapping(self) -> dict[str, str]:
        return asdict(self)
