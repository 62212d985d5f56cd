"""Fixtures without downloads: a random three-layer Llama with a byte tokenizer, built in milliseconds."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A runner that was started in the background ignores Ctrl-C, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

ALL = bool(os.environ.get("SAC_TEST_ALL"))
"""Whether tests run that take minutes, too (`make test-all`)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not ALL and item.get_closest_marker("minutes"):
            item.add_marker(pytest.mark.skip(reason="it takes minutes: `make test-all` runs it"))


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer() -> Any:
    """Byte-level tokenizer of 256 bytes and three special tokens, fast, with offsets."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*SPECIAL, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """A random Llama: 3 layers, width 48, 4 query and 2 KV heads, fp32."""
    return tiny_model("llama", seed, **changes)


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random model of a family, as small as `tiny_llama`; biases and norms of heads are random too."""
    import torch
    import transformers

    settings = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256 + len(SPECIAL),
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.15,
        **SHAPES.get(family, {}),
    }
    title = family.capitalize()
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        config = getattr(transformers, f"{title}Config")(**{**settings, **changes})
        model = getattr(transformers, f"{title}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith(".bias"):
                    p.normal_(std=0.1)
                elif name.endswith(("q_norm.weight", "k_norm.weight")):
                    p.uniform_(0.5, 1.5)
        return model
    finally:
        torch.random.set_rng_state(state)


SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "qwen3": {"head_dim": 16},  # not width / heads
}
"""What the small models of other families than Llama have of their own."""


def grid(memory: Any) -> tuple[Any, Any]:
    """Keys and values of a memory whose heads all keep the same, (layers, kv_heads, slots, head_dim)."""
    layers, heads = memory.counts.shape
    keys, values = (t.view(layers, heads, -1, t.shape[-1]) for t in (memory.keys, memory.values))
    return keys, values


def by_transformers(backbone: Any, memory: Any, token_ids: list[int], *, use_lora: bool = False) -> Any:
    """The oracle of reading behind memory: next logits (vocabulary,) by transformers' own forward and cache."""
    import torch
    from transformers import DynamicCache

    cache, start, slots = DynamicCache(), 0, 0
    if memory is not None:
        start, slots = memory.next_position, memory.slots
        for layer, (keys, values) in enumerate(zip(*grid(memory), strict=True)):
            cache.update(keys[None], values[None], layer)
    n = len(token_ids)
    model = backbone.encoder if use_lora else backbone.decoder
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([token_ids]),
            attention_mask=torch.ones(1, slots + n, dtype=torch.int64),
            position_ids=torch.arange(start, start + n)[None],
            past_key_values=cache,
        )
    return out.logits[0, -1]


@pytest.fixture
def family() -> str:
    """The family of tiny models; folders whose tests hold for all of them override it."""
    return "llama"


@pytest.fixture
def make_backbone(family: str) -> Callable[..., Any]:
    """A factory: make_backbone(lora=True, **settings) -> Backbone on a tiny random model."""
    from sac_rag.compress.backbone import LORA_TARGETS, Backbone, LoraSpec

    def make(lora: bool = True, **changes: Any) -> Backbone:
        spec = LoraSpec(4, 8.0, LORA_TARGETS) if lora else None
        return Backbone(tiny_model(family, **changes), byte_tokenizer(), spec)

    return make


@pytest.fixture
def make_sac(make_backbone: Callable[..., Any]) -> Callable[..., Any]:
    """A factory: make_sac(trained=True) -> Sac method; trained=True scrambles LoRA and the anchor embedding."""
    import torch

    from sac_rag.compress.layout import PromptLayout
    from sac_rag.compress.methods.sac import Sac

    def make(trained: bool = False, layout: PromptLayout | None = None, **options: Any) -> Sac:
        method = Sac(make_backbone(), layout or PromptLayout(prefix="<|im_start|>sys\n"), **options)
        if trained:
            with torch.no_grad():
                generator = torch.Generator().manual_seed(7)
                for name, p in method.parameters().items():
                    if not name.startswith("prefix"):
                        p.add_(0.1 * torch.randn(p.shape, generator=generator))
        return method

    return make


def without_hashes(folder: Path) -> Path:
    """An adapter's folder whose card names no hashes: its tensors may be changed by hand."""
    card = json.loads((folder / "card.json").read_text("utf-8"))
    (folder / "card.json").write_text(json.dumps({**card, "hashes": {}}), "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer, as any local base model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained SAC adapter for `tiny_base`."""
    import torch

    from sac_rag.compress import adapter
    from sac_rag.compress.layout import PromptLayout
    from sac_rag.models.loading import load_base
    from sac_rag.models.sources import fingerprint_of

    folder = tmp_path_factory.mktemp("adapters") / "tiny-sac"
    card = adapter.Card(
        base=str(tiny_base),
        base_fingerprint=fingerprint_of(tiny_base),
        method="sac",
        ratios=(5.0,),
        lora={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]},
        layout=PromptLayout().to_mapping(),
    )
    model, tokenizer = load_base(tiny_base, torch.device("cpu"), torch.float32)
    adapter.save(adapter.build(model, tokenizer, card), card, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random BERT as sentence-transformers lays one out."""
    import json

    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-embedder"
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(33, 127)]
    vocab = {t: i for i, t in enumerate([*marks, *letters, *(f"##{c}" for c in letters)])}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=200))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    return folder


@pytest.fixture
def tiny_config(tiny_base: Path, tiny_adapter: Path, tiny_embedder: Path) -> Any:
    """IndexConfig over the tiny models."""
    from sac_rag.config import IndexConfig

    return dataclasses.replace(
        IndexConfig(),
        model=str(tiny_base),
        adapter=str(tiny_adapter),
        embedder=str(tiny_embedder),
        passage_tokens=128,
    )


@pytest.fixture(autouse=True)
def _own_gate_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed gates are remembered per test, not in the user's cache."""
    monkeypatch.setattr("sac_rag.answer.gate.cache_root", lambda: tmp_path / "cache", raising=False)
