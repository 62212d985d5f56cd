"""Vectors: of length one, the same alone and in company, equal to the reference implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sac_rag.errors import ConfigError, ModelError
from sac_rag.models.embedder import Embedder

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "river", "bank", "llama", "memory"]


def sentence(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.fixture
def tiny_bert(cache: Path, tmp_path: Path) -> Path:
    """A random BERT of 16 dimensions that reads at most 12 tokens, mean-pooled."""
    folder = tmp_path / "tiny-bert"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "query", ":", *sorted(set(WORDS))]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write(folder / "modules.json", [{"path": path, "type": f"sentence_transformers.models.{t}"} for path, t in modules])
    write(folder / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    return folder


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def direct(folder: Path, text: str, cls: bool = False) -> np.ndarray:
    """The oracle: one text, straight through transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    states = transformers.AutoModel.from_pretrained(folder)(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    vector = (states[0] if cls else states.mean(0)).detach().numpy()
    return vector / np.linalg.norm(vector)


def test_vectors_are_those_of_the_model(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    texts = [sentence(n, n) for n in (3, 9, 1, 10)]
    vectors = embedder.encode(texts)
    assert vectors.shape == (4, embedder.dim) == (4, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, [direct(tiny_bert, text) for text in texts], atol=1e-5)


def test_cls_pooling_is_read_from_the_folder(tiny_bert: Path) -> None:
    mean = Embedder(str(tiny_bert), device="cpu")
    before = mean.fingerprint
    write(tiny_bert / "1_Pooling/config.json", {"pooling_mode": "cls"})
    cls = Embedder(str(tiny_bert), device="cpu")
    np.testing.assert_allclose(cls.encode([sentence(5)])[0], direct(tiny_bert, sentence(5), cls=True), atol=1e-5)
    assert cls.fingerprint != before


def test_company_and_batch_size_do_not_matter(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    texts = [sentence(n, n) for n in (40, 2, 7, 1, 25, 10, 3)]
    together = embedder.encode(texts)
    for size in (1, 2, 5):
        np.testing.assert_allclose(embedder.encode(texts, batch_size=size), together, atol=2e-6)
    alone = np.concatenate([embedder.encode([text]) for text in texts])
    np.testing.assert_allclose(alone, together, atol=2e-6)
    np.testing.assert_array_equal(embedder.encode(texts), together)


def test_long_texts_are_the_mean_of_equal_windows(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    words = sentence(27, 3).split()  # 10 fit beside the two control tokens: three windows of 9
    parts = np.stack([direct(tiny_bert, " ".join(words[at : at + 9])) for at in (0, 9, 18)]).mean(0)
    np.testing.assert_allclose(embedder.encode([" ".join(words)])[0], parts / np.linalg.norm(parts), atol=1e-5)


def test_of_long_queries_what_stands_out_weighs_more(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    same = sentence(9, 3)
    for at in range(4):  # of four windows one says something else
        windows = [same] * 4
        windows[at] = sentence(9, 4)
        found, mean = (embedder.encode([" ".join(windows)], kind=kind)[0] for kind in ("query", "passage"))
        parts = np.stack([direct(tiny_bert, w) for w in windows])
        weights = np.linalg.norm(parts - np.median(parts, axis=0), axis=1)
        wanted = weights @ parts / np.linalg.norm(weights @ parts)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert found @ parts[at] > 0.999 > mean @ parts[at]


def test_other_queries_are_the_mean_of_their_windows(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    same, other = sentence(9, 3), sentence(9, 4)
    texts = ["fox", same, f"{same} {other}", f"{other} {same}", " ".join([same] * 5)]  # none, or two, or all alike
    as_queries = embedder.encode(texts, kind="query")
    np.testing.assert_allclose(as_queries, embedder.encode(texts), atol=1e-6)
    long = " ".join([same, same, other, same])
    together = embedder.encode([*texts, long, *texts], kind="query")
    np.testing.assert_allclose(
        together, np.concatenate([as_queries, embedder.encode([long], kind="query"), as_queries]), atol=2e-6
    )


def test_control_tokens_in_a_text_are_text(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    np.testing.assert_array_equal(embedder.encode(["fox [SEP] dog"]), embedder.encode(["fox [ sep ] dog"]))


def test_prompts_go_in_front(tiny_bert: Path) -> None:
    write(tiny_bert / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": ""}})
    embedder = Embedder(str(tiny_bert), device="cpu")
    passage, query = embedder.encode(["quick fox"]), embedder.encode(["quick fox"], kind="query")
    np.testing.assert_array_equal(query, embedder.encode(["query: quick fox"]))
    assert np.abs(query - passage).max() > 1e-3


def test_nothing_and_the_empty_text(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    assert embedder.encode([]).shape == (0, 16)
    assert np.linalg.norm(embedder.encode([""])[0]) == pytest.approx(1)


def test_wrong_use_is_refused(tiny_bert: Path) -> None:
    embedder = Embedder(str(tiny_bert), device="cpu")
    with pytest.raises(ConfigError, match=r"pass \[text\]"):
        embedder.encode("one text")
    with pytest.raises(ConfigError, match="kind is 'doc'"):
        embedder.encode(["x"], kind="doc")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        embedder.encode(["x"], batch_size=0)


def test_damaged_weights_are_found(tiny_bert: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_bert / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] = float("nan")
    save_file(weights, tiny_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="NaN or Inf"):
        Embedder(str(tiny_bert), device="cpu").encode(["fox"])


def test_a_dense_module_is_borrowed(tiny_bert: Path) -> None:
    reference = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from safetensors.torch import save_file

    modules = json.loads((tiny_bert / "modules.json").read_text())
    modules.insert(2, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    write(tiny_bert / "modules.json", [{**m, "idx": i, "name": str(i)} for i, m in enumerate(modules)])
    (tiny_bert / "1_Pooling/config.json").unlink()
    write(tiny_bert / "1_Pooling/config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    dense = {"in_features": 16, "out_features": 8, "bias": False}
    write(tiny_bert / "2_Dense/config.json", {**dense, "activation_function": "torch.nn.modules.activation.Tanh"})
    save_file({"linear.weight": torch.randn(8, 16)}, tiny_bert / "2_Dense/model.safetensors")
    embedder = Embedder(str(tiny_bert), device="cpu")
    texts = [sentence(n, n) for n in (4, 8)]
    wanted = reference.SentenceTransformer(str(tiny_bert), device="cpu").encode(texts, normalize_embeddings=True)
    assert embedder.dim == 8
    np.testing.assert_allclose(embedder.encode(texts), wanted, atol=1e-5)
