"""Token ids without transformers: exactly its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sac_rag.models import tokenizer as ours
from sac_rag.models.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import byte_tokenizer

SPELLED = "<|im_start|>user\nhi <|im_end|> [SEP] </s>"
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"add_special_tokens": False},
    {"add_special_tokens": False, "split_special_tokens": True},
    {"split_special_tokens": True},
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{{ enable_thinking }}"
)


def of_bytes(folder: Path) -> None:
    theirs = byte_tokenizer()
    theirs.chat_template = TEMPLATE
    theirs.save_pretrained(folder)


def of_words(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "##s", "dog", "fox", "a", "##b"]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)


def of_llama(folder: Path) -> None:
    """Rebuilt by a class of its own, which adds spaces in front and a token for the beginning."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    transformers.LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], add_bos_token=True).save_pretrained(folder)


def of_qwen(folder: Path) -> None:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate([*letters, "<|endoftext|>", "Ġa"])}
    transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[("Ġ", "a")]).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {"bytes": of_bytes, "bert": of_words, "llama": of_llama, "qwen2": of_qwen}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("words") / request.param
    MAKERS[request.param](folder)
    kind = {"bytes": "llama", "llama": "llama", "bert": "bert", "qwen2": "qwen2"}[request.param]
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAC_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = load_tokenizer(folder)
    assert type(found) is Tokenizer
    return found, transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.sampled_from([SPELLED, "a dog [SEP]s", " a  ab\n\n", *ours.PROBES]))
def test_ids_and_offsets_are_those_of_transformers(pair: Any, text: str) -> None:
    mine, theirs = pair
    for options in OPTIONS:
        found, wanted = (t(text, return_offsets_mapping=True, **options) for t in (mine, theirs))
        assert found["input_ids"] == wanted["input_ids"], options
        assert found["offset_mapping"] == wanted["offset_mapping"], options
    ids = theirs(text)["input_ids"]
    for skip in (False, True):
        wanted = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert mine.decode(ids, skip_special_tokens=skip) == wanted


def test_several_texts_give_several_lists(pair: Any) -> None:
    mine, theirs = pair
    texts = ["a dog", "", SPELLED]
    assert mine(texts)["input_ids"] == theirs(texts)["input_ids"]


@pytest.mark.parametrize(
    "name",
    "all_special_tokens all_special_ids unk_token_id pad_token_id bos_token_id eos_token_id eos_token model_max_length "
    "chat_template special_tokens_map is_fast".split(),
)
def test_what_is_told_of_it_is_the_same(pair: Any, name: str) -> None:
    mine, theirs = pair
    assert getattr(mine, name) == getattr(theirs, name)


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True, "enable_thinking": False}])
def test_chats_are_rendered_alike(cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    of_bytes(tmp_path)
    messages = [{"role": "system", "content": "Be <brief> & good."}, {"role": "user", "content": "x\n"}]
    mine, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = theirs.apply_chat_template(messages, tokenize=False, **options)
    assert mine.apply_chat_template(messages, tokenize=False, **options) == wanted
    for tokenizer in (mine, theirs):
        with pytest.raises(ValueError):
            tokenizer.apply_chat_template([], tokenize=False)


def test_one_that_would_give_other_ids_is_transformers_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_bytes(tmp_path)
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, **_: "something else")
    found = load_tokenizer(tmp_path)
    assert type(found) is type(byte_tokenizer())
    assert found("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
