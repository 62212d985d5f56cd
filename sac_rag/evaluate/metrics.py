"""Answer metrics: SQuAD's normalised EM and F1 (max over answers), and the pair that the SAC paper reports."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Score:
    """Scores of one answer, each in 0..1."""

    f1: float
    em: float
    rouge1: float
    em_raw: float


def score(prediction: str, answers: Sequence[str]) -> Score:
    """All four metrics of a prediction; `answers` are the accepted ones, the first being the reference."""
    return Score(
        f1=max(token_f1(prediction, a) for a in answers),
        em=float(any(normalise(prediction) == normalise(a) for a in answers)),
        rouge1=rouge1(prediction, answers[0]),
        em_raw=float(prediction == answers[0]),
    )


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks (SQuAD 1.1 evaluation script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bag of normalised words (SQuAD 1.1)."""
    got, want = normalise(prediction).split(), normalise(answer).split()
    if not got or not want:
        return float(got == want)
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want))


def contains(prediction: str, answers: Sequence[str]) -> bool:
    """Whether an accepted answer stands in the prediction, as whole normalised words."""
    return any(f" {normalise(a)} " in f" {normalise(prediction)} " for a in answers)


def rouge1(prediction: str, answer: str) -> float:
    """ROUGE-1 F over the *set* of case-sensitive words, full stops cutting sentences, as in `rouge` 1.0.1."""
    got, want = _unigrams(prediction), _unigrams(answer)
    if not got or not want:
        return 0.0
    common = len(got & want)
    precision, recall = common / len(got), common / len(want)
    return 2 * precision * recall / (precision + recall + 1e-8)


def _unigrams(text: str) -> set[str]:
    return set(text.replace(".", " ").split())
