"""What chosen tokens of a prompt attend: a reading of its own, beside the fused one that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.backbone import Backbone


class Attended(NamedTuple):
    """Shares of attention, in the mean over the tokens that look and the query heads that share a key head.

    memories: of each memory of the prompt, shape (slots,), run by run as its keys. tokens: of the tokens of the prompt,
    in the mean over layers and heads too. All runs and the tokens of one layer and head sum to 1.
    """

    memories: list[torch.Tensor]
    tokens: float


@torch.inference_mode()
def attended(
    backbone: Backbone, parts: Sequence[Memory | Sequence[int]], looking: int, *, use_lora: bool = False
) -> Attended:
    """Read the parts of a prompt, and say what its last `looking` tokens attend.

    Scores and their softmax are fp32 and stand in memory for one head at a time: (tokens, slots and tokens).
    """
    memories: list[Memory] = []
    ahead: list[int] = []
    ids: list[int] = []
    positions: list[torch.Tensor] = []
    position = 0
    for part in parts:
        if isinstance(part, Memory):
            memories.append(part)
            ahead.append(len(ids))
            position = part.next_position
        else:
            ids += part
            positions.append(torch.arange(position, position + len(part)))
            position += len(part)
    device, count = backbone.device, len(ids)
    runs, biases = [m.layer_runs() for m in memories], [m.layer_biases() for m in memories]
    later = torch.ones(count, count, dtype=torch.bool, device=device).triu(1)
    before = [(torch.arange(count, device=device) < n)[:, None] for n in ahead]
    shares: list[list[torch.Tensor]] = [[] for _ in memories]
    own: list[torch.Tensor] = []

    def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        repeat, out = q.shape[1] // k.shape[1], []
        for head in range(k.shape[1]):
            kept = [of[layer][head] for of in runs]
            keys = torch.cat([*(keys for keys, _ in kept), k[:, head]])
            values = torch.cat([*(values for _, values in kept), v[:, head]])
            hidden = torch.cat([*(b.expand(-1, len(run)) for b, (run, _) in zip(before, kept, strict=True)), later], 1)
            queries = q[:, head * repeat : (head + 1) * repeat].transpose(0, 1).float()
            scores = queries @ keys.float().T * keys.shape[1] ** -0.5
            for of, at in zip(biases, _starts([len(run) for run, _ in kept]), strict=True):
                if of is not None:
                    scores[:, :, at : at + len(of[layer][head])] += of[layer][head].to(scores)
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            looked = weights[:, -looking:].mean((0, 1)).split([*(len(run) for run, _ in kept), count])
            for found, share in zip(shares, looked, strict=False):
                found.append(share)
            own.append(looked[-1].sum())
            out.append((weights.to(values.dtype) @ values).transpose(0, 1))
        return torch.cat(out, 1).reshape(count, -1)

    last = torch.tensor([count - 1])
    backbone.walk(torch.tensor(ids), torch.cat(positions), mix, scored=last, use_lora=use_lora)
    return Attended([torch.cat(found) for found in shares], float(torch.stack(own).mean()))


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:at]) for at in range(len(sizes))]
