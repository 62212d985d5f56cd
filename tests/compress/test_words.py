"""The classifier of words, and the method and the selector that go by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sac_rag.compress import adapter, lingua, words
from sac_rag.compress.adapter import Card
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.selectors import SELECTORS, anchor_count
from sac_rag.compress.session import Session
from sac_rag.errors import ConfigError, MemoryInvalid
from tests.conftest import byte_tokenizer, tiny_model

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared/data"
TEXT = "It was in 1911 that Ada Quill, the keeper of Cape Verity, paid the harbour board for a gas burner of Leeds."


def made(**options):
    layout = PromptLayout(prefix="<|im_start|>sys\n").to_mapping()
    card = Card("tiny", "0", "llmlingua2", (), options=options, layout=layout)
    return adapter.build(tiny_model(), byte_tokenizer(), card)


def ids_of(text):
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_words_and_marks_are_spans_of_the_text():
    assert [TEXT[a:b] for a, b in words.spans_of(TEXT)][3:9] == ["1911", "that", "Ada", "Quill", ",", "the"]
    assert words.spans_of(" \n ") == []


def test_features_know_case_ends_and_shape():
    lamp, capital, other = words.features_of(["lamps", "Lamps", "stamps"])
    assert lamp[:3].tolist() == capital[:3].tolist() and lamp[3] != capital[3]
    assert lamp[2] == other[2] and lamp[0] != other[0]


class Lengths(words.WordClassifier):
    """Long words are kept: a stand-in whose scores are plain to see."""

    def forward(self, features):
        return torch.tensor([float(len(w)) for w in self.words])


def test_a_token_has_the_score_of_its_word():
    classifier = Lengths()
    text = "A keeper, paid"
    classifier.words = ["A", "keeper", ",", "paid"]
    scores = words.scores_of(byte_tokenizer(), ids_of(text), classifier)
    assert scores.tolist() == [1.0, 0.0, *[6.0] * 6, 1.0, 0.0, *[4.0] * 4]
    assert words.most(scores, 4).tolist() == [2, 3, 4, 5]


def test_letters_of_several_bytes_are_of_one_word():
    classifier = Lengths()
    classifier.words = ["Köln", "é"]
    scores = words.scores_of(byte_tokenizer(), ids_of("Köln é"), classifier)
    assert scores.tolist() == [4.0] * 5 + [0.0] + [1.0] * 2
    assert words.scores_of(byte_tokenizer(), ids_of("  \n")).tolist() == [0.0] * 3


def test_the_classifier_that_ships_prefers_what_is_asked_for():
    assert words.WEIGHTS.stat().st_size < 2 << 20
    spans = words.spans_of(TEXT)
    with torch.inference_mode():
        odds = words.shipped()(words.features_of([TEXT[a:b] for a, b in spans]))
    found = {TEXT[a:b]: float(o) for (a, b), o in zip(spans, odds, strict=True)}
    groups = ("Ada", "Quill", "Cape", "Verity", "Leeds"), ("was", "in", "that", "for", "a")
    told, other = (sum(found[w] for w in group) / len(group) for group in groups)
    assert told > other + 0.5


@pytest.mark.parametrize("ratio", (1.0, 2.0, 5.0, 600.0))
def test_kept_words_are_read_as_text(ratio):
    """As many tokens as other methods keep; their memory has the logits of the prompt in which they stand as text."""
    method, ids = made(), ids_of(TEXT)
    (kv,) = method.compress([ids], ratio)
    kept = kv.slots.anchors.tolist()
    assert len(kept) == kv.anchors == anchor_count(len(ids), ratio)
    assert kept == words.most(words.scores_of(byte_tokenizer(), ids), len(kept)).tolist()
    text = [*method.backbone.template(method.layout.prefix), *(ids[i] for i in kept), 40, 41]
    with torch.inference_mode():
        got = Session(method.backbone, [[method.memory([kv]), [40, 41]]]).logits[0]
        want = method.backbone.decoder(input_ids=torch.tensor([text])).logits[0, -1]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_identity_names_the_weights(monkeypatch):
    found = made().identity()
    assert found == {"prefix": "<|im_start|>sys\n", "classifier_sha256": words.shipped_sha256()}
    assert len(words.shipped_sha256()) == 64


def test_an_empty_passage_is_refused():
    with pytest.raises(MemoryInvalid, match="empty passage"):
        made().compress([[]], 2.0)


def test_its_scores_choose_anchors_of_sac(make_sac):
    method = make_sac(selector="llmlingua2")
    ids = ids_of(TEXT)
    (kv,) = method.compress([ids], 4.0)
    wanted = words.most(words.scores_of(byte_tokenizer(), ids), anchor_count(len(ids), 4.0))
    assert kv.slots.anchors.tolist() == wanted.tolist()
    assert not dict(SELECTORS.load("llmlingua2")(method.backbone).named_parameters())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data folder lies beside the repository")
def test_the_script_trains_a_classifier(tmp_path):
    out, data = tmp_path / "words.safetensors", str(SHARED / "summ/scitldr.dev.jsonl.gz")
    command = [sys.executable, str(ROOT / "scripts/word_classifier.py"), data, "--check", data, "--output", str(out)]
    done = subprocess.run([*command, "--texts", "24", "--epochs", "3"], capture_output=True, text=True, check=True)
    shown = dict(line.split("\t") for line in done.stdout.splitlines())
    assert float(shown["precision"]) > 1.2 * float(shown["chance"]) > 0
    assert out.stat().st_size == words.WEIGHTS.stat().st_size


# -- LLMLingua-2's own weights -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with a token classifier of the kind of LLMLingua-2's smaller one, tiny and random."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("lingua") / "tiny-bert-base-multilingual-cased"
    vocab = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    for letter in map(chr, range(33, 127)):
        vocab |= {letter: len(vocab), f"##{letter}": len(vocab) + 1}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=512, num_labels=2, initializer_range=1.0,
    )  # fmt: skip
    BertForTokenClassification(config).save_pretrained(folder)
    BertTokenizerFast(tokenizer_object=core, do_lower_case=False).save_pretrained(folder)
    return folder


def test_its_own_weights_need_a_folder_and_the_package(weights, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="holds no weights of LLMLingua-2"):
        made(model="microsoft/llmlingua-2-xlm-roberta-large-meetingbank")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="safetensors"):
        made(model=str(tmp_path))
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    lingua._compressor.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'sac-rag\[llmlingua\]'"):
        made(model=str(weights)).compress([ids_of(TEXT)], 2.0)


def test_its_own_weights_keep_the_words_that_the_package_keeps(weights, monkeypatch):
    pytest.importorskip("llmlingua")
    import tiktoken

    class Words:
        def encode(self, text):
            return text.split()

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: Words())  # it is fetched
    lingua._compressor.cache_clear()
    method, ids = made(model=str(weights)), ids_of(TEXT)
    (kv,) = method.compress([ids], 2.0)
    said = lingua._compressor(str(weights)).compress_prompt_llmlingua2([TEXT], rate=0.5)["compressed_prompt"]
    kept = method.backbone.tokenizer.decode([ids[i] for i in kv.slots.anchors.tolist()])
    assert kept == said.replace(" ", "") and 0.3 * len(ids) < kv.anchors < 0.7 * len(ids)
    assert method.identity() == {"prefix": "<|im_start|>sys\n", "model": str(weights)}
