"""No word of a document becomes a control token of the embedder or of the base model, whatever its vocabulary holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sac_rag.foreign import without_control
from sac_rag.models.embedder import Embedder

CONTROL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>", "sep_token": "[SEP]"}
WORDS = ["fox", "dog", "barn", "s", "mask", "<", ">", "/", "[", "]"]
KINDS = {
    "words": lambda vocabulary: (
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"),
        pre_tokenizers.WhitespaceSplit(),
    ),
    "pieces": lambda vocabulary: (
        models.Unigram([(w, -1.0 - i / 100) for i, w in enumerate(vocabulary)], unk_id=0),
        pre_tokenizers.WhitespaceSplit(),
    ),
    "no unknown": lambda vocabulary: (
        models.BPE({w: i for i, w in enumerate([*vocabulary, *"foxdgbarn"])}, [], ignore_merges=True),
        pre_tokenizers.WhitespaceSplit(),
    ),
}
HOSTILE = [*CONTROL.values(), "fox </s> dog", "<s>", "<mask> <mask>", "barn [SEP] fox <pad>", "</s></s>", " </s> "]


@pytest.fixture(params=KINDS)
def embedder(request: pytest.FixtureRequest, tmp_path: Path) -> Embedder:
    """A random BERT whose vocabulary holds its control tokens as words."""
    vocabulary = ["<unk>", *CONTROL.values(), *WORDS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.model, tokenizer.pre_tokenizer = KINDS[request.param](vocabulary)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    unknown = {} if request.param == "no unknown" else {"unk_token": "<unk>"}
    folder = tmp_path / "embedder"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **CONTROL, **unknown).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return Embedder(str(folder), device="cpu")


@pytest.mark.parametrize("text", HOSTILE)
def test_the_embedder_reads_words_only(embedder: Embedder, text: str) -> None:
    embedder._load()
    tokenizer = embedder._tokenizer
    control = set(tokenizer.convert_tokens_to_ids(list(CONTROL.values())))
    ((window,), _) = embedder._windows([text], "")
    assert (window[0], window[-1]) == (1, 2)
    assert control.isdisjoint(window[1:-1])
    assert np.isfinite(embedder.encode([text])).all()


def test_the_vocabularies_of_these_tests_hold_them(embedder: Embedder) -> None:
    """Without a cure the texts above do become control tokens."""
    embedder._load()
    ids = embedder._tokenizer("fox </s> dog", add_special_tokens=False, split_special_tokens=True).input_ids
    assert embedder._tokenizer.convert_tokens_to_ids("</s>") in ids


def test_ordinary_text_is_read_as_ever(embedder: Embedder) -> None:
    embedder._load()
    for text in ("fox dog barn", "fox  [ dog", ""):
        ids = embedder._tokenizer(text, add_special_tokens=False).input_ids
        assert embedder._windows([text], "")[0] == [[1, *ids, 2]]
    same = [7, 8, 9]
    assert without_control(same, frozenset({1, 2}), None) is same
    assert without_control([7, 1, 8], frozenset({1}), 0) == [7, 0, 8]
    assert without_control([7, 1, 8], frozenset({1}), None) == [7, 8]


def test_the_base_model_reads_words_only(make_backbone) -> None:
    backbone = make_backbone()
    special = set(backbone.tokenizer.all_special_ids) - {backbone.tokenizer.unk_token_id}
    assert special
    for token in backbone.tokenizer.all_special_tokens:
        for text in (token, f"a {token}{token} b", token.upper(), f"\u200b{token}\0"):
            assert special.isdisjoint(backbone.tokens(text))
    plain = "The spare key hangs behind the blue door. ÄÖ 漢字"
    assert backbone.tokens(plain) == backbone.tokenizer(plain, add_special_tokens=False)["input_ids"]


def test_a_base_model_whose_vocabulary_holds_them(make_backbone) -> None:
    backbone = make_backbone()
    vocabulary = ["<unk>", *CONTROL.values(), *WORDS]
    made = Tokenizer(models.BPE())
    made.model, made.pre_tokenizer = KINDS["pieces"](vocabulary)
    backbone.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **CONTROL, unk_token="<unk>")
    backbone.__dict__.pop("_control", None)
    assert backbone.tokens("fox </s> dog") == [6, 0, 7]
    assert backbone.tokens("fox dog") == [6, 7]


@pytest.mark.parametrize(
    "content",
    [
        {"modules.json": "[" * 50_000},
        {"modules.json": "5"},
        {"modules.json": "[5]"},
        {"modules.json": '[{"type": "x.Transformer", "path": "../../elsewhere"}]'},
        {"modules.json": '[{"type": "x.Transformer", "path": "/etc"}]'},
        {"modules.json": '[{"path": ""}]'},
        {"config.json": '{"model_type": "bert", "hidden_size": "many"}'},
        {"config.json": "[]"},
        {"config.json": '{"hidden_size": 1e999}'},
        {"sentence_bert_config.json": '{"max_seq_length": "long"}'},
        {"sentence_bert_config.json": "[1]"},
        {"config_sentence_transformers.json": '{"prompts": 5}'},
        {"tokenizer_config.json": "[]"},
    ],
)
def test_model_folders_that_say_nonsense(embedder: Embedder, content: dict[str, str]) -> None:
    from sac_rag.errors import ModelError

    for name, text in content.items():
        (embedder.path / name).write_text(text)
    with pytest.raises(ModelError):
        Embedder(str(embedder.path), device="cpu").encode(["fox"])
    assert json.loads((embedder.path / "tokenizer.json").read_text())
