"""Activation Beacon (Zhang et al., arXiv 2401.03462) as we interpret it, at SAC's windows.

Published: a beacon token after every r tokens of a window of 1024 to 2048; windows one after the other, later ones
see earlier beacons; r divides the window, and a context below one window is not compressed at all. Neither suits the
ratios 15 and 51, nor passages. Ours:

* windows are chunks of at most 510 tokens, and shorter ones are compressed as well;
* a window of L tokens has K = L / r beacons, counted as SAC counts anchors; the i-th stands behind token
  floor((i + 1) L / K);
* the sink that the published code keeps for Llama (1 token) is the prompt's prefix, which stands in front of memories
  anyway: windows are read behind it, as the base model reads it. Where a prompt has no prefix, it is the model's BOS.

As published: beacons see all that stands before them, tokens and beacons alike (full coverage), and so do tokens; the
projections of queries, keys and values that beacons have for themselves begin as the model's, the beacon's embedding as
that of EOS, and these alone are trained; keys are kept before RoPE and stand at compact positions while later windows
are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone, Project
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Chunk, Method
from sac_rag.compress.placing import Placing
from sac_rag.compress.selectors import anchor_count
from sac_rag.errors import MemoryInvalid

PACE = 0.1
"""What is learned of a projection is its difference from the model's, so many times the parameter. Adam moves each
number by about the learning rate, however large it is: whole projections take a tenth of what LoRA takes."""


class Beacon(Method):
    """Contexts are written window by window, the first windows of all of a batch together."""

    name = "beacon"
    made_for = Placing(positions="packed")
    adapts = "nothing"
    causal = True

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        super().__init__(backbone, layout)
        end = backbone.tokenizer.eos_token_id
        self.embedding = nn.Parameter(backbone.embed(torch.tensor([end]))[0].float())
        shapes = backbone.projections()
        self.differences = {name: nn.Parameter(torch.zeros(shape, device=backbone.device)) for name, shape in shapes}
        self._sink: AnchorKV | None = None

    @property
    def prefix(self) -> AnchorKV | None:
        """The sink, where the prompt begins with nothing: the model's BOS."""
        if self.layout.prefix:
            return None
        if self._sink is None:
            with torch.inference_mode(False), torch.no_grad():
                one = self.backbone.even(torch.arange(1))
                (self._sink,) = self.backbone.encode([torch.tensor(self.front_ids)], [one], causal=True)
        return self._sink

    @property
    def front_ids(self) -> list[int]:
        """What the model reads in front of every window: the prefix, or its BOS."""
        tokenizer = self.backbone.tokenizer
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return self.backbone.template(self.layout.prefix) or [first]

    def identity(self) -> dict[str, Any]:
        """Windows are read behind the prefix, so that memory depends on it, too."""
        return {**super().identity(), "prefix": self.layout.prefix}

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"embedding": self.embedding, **{f"beacon.{n}": p for n, p in self.differences.items()}}

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        if not all(all(chunks) for chunks in contexts):
            raise MemoryInvalid("an empty passage cannot be compressed; give at least one token")
        ends = [self.ends(chunks, ratio) for chunks, ratio in zip(contexts, ratios, strict=True)]
        made: list[list[AnchorKV]] = [[] for _ in contexts]
        for n in range(max(map(len, contexts), default=0)):
            which = [i for i, chunks in enumerate(contexts) if n < len(chunks)]
            windows = [(contexts[i][n], ends[i][n], made[i]) for i in which]
            for i, kv in zip(which, self._windows(windows), strict=True):
                made[i].append(kv)
        return made

    def ends(self, chunks: Sequence[Chunk], ratio: float) -> list[torch.Tensor]:
        """Of each window how many of its tokens stand before each of its beacons, ascending."""
        return [behind_parts(len(chunk), anchor_count(len(chunk), ratio)) for chunk in chunks]

    def _windows(self, windows: Sequence[tuple[Chunk, torch.Tensor, Sequence[AnchorKV]]]) -> list[AnchorKV]:
        """Memories of one window of each of several contexts: (tokens, ends, what was made of those before)."""
        inputs, picks, fronts, positions = [], [], [], []
        for chunk, ends, before in windows:
            beacons = ends + torch.arange(len(ends))
            places = torch.ones(len(chunk) + len(ends), dtype=torch.bool)
            places[beacons] = False
            tokens = self.backbone.embed(torch.tensor(chunk))
            row = tokens.new_empty(len(places), self.backbone.width)
            row = row.index_copy(0, places.nonzero()[:, 0].to(tokens.device), tokens)
            own = self.embedding.to(tokens.dtype).expand(len(ends), -1)
            inputs.append(row.index_copy(0, beacons.to(tokens.device), own))
            front = self.memory(before, placing=self.made_for)
            picks.append(self.backbone.even(beacons))
            fronts.append(front)
            positions.append(front.next_position + torch.arange(len(places)))
        made = self.backbone.encode(
            inputs, picks, fronts=fronts, positions=positions, causal=True, project=self._project(inputs, picks)
        )
        return [
            replace(kv, positions=self.backbone.even(ends - 1).positions.to(kv.keys.device), source_len=len(chunk))
            for kv, (chunk, ends, _) in zip(made, windows, strict=True)
        ]

    def _project(self, inputs: Sequence[torch.Tensor], picks: Sequence[Any]) -> Project:
        """Beacons go through projections of their own, of a packed batch of windows."""
        starts = [0, *torch.tensor([len(row) for row in inputs]).cumsum(0).tolist()]
        is_beacon = torch.zeros(starts[-1], dtype=torch.bool)
        for pick, start in zip(picks, starts, strict=False):
            is_beacon[pick.anchors + start] = True
        is_beacon = is_beacon.to(self.backbone.device)

        def project(layer: int, name: str, x: torch.Tensor, out: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            at = is_beacon[rows].nonzero()[:, 0]
            weight = self.differences[f"{layer}.{name}.weight"].to(x.dtype)
            bias = self.differences.get(f"{layer}.{name}.bias")
            more = F.linear(x[at], weight, None if bias is None else bias.to(x.dtype))
            return out.index_add(0, at, more, alpha=PACE)

        return project


def behind_parts(length: int, count: int) -> torch.Tensor:
    """Tokens before the end of each of `count` equal parts of a window, (count,), the last one `length`."""
    return (torch.arange(count) + 1) * length // count
