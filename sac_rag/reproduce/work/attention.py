"""Where the slots of a memory look while it is written: attention of the encoder, seen as it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from sac_rag.errors import ConfigError
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Attention
from sac_rag.train.data import read_contexts


class Seen(TorchFunctionMode):
    """Keeps the weights of every fused attention of a token with itself and its like: (tokens, tokens) each, the mean
    over heads, in the order of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.weights.append(weights_of(args[0][0], args[1][0], kwargs.get("attn_mask")))
        return func(*args, **kwargs)


def weights_of(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(m, m), the mean over heads: q (kv_heads, repeat * m and what pads it, d), k (kv_heads, m, d), mask added."""
    m, dim = k.shape[1:]
    repeat = q.shape[1] // m
    scores = q.float() @ k.float().transpose(1, 2) * dim**-0.5
    scores = scores if mask is None else scores + mask.float()
    return scores[:, : repeat * m].softmax(-1).view(-1, m, m).mean(0)


def compute(
    spec: Attention, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """The map of the first, middle and last layer that attends, (slots, tokens); of each how far rows spread (entropy,
    as a share of the most there can be) and how much of them falls on the tokens that a slot stands for."""
    engine = place.engine(spec.adapter.method, spec.adapter.model, spec.adapter)
    backbone = engine.method.backbone
    texts = (backbone.tokens(c.text)[: spec.tokens] for c in read_contexts(place.file(spec.file)))
    ids = next((found for found in texts if len(found) == spec.tokens), None)
    if ids is None:
        raise ConfigError(f"{spec.file} has no text of {spec.tokens} tokens: give longer ones")
    with engine.busy(), torch.inference_mode(), Seen() as seen:
        (kv,) = engine.method.compress([ids], spec.ratio)
    made = seen.weights
    rows = rows_of(kv.slots.anchors.cpu(), len(ids), made[0].shape[0])
    found = {}
    for layer in sorted({0, len(made) // 2, len(made) - 1}):
        looked = made[layer][rows, : len(ids)]
        shares = looked / looked.sum(1, keepdim=True)
        found[str(layer)] = {
            "map": [[round(float(w), 5) for w in row] for row in shares],
            "entropy": entropy(shares),
            "own": own(shares),
        }
    return {"tokens": len(ids), "slots": len(rows), "layers": found}


def rows_of(anchors: torch.Tensor, tokens: int, seen: int) -> torch.Tensor:
    """The rows of slots among so many that were seen: the anchors, or what was appended to the tokens."""
    return torch.arange(tokens, seen) if seen > tokens else anchors


def entropy(shares: torch.Tensor) -> float:
    """Of rows (slots, tokens) that sum to 1: their mean entropy over that of looking everywhere alike."""
    return float(torch.special.entr(shares).sum(1).mean() / math.log(shares.shape[1]))


def own(shares: torch.Tensor) -> float:
    """The mean share of a row (slots, tokens) on the equal part of the text that its slot stands for."""
    slots, tokens = shares.shape
    cuts = [slot * tokens // slots for slot in range(slots + 1)]
    return sum(float(shares[i, cuts[i] : cuts[i + 1]].sum()) for i in range(slots)) / slots
