"""A reader adapter at a lower rank: the best approximation of each layer's update (Eckart, Young, 1936).

    python scripts/reader_rank.py ADAPTER RANK OUTPUT

ADAPTER: a folder with a reader. OUTPUT gets the same adapter with the lower one. Prints what of the squared updates it
keeps, on average over the layers.
"""

import sys
from pathlib import Path
from statistics import fmean

import torch

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.backbone import LoraSpec
from sac_rag.compress.reader_adapter import ReaderAdapter
from sac_rag.models.loading import load_base
from sac_rag.models.sources import resolve_base


def main(folder: Path, rank: int, output: Path) -> None:
    card = Card.read(folder)
    model, tokenizer = load_base(resolve_base(card.base), torch.device("cpu"), torch.bfloat16)
    method, card = adapter.load(folder, model, tokenizer)
    full = adapter.load_reader(folder, method, card)
    method.reader = lower = ReaderAdapter(method.backbone, LoraSpec(rank, 2.0 * rank, full.spec.targets))
    scale = full.spec.alpha / full.spec.rank / 2.0  # of the product, as the lower one's factor is 2
    before, after, kept = full.parameters(), lower.parameters(), []
    with torch.no_grad():
        for name, a in before.items():
            if "lora_A" not in name:
                continue
            other = name.replace("lora_A", "lora_B")
            # The product's own decomposition from those of its factors: they are thin.
            qb, rb = torch.linalg.qr(before[other])
            qa, ra = torch.linalg.qr(a.T)
            u, s, v = torch.linalg.svd(scale * rb @ ra.T)
            root = s[:rank].sqrt()
            after[name].copy_(root[:, None] * (v[:rank] @ qa.T))
            after[other].copy_((qb @ u[:, :rank]) * root)
            kept.append(float(s[:rank].square().sum() / s.square().sum()))
    adapter.save(method, card, output)
    share = f"{fmean(kept):.1%} of the squared updates"
    print(f"{output / 'reader.safetensors'}: rank {rank} of {full.spec.rank} keeps {share}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
