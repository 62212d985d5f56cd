"""What the published code of SAC and its rivals adds around a context: words ahead of it, and a token that ends it.

Both are options, off by default. They are there for `--recipe paper-...`, which repeats the paper's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.base import Chunk, Method
from sac_rag.compress.rope import rotate
from sac_rag.config import MAX_PASSAGE_TOKENS
from sac_rag.errors import ConfigError


class Announced(Method):
    """A method whose encoder may read a header in front of a context, and whose memory may end with `[LM]`.

    The header counts as tokens of the context. `[LM]` is an embedding that the decoder reads behind the memory; what
    is kept of it is one slot more in each head. A context is then written as a whole: chunks are not batched apart.
    """

    header_ids: Sequence[int] = ()
    lm: nn.Parameter | None = None

    def announce(self, header: str, lm_token: bool) -> None:
        """header: a template, "{bos}" for the model's BOS; "" for none. Raises ConfigError where it fills a chunk."""
        if header:
            first, *others = header.split("{bos}")
            bos, template = self.backbone.tokenizer.bos_token_id, self.backbone.template
            begin = [] if bos is None else [bos]
            self.header_ids = [*template(first), *(i for part in others for i in (*begin, *template(part)))]
        if len(self.header_ids) >= MAX_PASSAGE_TOKENS:
            raise ConfigError(f"header has {len(self.header_ids)} tokens; a chunk has {MAX_PASSAGE_TOKENS} with it")
        if lm_token:
            self.lm = nn.Parameter(like_embeddings(self, 1)[0])
        if header or lm_token:
            self.apart = False

    def pieces(self, token_ids: Chunk) -> list[Chunk]:
        """Sub-contexts of at most 510 tokens, the header in the first one counted."""
        first = MAX_PASSAGE_TOKENS - len(self.header_ids)
        return [token_ids[:first], *super().pieces(token_ids[first:])]

    def headed(self, contexts: Sequence[Sequence[Chunk]]) -> Sequence[Sequence[Chunk]]:
        """Contexts with the header in front of their first chunks."""
        if not self.header_ids:
            return contexts
        return [[[*self.header_ids, *chunks[0]], *chunks[1:]] for chunks in contexts]

    def closed(self, made: list[list[AnchorKV]], *, behind: bool) -> list[list[AnchorKV]]:
        """Memories of contexts with the slots of `[LM]`, which the frozen decoder reads behind each of them.

        behind: at the next position, as one more token; else at the last token's own place, |C| from 1 (published
        code): its slot is the first of the first chunk, whose tokens count from 1, its key turned ahead by |C|.
        """
        if self.lm is None:
            return made
        if not behind:
            made = [[_later(parts[0]), *parts[1:]] for parts in made]
        fronts = [self.memory(parts, placing=self.made_for) for parts in made]
        read = self.backbone.encode(
            [self.lm[None]] * len(made),
            [self.backbone.even(torch.arange(1))] * len(made),
            fronts=fronts,
            positions=[torch.tensor([front.next_position - (not behind)]) for front in fronts],
            causal=True,
            use_lora=False,
        )
        out = []
        for parts, slot in zip(made, read, strict=True):
            if behind:
                last = replace(parts[-1], source_len=parts[-1].source_len + 1)
                out.append([*parts[:-1], _with(last, slot.keys, slot.values, parts[-1].source_len)])
            else:
                far = torch.full_like(slot.positions, sum(kv.source_len for kv in parts) - 1)
                keys = rotate(slot.keys, far, self.backbone.inv_freq)
                out.append([_with(parts[0], keys, slot.values, 0), *parts[1:]])
        return out


def like_embeddings(method: Method, count: int) -> torch.Tensor:
    """Draws (count, width) of N(mean, std) of the embedding matrix, fp32, the same in every process."""
    backbone = method.backbone
    table = backbone.decoder.get_input_embeddings().weight
    mean = table.mean(dtype=torch.float32)
    square = (torch.linalg.vector_norm(table, dtype=torch.float32) / table.numel() ** 0.5).square()
    start = torch.randn(count, backbone.width, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    return start * (square - mean.square()).sqrt() + mean


def _later(kv: AnchorKV) -> AnchorKV:
    """A memory whose tokens count from 1."""
    return replace(kv, positions=kv.positions + 1, source_len=kv.source_len + 1)


def _with(kv: AnchorKV, keys: torch.Tensor, values: torch.Tensor, position: int) -> AnchorKV:
    """A memory with one slot more in each run, at a position before or behind all others; keys, values: run by run."""
    sizes = kv.counts.flatten().tolist()
    place = kv.positions.new_tensor([position])

    def joined(old: torch.Tensor, new: Sequence[torch.Tensor]) -> torch.Tensor:
        runs = zip(old.split(sizes), new, strict=True)
        return torch.cat([part for run, one in runs for part in ((one, run) if position == 0 else (run, one))])

    places = joined(kv.positions, [place] * len(sizes))
    return AnchorKV(
        joined(kv.keys, keys.split(1)), joined(kv.values, values.split(1)), places, kv.counts + 1, kv.source_len
    )
