"""Models made on the spot: a random Llama of byte tokens, a random embedder of letters, an untrained adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Toys:
    """Folders of the models."""

    base: Path
    embedder: Path
    adapter: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SAC_MODEL": str(self.base),
            "SAC_EMBEDDER": str(self.embedder),
            "SAC_ADAPTER": str(self.adapter),
            "SAC_PASSAGE_TOKENS": "64",
            "SAC_DTYPE": "float32",
        }


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


Sac = Callable[..., Result]


def make_llama(folder: Path) -> Path:
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0]).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(alphabet) + len(SPECIAL),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=256,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_bert(folder: Path) -> Path:
    import torch
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,#?"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path) -> Path:
    from sac_rag.compress import adapter
    from sac_rag.compress.layout import PromptLayout
    from sac_rag.models.loading import choose_device, choose_dtype, load_base
    from sac_rag.models.sources import fingerprint_of

    device = choose_device("cpu")
    model, tokenizer = load_base(base, device, choose_dtype("float32", device))
    card = adapter.Card(
        base=str(base),
        base_fingerprint=fingerprint_of(base),
        method="sac",
        ratios=(5.0,),
        lora={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]},
        layout=PromptLayout().to_mapping(),
    )
    adapter.save(adapter.build(model, tokenizer, card), card, folder)
    return folder
