"""What the LlamaIndex tests share: the tiny model with a chat template, and a look at the prompts it is given."""

from __future__ import annotations

from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.answer.tags import PassageRef

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatting(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> SacRag:
    """The engine is shared by all tests, so the template goes when the test ends."""
    monkeypatch.setattr(rag.engine.method.backbone.tokenizer, "chat_template", TEMPLATE)
    return rag


class Seen:
    """The conversations that a library's model was given, as passage ids and texts."""

    def __init__(self, rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[Any]] = []
        self.prompts: list[Any] = []
        build = rag.conversation

        def spy(messages: Any, sampling: Any = None, **offered: Any) -> Any:
            self.calls.append(list(messages))
            self.prompts.append(build(messages, sampling, **offered))
            return self.prompts[-1]

        monkeypatch.setattr(rag, "conversation", spy)

    def ids(self, call: int = -1) -> list[str]:
        return [p.id for m in self.calls[call] for p in m.content if isinstance(p, PassageRef)]

    def text(self, call: int = -1) -> str:
        return "".join(p for m in self.calls[call] for p in m.content if isinstance(p, str))
