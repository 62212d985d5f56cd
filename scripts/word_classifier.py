"""Train the classifier of words behind the method and the selector `llmlingua2`, in minutes on one core.

    python scripts/word_classifier.py DIR/qa/{squad,nq,fairytaleqa,squadshifts_amazon}.train.jsonl.gz \\
        DIR/summ/scitldr.train.jsonl.gz --check DIR/qa/squad.dev.jsonl.gz --check DIR/summ/scitldr.dev.jsonl.gz \\
        --texts 3000 --epochs 3 --output sac_rag/compress/words.safetensors

A word of a text is to be kept where the questions about it, their answers or a summary of it have it: a word of four
letters and more, or with a digit or a capital, where they have it at all; any other where they have it beside the same
neighbour. Prints precision, recall and the share of words to keep, on texts of --check. The same seed and data make the
same weights.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from sac_rag.compress.adapter import write_atomic
from sac_rag.compress.words import WordClassifier, features_of, spans_of
from sac_rag.train.data import Context, read_contexts

LONGEST = 400
"""Words of a text that are looked at."""


def words_of(text: str) -> list[str]:
    return [text[a:b] for a, b in spans_of(text)]


def labels_of(words: Sequence[str], wanted: Sequence[str]) -> list[bool]:
    """Which words of a text stay, by the texts that tell what matters of it."""
    known: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for text in wanted:
        own = [w.lower() for w in words_of(text)]
        known |= set(own)
        pairs |= set(zip(own, own[1:], strict=False))
    small = [w.lower() for w in words]
    found = []
    for i, word in enumerate(words):
        telling = len(word) > 3 or any(c.isdigit() or c.isupper() for c in word)
        beside = (small[i - 1 : i + 1], small[i : i + 2])
        found.append((telling and small[i] in known) or any(tuple(pair) in pairs for pair in beside))
    return found


def examples(paths: Sequence[str], most: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(features, labels) of texts drawn from files alike."""
    for path in paths:
        contexts = [c for c in read_contexts(path) if c.questions]
        random.Random(seed).shuffle(contexts)
        for context in contexts[: most // len(paths)]:
            if words := words_of(context.text)[:LONGEST]:
                yield features_of(words), torch.tensor(labels_of(words, _wanted(context)), dtype=torch.float32)


def _wanted(context: Context) -> list[str]:
    return [text for q in context.questions for text in (q.question, *q.answers)]


def train(paths: Sequence[str], *, texts: int, epochs: int, seed: int) -> WordClassifier:
    torch.manual_seed(seed)
    classifier, drawn = WordClassifier(), list(examples(paths, texts, seed))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.01)
    steps, draw = 0, random.Random(seed)
    for _ in range(epochs):
        draw.shuffle(drawn)
        for at in range(0, len(drawn), 8):
            losses = [F.binary_cross_entropy_with_logits(classifier(x), y) for x, y in drawn[at : at + 8]]
            loss = torch.stack(losses).mean()
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * max(0.05, 1 - steps / (epochs * len(drawn) / 8))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
    return classifier.eval()


def measured(classifier: WordClassifier, paths: Sequence[str], texts: int) -> dict[str, float]:
    """Precision of the words that it keeps where it keeps as many as there are to keep, and the share of these."""
    hits = kept = words = 0
    with torch.inference_mode():
        for x, y in examples(paths, texts, 1):
            count = int(y.sum())
            hits += int(y[classifier(x).argsort(descending=True)[:count]].sum())
            kept, words = kept + count, words + len(y)
    return {"precision": hits / max(1, kept), "chance": kept / max(1, words), "words": words}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="questions or summaries, as sac train reads them")
    parser.add_argument("--check", action="append", required=True, help="a file that is only measured on")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from safetensors.torch import save

    classifier = train(args.files, texts=args.texts, epochs=args.epochs, seed=args.seed)
    write_atomic(args.output, save({n: p.detach().half().contiguous() for n, p in classifier.state_dict().items()}))
    for name, value in measured(classifier, args.check, 300).items():
        print(f"{name}\t{value:.4g}")


if __name__ == "__main__":
    main()
