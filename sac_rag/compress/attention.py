"""Attention of packed sequences: each attends to itself and to what stands in front of it, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from sac_rag.compress.anchor_kv import Memory

TILE = 8
"""CPU kernels sum the last queries of an attention otherwise when their count is no multiple of it."""
STRIDE = 64
"""Queries and keys of an attention that is trained through come in multiples of it."""


class Front(NamedTuple):
    """What one layer attends in front of a text: k and v (n, kv_heads, d), the runs of its heads from the left,
    (n, kv_heads) where a shorter run has no slot (None: nowhere), and (kv_heads, n) what is added to the scores
    (None: nothing)."""

    keys: torch.Tensor
    values: torch.Tensor
    hidden: torch.Tensor | None
    bias: torch.Tensor | None = None


def fronts_of(memory: Memory) -> list[Front | None]:
    """A memory layer by layer; None where a layer keeps nothing."""
    fronts: list[Front | None] = []
    biases = memory.layer_biases()
    for layer, (runs, counts) in enumerate(zip(memory.layer_runs(), memory.counts, strict=True)):
        most = int(counts.max())
        if not most:
            fronts.append(None)
            continue
        keys, values = (pad_sequence([run[i] for run in runs]) for i in (0, 1))
        hidden = None if bool((counts == most).all()) else (torch.arange(most)[:, None] >= counts).to(keys.device)
        bias = None if biases is None else pad_sequence(biases[layer], batch_first=True).to(keys.dtype)
        fronts.append(Front(keys, values, hidden, bias))
    return fronts


def front_at(fronts: Sequence[list[Front | None] | None], memory: int | None, layer: int) -> Front | None:
    found = None if memory is None else fronts[memory]
    return found[layer] if found else None


def attend_packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    front: Front | None = None,
    future_bias: float | None = None,
    own: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one packed sequence: q (n, heads, d), k and v (n, kv_heads, d); `front` is attended by all.

    future_bias: added to the scores of later tokens, where these are seen. own: (n, n), True where a token sees
    another, in place of `causal`.
    """
    n, mask, bias = q.shape[0], None, None
    if front is not None:
        k, v = torch.cat((front.keys, k)), torch.cat((front.values, v))
    m, heads, groups = k.shape[0], q.shape[1], k.shape[1]
    if own is not None:
        mask = F.pad(own.to(q.device), (m - n, 0), value=True)
    elif n > 1 and causal:
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    elif future_bias:
        bias = torch.full((n, m), future_bias, dtype=q.dtype, device=q.device).triu(1 + m - n)
    if front is not None and front.hidden is not None:
        seen = F.pad(~front.hidden.T, (0, n), value=True)[:, None]
        mask = seen.expand(-1, n, -1) if mask is None else seen & mask
    prior = None if front is None or front.bias is None else F.pad(front.bias, (0, n))[:, None]
    if q.device.type == "cpu" and (q.requires_grad or k.requires_grad):
        added = None if bias is None else bias[None]
        if mask is not None:
            hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
            added = hidden if hidden.ndim == 3 else hidden[None]
        if prior is not None:
            added = prior.to(q.dtype).expand(-1, n, -1) if added is None else added + prior
        return _attend_by_products(q, k, v, added)
    if bias is not None:
        bias = bias.repeat(heads // groups, 1)
    if mask is not None:
        mask = spread(mask, heads // groups, q.dtype)
        mask = mask if bias is None else mask + F.pad(bias, (0, 0, 0, mask.shape[-2] - bias.shape[0]))
    else:
        mask = bias
    if prior is not None:
        rows = heads // groups * n
        mask = prior.expand(-1, rows + -rows % TILE, -1) if mask is None else mask + prior
    return attend(q, k.transpose(0, 1), v.transpose(0, 1), mask=mask)


def _attend_by_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
    """The same by two products of matrices, where gradients are wanted of a CPU: the backward of its fused kernel is
    four times slower at these lengths. added: (1 or kv_heads, n, m), to the scores.

    Queries and keys are filled up to a multiple of `STRIDE`: a product of another shape is another kernel, and
    compiling them took a third of a training step.
    """
    (n, heads, dim), (m, groups, _) = q.shape, k.shape
    repeat, more, later = heads // groups, -n % STRIDE, -m % STRIDE
    q = F.pad(q * dim**-0.5, (0, 0, 0, 0, 0, more))
    q = q.view(n + more, groups, repeat, dim).permute(1, 2, 0, 3).reshape(groups, -1, dim)
    k, v = (F.pad(t, (0, 0, 0, 0, 0, later)).transpose(0, 1) for t in (k, v))
    if added is None and later:
        added = q.new_zeros(1, 1, m)
    if added is None:
        scores = torch.bmm(q, k.transpose(1, 2))
    else:
        added = F.pad(added, (0, later), value=-torch.inf)
        if added.shape[1] > 1:
            added = F.pad(added, (0, 0, 0, more)).repeat(1, repeat, 1)
        scores = torch.baddbmm(added.expand(groups, q.shape[1], m + later), q, k.transpose(1, 2))
    out = torch.bmm(scores.softmax(-1), v)
    return out.view(groups, repeat, n + more, dim)[:, :, :n].permute(2, 0, 1, 3).reshape(n, -1)


def spread(mask: torch.Tensor, repeat: int, dtype: torch.dtype) -> torch.Tensor:
    """A mask (..., n, m), True where a query sees a key, as `attend` adds it: 0 or -inf, (..., repeat * n, m), and
    rows that hide nothing up to a multiple of `TILE`."""
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    rows = repeat * mask.shape[-2]
    return F.pad(torch.cat([added] * repeat, dim=-2), (0, 0, 0, -rows % TILE))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """Fused attention of one sequence: q (n, heads, d), k and v (kv_heads, m, d) -> (n, heads * d).

    mask: of `spread`, for all heads or (kv_heads, rows, m); without it a query sees all keys, or with `causal` (n <= m)
    those up to its own place.
    """
    queries = Queries(q, len(k))
    queries.attend(slice(0, len(k)), k, v, mask=mask, causal=causal)
    return queries.attended()


class Queries:
    """Queries of one sequence, (n, heads, d), that attend the keys of a few heads at a time, one after the other.

    The query heads that share a key head become more of its queries: a long memory is not copied.
    """

    def __init__(self, q: torch.Tensor, groups: int) -> None:
        """groups: key heads."""
        n, heads, dim = q.shape
        self._n, self._repeat = n, heads // groups
        self._q = q.view(n, groups, self._repeat, dim).permute(1, 2, 0, 3)
        self._rows: torch.Tensor | None = None
        self._out: list[torch.Tensor] = []

    def attend(
        self, groups: slice, k: torch.Tensor, v: torch.Tensor, *, mask: torch.Tensor | None = None, causal: bool = False
    ) -> None:
        """Attend k and v, (key heads of `groups`, m, d); mask and causal as of `attend`."""
        if causal:
            q = F.pad(self._q[groups].flatten(0, 1), (0, 0, 0, k.shape[1] - self._n))
            k, v = k.repeat_interleave(self._repeat, dim=0), v.repeat_interleave(self._repeat, dim=0)
            out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0, :, : self._n]
        else:
            rows = self._repeat * self._n if mask is None else mask.shape[-2]
            if self._rows is None or self._rows.shape[1] != rows:
                queries = self._q.reshape(len(self._q), -1, self._q.shape[3])
                self._rows = F.pad(queries, (0, 0, 0, rows - queries.shape[1]))
            if mask is not None and mask.ndim == 3:
                mask = mask[None]
            out = F.scaled_dot_product_attention(self._rows[groups][None], k[None], v[None], attn_mask=mask)[0]
            out = out[:, : self._repeat * self._n]
        self._out.append(out.reshape(len(k) // (self._repeat if causal else 1), self._repeat, self._n, -1))

    def attended(self) -> torch.Tensor:
        """What all heads attended, (n, heads * d)."""
        out = self._out[0] if len(self._out) == 1 else torch.cat(self._out)
        return out.permute(2, 0, 1, 3).reshape(self._n, -1)
