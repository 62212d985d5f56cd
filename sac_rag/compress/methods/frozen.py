"""Methods that train nothing: the frozen model reads a passage as text, and its own keys and values are the material.

A passage is read behind the prompt's prefix, which holds the attention sink, as it stands in a prompt; so the memory of
one passage, all of it kept, is read exactly as its text would be. Passages do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sac_rag.compress.anchor_kv import AnchorKV, Memory
from sac_rag.compress.attention import attend_packed, fronts_of
from sac_rag.compress.methods.base import Chunk, PerChunk
from sac_rag.compress.placing import Placing, compose
from sac_rag.errors import MemoryInvalid

REPEAT = "\n\nRepeat the previous context exactly."
"""What asks for the text again (KVzip, arXiv 2505.23416, section 3.2)."""

Look = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""(layer, queries (tokens, heads, head_dim), keys (slots + tokens, kv_heads, head_dim), values alike), all rotated as
they are attended: the slots of prefix and passage, then the tokens that ask for it and say it again."""


class Frozen(PerChunk):
    """Subclasses say in `write_chunks` what becomes of the keys and values that `prefilled` gives."""

    trains = False
    adapts = "nothing"
    causal = True

    def identity(self) -> dict[str, Any]:
        """Passages are read behind the prefix, so that memory depends on it, too."""
        return {**super().identity(), "prefix": self.layout.prefix}

    def prefilled(self, chunks: Sequence[Chunk]) -> list[AnchorKV]:
        """Keys and values of all tokens of each chunk, as the frozen model reads it behind the prefix."""
        if not all(chunks):
            raise MemoryInvalid("an empty passage cannot be compressed; give at least one token")
        front = self._front()
        start = front.next_position if front else 0
        written = self.backbone.encode(
            [torch.tensor(c, dtype=torch.int64) for c in chunks],
            [self.backbone.even(torch.arange(len(c))) for c in chunks],
            fronts=[front] * len(chunks),
            positions=[start + torch.arange(len(c)) for c in chunks],
            causal=True,
            use_lora=False,
        )
        layers, heads, dim = self.backbone.kv_shape
        shape = (layers, heads, -1, dim)
        return [
            AnchorKV.even(kv.keys.view(shape), kv.values.view(shape), kv.positions[: len(c)] - start, len(c))
            for kv, c in zip(written, chunks, strict=True)
        ]

    def again(self, chunk: Chunk, whole: AnchorKV, look: Look) -> None:
        """Let the frozen model say a chunk again out of its memory, and show `look` what each layer attends.

        whole: of `prefilled`. Queries are those of the request and of the chunk; nothing of a later question is needed.
        """
        backbone, front = self.backbone, self._front()
        prefix = self.plain_prefix(self.layout)
        memory = self._placed([whole] if front is None or prefix is None else [prefix, whole])
        asked = [*backbone.tokens(REPEAT), *backbone.template(self.layout.after)]
        ids = torch.tensor([*asked, *chunk], dtype=torch.int64)
        fronts = fronts_of(memory)

        def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            ahead = fronts[layer]
            assert ahead is not None, "every head keeps every token"
            look(layer, q, torch.cat((ahead.keys, k)), torch.cat((ahead.values, v)))
            return attend_packed(q, k, v, causal=True, front=ahead)

        places = memory.next_position + torch.arange(len(ids))
        backbone.walk(ids, places, mix, scored=torch.tensor([len(ids) - 1], device=backbone.device))

    @property
    def ahead_tokens(self) -> int:
        """Slots of the prefix, in front of those of a passage."""
        prefix = self.plain_prefix(self.layout)
        return prefix.source_len if prefix else 0

    def _front(self) -> Memory | None:
        prefix = self.plain_prefix(self.layout)
        return self._placed([prefix]) if prefix else None

    def _placed(self, parts: Sequence[AnchorKV]) -> Memory:
        backbone = self.backbone
        scaling, dtype = backbone.rope_scaling, backbone.dtype
        return compose(parts, backbone.inv_freq, placing=Placing(), scaling=scaling, dtype=dtype)


def weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Attention weights (kv_heads, queries of a group, slots) in fp32, of `Look`'s queries and keys.

    The queries of a group are those of its query heads, one head after the other. The last keys are the tokens' own:
    each token sees those up to itself.
    """
    n, heads, dim = q.shape
    groups = k.shape[1]
    grouped = q.view(n, groups, heads // groups, dim).permute(1, 2, 0, 3).float()
    scores = torch.matmul(grouped, k.permute(1, 2, 0).float()[:, None]) * dim**-0.5
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    scores[..., -n:].masked_fill_(later, -torch.inf)
    return scores.softmax(-1).flatten(1, 2)


def kept(whole: AnchorKV, keep: torch.Tensor) -> AnchorKV:
    """Of a memory whose heads keep every token the slots where `keep`, (layers, kv_heads, source_len) bool, is True."""
    at = keep.flatten().nonzero().squeeze(1)
    positions = at % whole.source_len
    return AnchorKV(whole.keys[at], whole.values[at], positions, keep.sum(-1).cpu(), whole.source_len)


def best(scores: torch.Tensor, count: int, *, even: bool) -> torch.Tensor:
    """Mask of the best of `scores` (layers, kv_heads, tokens), `count` a head: on average over all heads, or of each if
    `even`. Of equal ones the first."""
    rows = scores.flatten(0, 1) if even else scores.flatten()[None]
    most = count if even else count * scores.shape[0] * scores.shape[1]
    order = rows.argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True).view(scores.shape)
