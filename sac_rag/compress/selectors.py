"""Which tokens of a passage become its anchors."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sac_rag.compress.backbone import Backbone
from sac_rag.compress.words import most, scores_of
from sac_rag.registry import Registry

SELECTORS = Registry(
    "selector",
    {
        "uniform": "sac_rag.compress.selectors:Uniform",
        "stride": "sac_rag.compress.selectors:Stride",
        "random": "sac_rag.compress.selectors:Random",
        "llmlingua2": "sac_rag.compress.selectors:KeptWords",
        "salient": "sac_rag.compress.selectors:Salient",
    },
)


class Selector(nn.Module, ABC):
    """A way to choose anchors, made for a backbone. What it learns goes with the adapter."""

    learned: ClassVar[bool] = False
    """Whether `--objective salience` fits it, by its `scores`."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()

    def scores(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Log-odds (tokens,) that a question asks for a token, fp32, differentiable in what is learned."""
        raise NotImplementedError(f"{type(self).__name__} scores no tokens")

    @abstractmethod
    def forward(self, token_ids: Sequence[int], count: int) -> torch.Tensor:
        """`count` ascending positions, int64 on the CPU: by the passage alone, so that indexing repeats."""

    def each(self, token_ids: Sequence[int], counts: Iterable[int]) -> dict[int, torch.Tensor]:
        """The positions for each of several counts."""
        return {count: self(token_ids, count) for count in counts}

    def at_ratio(self, token_ids: Sequence[int], counts: Iterable[int], ratio: float) -> dict[int, torch.Tensor]:
        """As `each`, for a selector whose places depend on the ratio that the counts follow from."""
        return self.each(token_ids, counts)


class Uniform(Selector):
    """The middle token of each of `count` equal chunks (SAC, section 3.2)."""

    def forward(self, token_ids: Sequence[int], count: int) -> torch.Tensor:
        return uniform(len(token_ids), count)


class Stride(Selector):
    """Every r-th token from token (r - 1) / 2 on (SAC's published code): at 510 tokens the middles of equal chunks, in
    shorter passages beside them."""

    def forward(self, token_ids: Sequence[int], count: int) -> torch.Tensor:
        return uniform(len(token_ids), count)

    def at_ratio(self, token_ids: Sequence[int], counts: Iterable[int], ratio: float) -> dict[int, torch.Tensor]:
        length = len(token_ids)
        return {n: stride(length, ratio) if n == anchor_count(length, ratio) else uniform(length, n) for n in counts}


class Random(Selector):
    """Distinct tokens drawn at random (SAC, table 4), seeded by the passage itself."""

    def forward(self, token_ids: Sequence[int], count: int) -> torch.Tensor:
        raw = b"".join(int(t).to_bytes(4, "little") for t in token_ids)
        seed = int.from_bytes(hashlib.sha256(raw).digest()[:7], "little")
        order = torch.randperm(len(token_ids), generator=torch.Generator().manual_seed(seed))
        return order[:count].sort().values


class KeptWords(Selector):
    """The tokens of the words that a compressor of words would keep (SAC, table 4: LLMLingua-2), by the classifier that
    ships (`compress.words`)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self._tokenizer = [backbone.tokenizer]  # in a list: it is no part of the adapter

    def forward(self, token_ids: Sequence[int], count: int) -> torch.Tensor:
        return self.each(token_ids, [count])[count]

    def each(self, token_ids: Sequence[int], counts: Iterable[int]) -> dict[int, torch.Tensor]:
        scores = scores_of(self._tokenizer[0], token_ids)
        return {count: most(scores, count) for count in counts}


class Salient(Selector):
    """The most salient token of each of `count` chunks that are salient alike. Ours, not the paper's.

    An anchor remembers its own token best and its neighbours less. So anchors stand on what is asked for: names,
    numbers, content words, as a small perceptron over the embeddings of five tokens learns them from questions and
    their answers (`--objective salience`). Dense stretches get more anchors than thin ones, and none goes without:
    every token counts `FLOOR`. Before it is fitted, all tokens are alike, and it is nearly uniform.
    """

    learned = True
    WINDOW = 2
    """Tokens seen on either side."""
    HIDDEN = 64
    FLOOR = 0.03
    """Added to each token's probability of being asked for: about half of what a token has on average."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        table = backbone.decoder.get_input_embeddings()
        self._embed = [table]  # in a list: it is no part of the adapter
        place = backbone.device
        self.window = nn.Linear((2 * self.WINDOW + 1) * backbone.width, self.HIDDEN, device=place)
        self.out = nn.Linear(self.HIDDEN, 1, device=place)
        seeded = torch.Generator().manual_seed(0)  # as LoRA: processes that train together begin alike
        with torch.no_grad():
            start = torch.randn(self.window.weight.shape, generator=seeded) / self.window.in_features**0.5
            self.window.weight.copy_(start)
        nn.init.zeros_(self.window.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.token = nn.Parameter(torch.zeros(table.num_embeddings, device=place))

    def scores(self, token_ids: Sequence[int]) -> torch.Tensor:
        ids = torch.as_tensor(token_ids, dtype=torch.int64, device=self.token.device)
        with torch.no_grad():
            x = self._embed[0](ids).float()
            x = F.pad(F.rms_norm(x, x.shape[-1:]), (0, 0, self.WINDOW, self.WINDOW))
            x = x.unfold(0, 2 * self.WINDOW + 1, 1).transpose(1, 2).flatten(1)
        return self.out(F.gelu(self.window(x))).squeeze(-1) + self.token[ids]

    def forward(self, token_ids: Sequence[int], count: int) -> torch.Tensor:
        return self.each(token_ids, [count])[count]

    def each(self, token_ids: Sequence[int], counts: Iterable[int]) -> dict[int, torch.Tensor]:
        with torch.no_grad():
            scores = self.scores(token_ids).double().cpu()
        weights = (scores.sigmoid() + self.FLOOR).numpy()
        return {count: heaviest(scores.numpy(), weights, count) for count in counts}


def anchor_count(length: int, ratio: float) -> int:
    """Anchors of a passage: length / ratio to the nearest integer (halves up), at least 1, at most `length`.

    The paper writes floor (section 3.2); its published code rounds. At 510 tokens both give 102, 34 and 10
    for 5x, 15x and 51x.
    """
    return min(length, max(1, math.floor(length / ratio + 0.5)))


def uniform(length: int, count: int) -> torch.Tensor:
    """The middle token of each of `count` equal chunks: floor((2i + 1) L / 2|S|)."""
    i = torch.arange(count, dtype=torch.int64)
    return (2 * i + 1) * length // (2 * count)


def stride(length: int, ratio: float) -> torch.Tensor:
    """floor((r - 1) / 2 + i r), r apart, as many as `anchor_count` says; in a passage that ends before the first one,
    its last token."""
    i = torch.arange(anchor_count(length, ratio), dtype=torch.float64)
    return ((ratio - 1) / 2 + i * ratio).floor().long().clamp(max=length - 1)


def heaviest(scores: np.ndarray, weights: np.ndarray, count: int) -> torch.Tensor:
    """The token with the highest score in each of `count` chunks of equal weight; ascending positions, int64.

    scores, weights: (tokens,), weights above 0; count: 0 to tokens. Of equal scores the one nearest to the middle of
    its chunk. A token that outweighs chunks takes their place, and the best of the others fill up the number.
    """
    if count in (0, len(scores)):
        return torch.arange(count)
    middle = (np.cumsum(weights) - weights / 2) / weights.sum() * count
    chunk = np.minimum(middle.astype(np.int64), count - 1)
    order = np.lexsort((np.abs(middle - chunk - 0.5), -scores, chunk))
    first = np.ones(len(order), dtype=bool)
    first[1:] = chunk[order][1:] != chunk[order][:-1]
    kept, rest = order[first], order[~first]
    best = rest[np.argsort(-scores[rest], kind="stable")][: count - len(kept)]
    return torch.from_numpy(np.sort(np.concatenate((kept, best))).astype(np.int64))
