"""Which words of a text matter: a small classifier of words, and what it says of a base model's tokens.

It knows words by hashes of their letters, so it serves any tokenizer, and two convolutions see four words on either
side. `scripts/word_classifier.py` trains it in minutes; `words.safetensors` lies beside this file.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS = Path(__file__).with_name("words.safetensors")
_WORD = re.compile(r"\w+|[^\w\s]")


class WordClassifier(nn.Module):
    """Log-odds that each word of a text is kept."""

    BUCKETS, WIDTH, HIDDEN, SPAN = 8192, 32, 64, 5

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(self.BUCKETS, self.WIDTH)
        self.near = nn.Conv1d(self.WIDTH, self.HIDDEN, self.SPAN, padding=self.SPAN // 2)
        self.far = nn.Conv1d(self.HIDDEN, self.HIDDEN, self.SPAN, padding=self.SPAN // 2)
        self.out = nn.Linear(self.HIDDEN, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features: of `features_of`, (words, 4) -> (words,) log-odds."""
        x = self.letters(features).sum(1).T[None]
        x = F.gelu(self.near(x))
        x = x + F.gelu(self.far(x))
        return self.out(x[0].T).squeeze(1)


def spans_of(text: str) -> list[tuple[int, int]]:
    """Words and single marks of a text, as spans of its characters."""
    return [found.span() for found in _WORD.finditer(text)]


def features_of(words: Sequence[str]) -> torch.Tensor:
    """Hashes of each word, its beginning, its end and its shape (capitals, digits), (words, 4) int64."""
    return torch.tensor([[zlib.crc32(part.encode()) % WordClassifier.BUCKETS for part in _parts(w)] for w in words])


def _parts(word: str) -> tuple[str, str, str, str]:
    small = word.lower()
    shape = "".join("0" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in word[:6])
    return f"word {small}", f"begins {small[:3]}", f"ends {small[-3:]}", f"shape {shape}"


@cache
def shipped() -> WordClassifier:
    """The classifier that lies beside this file."""
    from safetensors.torch import load_file

    classifier = WordClassifier()
    classifier.load_state_dict({name: t.float() for name, t in load_file(WEIGHTS).items()})
    return classifier.eval().requires_grad_(False)


@cache
def shipped_sha256() -> str:
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


def scores_of(tokenizer: Any, token_ids: Sequence[int], classifier: WordClassifier | None = None) -> torch.Tensor:
    """Log-odds (tokens,) fp32 on the CPU that a token's word (`words_at`) is kept; of a blank, less than any word's."""
    text = text_of(tokenizer, token_ids)
    spans = spans_of(text)
    if not spans:
        return torch.zeros(len(token_ids))
    with torch.inference_mode():
        odds = (classifier or shipped())(features_of([text[a:b] for a, b in spans]))
    found = torch.full((len(token_ids),), float(odds.min()) - 1)
    for i, word in enumerate(words_at(tokenizer, token_ids, spans)):
        if word is not None:
            found[i] = odds[word]
    return found


def words_at(tokenizer: Any, token_ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """Of each token which of the ascending spans it ends in, or else the last that it touches; None for no one."""
    found: list[int | None] = []
    word, start = 0, 0
    for i in range(len(token_ids)):
        end = len(text_of(tokenizer, token_ids[: i + 1]))
        while word + 1 < len(spans) and spans[word + 1][0] < end:
            word += 1
        begun = start - (end == start)  # the last bytes of a letter that the token before began
        touches = bool(spans) and spans[word][0] < end and spans[word][1] > begun
        found.append(word if touches else None)
        start = end
    return found


def most(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best tokens, ascending, int64; of equal ones, as those of one word are, the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text of token ids as it stands, special tokens and blanks included."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
