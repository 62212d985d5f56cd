"""Named prompt layouts: what users of chat models and of the two RAG frameworks send, in a model's own chat template.

An adapter is trained over a mixture of them, and an evaluation names one.
"""

from __future__ import annotations

import re
from typing import Any

from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.errors import ConfigError

CONTEXT, QUESTION, ANSWER = "\ue000context\ue001", "\ue000question\ue001", "\ue000answer\ue001"
"""Marks that stand for the passages, the question and the answer while a template is rendered."""

WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "qa": (
        ("system", "Answer the question in a few words, from the text."),
        ("user", f"{CONTEXT}\nQuestion: {QUESTION}"),
    ),
    "chat": (("user", f"{CONTEXT}\n\n{QUESTION}"),),
    "system": (
        ("system", "You are a helpful assistant. Answer from the documents that the user gives."),
        ("user", f"Documents:\n{CONTEXT}\n\n{QUESTION}"),
    ),
    "langchain": (
        (
            "system",
            "Use the given context to answer the question. If you don't know the answer, say you don't know. Use three "
            f"sentence maximum and keep the answer concise. Context: {CONTEXT}",
        ),
        ("user", QUESTION),
    ),
    "llama-index": (
        (
            "user",
            f"Context information is below.\n---------------------\n{CONTEXT}\n---------------------\n"
            f"Given the context information and not prior knowledge, answer the query.\nQuery: {QUESTION}\nAnswer: ",
        ),
    ),
    "sentence": (
        ("system", "Answer the question in one sentence, from the text."),
        ("user", f"{CONTEXT}\nQuestion: {QUESTION}"),
    ),
    "summary": (("user", f"{CONTEXT}\n\nSummarise this text. {QUESTION}"),),
}
"""Name -> messages. "langchain" and "llama-index" are the stock prompts of those projects."""

DIRECT = {"enable_thinking": False}
"""What chat templates are told: models that may think first (Qwen3) answer at once. Other templates ignore it."""


def layout_of(tokenizer: Any, name: str = "qa") -> PromptLayout:
    """A named layout in the tokenizer's chat template; plain text where it has none.

    Raises ConfigError for an unknown name, or a chat template that does not take such messages.
    """
    if name not in WORDINGS:
        raise ConfigError(f"unknown prompt {name!r}; use {', '.join(WORDINGS)}")
    text = _render(tokenizer, WORDINGS[name])
    prefix, found, rest = text.partition(CONTEXT)
    before, asked, rest = rest.partition(QUESTION)
    after, answered, end = rest.partition(ANSWER)
    if not (found and asked and answered):
        raise ConfigError(f"the model's chat template drops a part of the prompt {name!r}; give a layout of your own")
    end = end.rstrip() or tokenizer.eos_token or ""
    return PromptLayout(prefix=prefix, before=before, after=after, end=end)


def evidence_ids(backbone: Backbone, layout: PromptLayout, evidence: str) -> list[int]:
    """Ids of text that stands between memory and question, as one more passage would."""
    return [*backbone.template(layout.separator), *backbone.tokens(evidence)] if evidence else []


def joined_ids(backbone: Backbone, layout: PromptLayout, question: str) -> list[int]:
    """Ids of everything between memory and answer, the question tokenised together with the words around it.

    So a chat reads it, where template and question come as one message; special tokens come from the layout alone.
    """
    special = [t for t in backbone.tokenizer.all_special_tokens if t]
    cuts = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    lead = re.match(f"(?s).*(?:{cuts})(?:\\w*\n)?", layout.before) if special else None
    tail = re.search(cuts, layout.after) if special else None
    start, stop = lead.end() if lead else 0, tail.start() if tail else len(layout.after)
    words = layout.before[start:] + question + layout.after[:stop]
    return [*backbone.template(layout.before[:start]), *backbone.tokens(words), *backbone.template(layout.after[stop:])]


def _render(tokenizer: Any, messages: tuple[tuple[str, str], ...]) -> str:
    whole = [{"role": role, "content": content} for role, content in messages]
    whole.append({"role": "assistant", "content": ANSWER})
    if not getattr(tokenizer, "chat_template", None):
        return "".join(f"{m['content']}\n\n" for m in whole[:-1]).rstrip() + f"\nAnswer: {ANSWER}"
    try:
        text: str = tokenizer.apply_chat_template(whole, tokenize=False, **DIRECT)
    except Exception as error:  # templates raise what they like
        raise ConfigError(f"the model's chat template does not take these messages: {error}") from error
    return text
