"""FLOPs of compressing one sub-context: by formula, and counted while a model of that shape does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sac_rag.compress.backbone import Backbone, LoraSpec
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods import METHODS
from sac_rag.compress.selectors import anchor_count
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Flops

PLAIN, ANCHORS, APPENDED = "plain", "anchors", "appended"
WAYS: Mapping[str, tuple[str, str]] = {
    PLAIN: ("full-ft", "the text alone, no token sees a later one"),
    ANCHORS: ("sac", "SAC: anchors among the tokens, every token sees all"),
    APPENDED: ("500x", "500xCompressor, EPL: memory tokens behind the text, no token sees a later one"),
}
"""How a memory is written -> the method that is counted, and what it does."""
COUNTED_LAYERS = (2, 3)
"""Models of so many layers are run; what a layer more costs, all of those between the first and the last do."""
VOCABULARY = 64
"""No pass that compresses reaches the head, and looking embeddings up costs nothing."""


def analytic(shape: Mapping[str, Any], way: str, tokens: int, ratio: float, rank: int) -> dict[str, float]:
    """FLOPs by formula, two a multiplication: all layers whole as the paper's code runs them, attention by the pairs
    that see each other; and as our encoder runs them, which ends with the keys and values of what is kept."""
    d, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
    width, narrow = heads * shape["head_dim"], groups * shape["head_dim"]
    kept = anchor_count(tokens, ratio)
    n = tokens + (kept if way == APPENDED else 0)
    kept = tokens if way == PLAIN else kept
    keys_values = 2 * (d * narrow + rank * (d + narrow))
    maps = d * width + width * d + 3 * d * inner
    low = rank * (2 * (d + width) + 3 * (d + inner))
    layer = 2 * n * (maps + low + keys_values)
    seen = n * n if way == ANCHORS else n * (n + 1) / 2
    attention = 4 * seen * width
    return {
        "whole": layers * (layer + attention),
        "as_run": (layers - 1) * (layer + attention) + 2 * kept * keys_values,
    }


def counted(shape: Mapping[str, Any], way: str, tokens: int, ratio: float, rank: int) -> float:
    """FLOPs of a way's method, counted by torch; fused attention counts every pair, seen or hidden."""
    few, more = (_counted({**shape, "num_hidden_layers": n}, way, tokens, ratio, rank) for n in COUNTED_LAYERS)
    return few + (shape["num_hidden_layers"] - COUNTED_LAYERS[0]) * (more - few)


def _counted(shape: Mapping[str, Any], way: str, tokens: int, ratio: float, rank: int) -> float:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**shape, "vocab_size": VOCABULARY, "tie_word_embeddings": True})
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    backbone = Backbone(model, None, LoraSpec(rank, 2.0 * rank) if rank else None)
    method = METHODS.load(WAYS[way][0])(backbone, PromptLayout("", "", "", "", ""))
    with FlopCounterMode(display=False, custom_mapping={FUSED: _fused}) as counter:
        method.compress([[i % VOCABULARY for i in range(tokens)]], ratio)
    return float(counter.get_total_flops())


FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""What torch's own table leaves out."""


def _fused(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    found: int = sdpa_flop_count(query, key, value)
    return found


def compute(spec: Flops, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]) -> dict[str, Any]:
    """FLOPs of one way by formula, and counted where that is asked for."""
    args = (dict(spec.shape), spec.way, spec.tokens, spec.ratio, spec.rank)
    return {"analytic": analytic(*args), "counted": counted(*args) if spec.count else None}
