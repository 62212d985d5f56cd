"""Which anchors of its passages an answer attended: the heat that a page shows on the sources.

Read after the answer is whole, by a pass of its own behind the same memories (`sac_rag.compress.watched`): the answer
is made as without it, and whoever does not ask for it waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sac_rag.answer.assemble import Assembled
from sac_rag.answer.service import Service
from sac_rag.compress.anchor_kv import AnchorKV, Memory, run_by_run
from sac_rag.compress.methods.base import Method
from sac_rag.compress.placing import Placing
from sac_rag.compress.watched import attended
from sac_rag.records import Heat
from sac_rag.text.passages import offsets_of


def heat_of(
    service: Service,
    method: Method,
    assembled: Assembled,
    memories: Sequence[AnchorKV],
    placing: Placing,
    answer: Sequence[int],
) -> Heat | None:
    """What the tokens attended out of which the answer's tokens came, all of them, in the mean; None where the prompt
    holds no memory of a passage.

    memories: of the hits that are read as memory, best first, as the prompt was made of them. answer: token ids.
    """
    if not memories:
        return None
    parts = assembled.prompt.after(0)
    start = next(p for p in parts if isinstance(p, Memory)).start
    looking = max(1, len(answer))
    found = attended(service.backbone, [*parts, list(answer[: looking - 1])], looking, use_lora=service.reader.use_lora)
    (share,) = found.memories
    front = method.ahead(start=start)
    order, _ = placing.arranged(len(memories))
    placed = [*front, *(memories[i] for i in order)]
    runs = placed[0].counts.numel()
    # Slots of all that was placed, in the order in which the prompt's memory holds them: of which, and which token.
    at = run_by_run([m.counts for m in placed])
    of = torch.cat([torch.full_like(m.positions, n) for n, m in enumerate(placed)]).cpu()[at]
    token = torch.cat([m.positions for m in placed]).cpu()[at]
    share = share.double().cpu()
    offsets = offsets_of(method.backbone.tokenizer)
    heats: list[tuple[tuple[int, int, float], ...]] = [()] * len(assembled.hits)
    for place, index in enumerate(order):
        hit = assembled.texts + index
        mine = of == len(front) + place
        spans = offsets(assembled.hits[hit].passage.text)
        anchors, which, holders = token[mine].unique(return_inverse=True, return_counts=True)
        mean = torch.zeros(len(anchors), dtype=torch.float64).index_add_(0, which, share[mine]) / holders
        heats[hit] = tuple((*spans[a], float(w)) for a, w in zip(anchors.tolist(), mean, strict=True))
    passages = float(share[of >= len(front)].sum()) / runs
    return Heat(tuple(heats), passages, float(share[of < len(front)].sum()) / runs, found.tokens)
