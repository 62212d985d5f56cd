"""A model of transformers as a .gguf file in float32, for llama.cpp; its tokenizer is left out, as ids are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}


def write(model: Any, path: Path) -> Path:
    """As llama.cpp's own converter lays a Llama or a Qwen3 out."""
    config = model.config
    kind = config.model_type
    names = gguf.get_tensor_name_map(ARCHITECTURES[kind], config.num_hidden_layers)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, kind)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("none")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = weight.detach().float()
        count = heads.get(name.split(".")[-2])
        if kind == "llama" and count:  # the two halves that RoPE turns together come side by side
            tensor = tensor.view(count, 2, head_dim // 2, -1).transpose(1, 2).reshape(tensor.shape)
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert written, name
        writer.add_tensor(written, tensor.contiguous().to(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
