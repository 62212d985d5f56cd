"""Models made on the spot: wheels of a few bytes, a two-layer Llama as a folder and as a .gguf file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sac_rag.models.pinned import PINNED, Pinned

sys.path.insert(0, str(Path(__file__).parent))  # for model_toys, whatever import mode is used

from model_toys import WriteGguf, toy_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for one test, without a wheelhouse and with network allowed."""
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAC_WHEELHOUSE", raising=False)
    monkeypatch.delenv("SAC_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def toy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Pinned:
    """The pinned model `toy`, known for one test."""
    model = toy_model()
    monkeypatch.setitem(PINNED, model.name, model)
    return model


@pytest.fixture(scope="session")
def tiny_llama() -> Any:
    """A random Llama (two layers, fp32) of 260 byte tokens."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=258,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # larger than the usual start, so that mistakes show
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def byte_tokens() -> list[str]:
    """256 byte tokens in the GPT-2 spelling, then three control tokens and a pair of spaces."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelling = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        spelling.setdefault(byte, chr(256 + len(spelling) - len(plain)))
    return [spelling[byte] for byte in range(256)] + ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "ĠĠ"]


@pytest.fixture(scope="session")
def tiny_families(tiny_llama: Any) -> dict[str, Any]:
    """A random model of each architecture that .gguf files of ours name; the heads of Qwen3 have 128 numbers always."""
    from tests.conftest import tiny_model

    shape: dict[str, Any] = {
        "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "max_position_embeddings": 512, "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 258,
    }  # fmt: skip
    return {
        "llama": tiny_llama,
        "qwen2": tiny_model("qwen2", **shape),
        "qwen3": tiny_model("qwen3", **shape, head_dim=128),
    }


@pytest.fixture
def write_gguf(tiny_families: dict[str, Any], byte_tokens: list[str], tmp_path: Path) -> Iterator[WriteGguf]:
    """Writes a tiny model as a .gguf file (F32) the way llama.cpp lays it out; other facts can be told."""
    import numpy as np
    from gguf import GGUFWriter

    names = {
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }

    def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
        # llama.cpp rotates neighbours, transformers rotates halves
        parts = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return parts.swapaxes(1, 2).reshape(weight.shape)

    def write(
        name: str = "tiny.gguf",
        *,
        architecture: str = "llama",
        pre: str = "smollm",
        rope_factors: Any = None,
        rope_scaling: str = "",
        experts: int = 0,
        head_dim: int = 8,
        window: int = 0,
    ) -> Path:
        model = tiny_families.get(architecture, tiny_families["llama"])
        path = tmp_path / name
        writer = GGUFWriter(path, architecture)
        writer.add_name("Tiny")
        writer.add_block_count(2)
        writer.add_context_length(512)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(head_dim)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(260)
        if rope_scaling:
            writer.add_string(f"{architecture}.rope.scaling.type", rope_scaling)
        if window:
            writer.add_sliding_window(window)
        if experts:
            writer.add_expert_count(experts)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(byte_tokens)
        writer.add_token_types([1] * 256 + [3] * 3 + [1])
        writer.add_token_merges(["Ġ Ġ"])
        writer.add_bos_token_id(257)
        writer.add_eos_token_id(258)
        writer.add_pad_token_id(258)
        writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
        if rope_factors is not None:
            writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, np.float32))
        for key, tensor in model.state_dict().items():
            value = tensor.numpy()
            if key == "lm_head.weight":
                continue
            if key == "model.embed_tokens.weight":
                writer.add_tensor("token_embd.weight", value)
            elif key == "model.norm.weight":
                writer.add_tensor("output_norm.weight", value)
            else:
                _, _, layer, rest = key.split(".", 3)
                part, kind = rest.rsplit(".", 1)
                if part.endswith(("q_proj", "k_proj")) and model is tiny_families["llama"]:
                    value = interleave(value, 4 if part.endswith("q_proj") else 2)
                writer.add_tensor(f"blk.{layer}.{names[part]}.{kind}", np.ascontiguousarray(value))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    yield write
