"""A random model and a few made-up files: `--scale tiny` rehearses every experiment on them, without downloads."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sac_rag.compress.adapter import write_atomic
from sac_rag.models.quiet import quiet

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PROSE = (
    "The canal was opened in 1825 by Governor Clinton. Its 83 locks lift boats from the river to the lake, and farmers "
    "send wheat by barge. The price of freight fell from $100 to $10 a ton within 10 years. "
)


def write_model(folder: Path) -> None:
    """A random Llama of three layers with a tokenizer of bytes; one that is there stays."""
    if (folder / "tokenizer.json").is_file():
        return
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    config = LlamaConfig(
        vocab_size=len(alphabet) + len(SPECIAL),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*SPECIAL, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=SPECIAL[1], eos_token=SPECIAL[2])
    tokenizer.save_pretrained(folder)


def write_data(folder: Path) -> Path:
    """A folder of data with a file for each that the tiny scale names; the same bytes each time."""
    for name in ("lm/train-00", "lm/valid"):
        _write(folder / f"{name}.jsonl.gz", ({"text": PROSE * 3, "source": str(i)} for i in range(4)))
    for name, count in (("squad.train", 6), ("squad.dev", 4), ("duorc.test", 4), ("musique.test", 3)):
        repeat = 6 if name.startswith("musique") else 1
        _write(folder / f"qa/{name}.jsonl.gz", (_asked(i, repeat) for i in range(count)))
    for name in ("scitldr.train", "qmsum.test"):
        rows = (
            {"document": PROSE, "items": [{"query": "What fell?", "summary": f"Freight fell {i} times."}]}
            for i in range(3)
        )
        _write(folder / f"summ/{name}.jsonl.gz", rows)
    return folder


def _asked(i: int, repeat: int) -> Mapping[str, Any]:
    text = f"Lamp {i} burned oil until {1900 + i}, when the board of Oslo paid for gas. " * repeat
    question = {"qid": str(i), "question": f"Until when did lamp {i} burn oil?", "answers": [str(1900 + i)]}
    return {"context": text.strip(), "qas": [question]}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, gzip.compress(text.encode(), mtime=0))
