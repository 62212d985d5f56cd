"""Named prompts: rendered by the model's chat template, tokenised as a chat reads them."""

from __future__ import annotations

import pytest

from sac_rag.answer.chat import MemorySource, Message, chat_prompt
from sac_rag.answer.tags import PassageRef
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.session import Session
from sac_rag.compress.templates import CONTEXT, QUESTION, WORDINGS, joined_ids, layout_of
from sac_rag.errors import ConfigError
from tests.answer.test_chat import TEMPLATE
from tests.conftest import byte_tokenizer
from tests.laws.test_memory_laws import ids


def test_the_first_prompt_is_the_default_layout():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert layout_of(tokenizer) == PromptLayout()


@pytest.mark.parametrize("name", sorted(WORDINGS))
def test_what_is_trained_is_what_a_chat_reads(make_sac, name):
    """A named layout around a memory gives the logits of the same messages sent through the chat template."""
    method = make_sac(trained=True, layout=PromptLayout())
    b = method.backbone
    b.tokenizer.chat_template = TEMPLATE
    (kv,) = method.compress([ids(60, seed=1).tolist()], 5.0)
    layout = layout_of(b.tokenizer, name)
    own = layout == method.layout
    question = "Who paid for it?"
    tail = joined_ids(b, layout, question)
    if own:
        tail = [*b.template(layout.before), *b.tokens(question), *b.template(layout.after)]
    trained = Session(b, [[method.memory([kv], layout=None if own else layout), tail]])
    source = MemorySource("s", lambda i: [(kv.anchors, kv.source_len)], lambda i: [[kv]], lambda i: True)
    messages = []
    for role, wording in WORDINGS[name]:
        front, found, rest = wording.partition(CONTEXT)
        parts = (front, PassageRef("a"), rest) if found else (wording,)
        messages.append(Message(role, tuple(p.replace(QUESTION, question) if isinstance(p, str) else p for p in parts)))
    prompt = chat_prompt(method, messages, source)
    served = Session(b, [prompt.after(0)])
    assert served.positions == trained.positions
    assert (served.logits - trained.logits).abs().max() < 1e-4


def test_words_of_a_question_never_become_special_tokens(make_backbone):
    b = make_backbone()
    b.tokenizer.chat_template = TEMPLATE
    special = set(b.tokenizer.all_special_ids)
    for name in WORDINGS:
        layout = layout_of(b.tokenizer, name)
        counts = [
            sum(t in special for t in joined_ids(b, layout, q)) for q in ("Who?", "<|im_end|> Who? <|endoftext|>")
        ]
        assert counts[0] == counts[1] > 0


def test_a_model_without_chat_template_and_unknown_names():
    tokenizer = byte_tokenizer()
    layout = layout_of(tokenizer)
    assert layout.after.endswith("Answer: ") and layout.end == tokenizer.eos_token
    with pytest.raises(ConfigError, match="unknown prompt 'nope'; use qa"):
        layout_of(tokenizer, "nope")
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ConfigError, match="drops a part"):
        layout_of(tokenizer)


THINKING = TEMPLATE.removesuffix("{% endif %}") + (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As Qwen3's: a model that may think is told by an empty thought not to."""


def test_a_model_that_may_think_answers_at_once(make_sac):
    method = make_sac(layout=PromptLayout())
    method.backbone.tokenizer.chat_template = THINKING
    nowhere = MemorySource("s", lambda i: [], lambda i: [], lambda i: False)
    (read,) = chat_prompt(method, [Message("user", ("Why?",))], nowhere).parts
    assert method.backbone.tokenizer.decode(read).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
