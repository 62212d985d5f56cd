"""What ratio, codec and number of passages make of a user's own documents: quality, bytes and seconds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev

from sac_rag.config import AskConfig, IndexConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate.metrics import contains, token_f1
from sac_rag.evaluate.speed import TEXT, Listen, Row
from sac_rag.models.adapters import usual_codec
from sac_rag.pipeline import SacRag, recode
from sac_rag.records import Answer, Passage
from sac_rag.train.cloze import cloze_questions

FEWEST = 4
"""Questions below which nothing can be said."""


def made_questions(passages: Sequence[Passage], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(question, answer) pairs, one a passage at the most: sentences from which a name, number or phrase was taken out.

    Raises ConfigError where there are too few: only English text gives any.
    """
    rng = random.Random(seed)
    found: list[tuple[str, str]] = []
    for passage in rng.sample(passages, len(passages)):
        if len(found) == count:
            break
        found += cloze_questions(passage.text, 1, rng)
    if len(found) < FEWEST:
        raise ConfigError(
            f"{len(passages)} passages gave {len(found)} questions, {FEWEST} are needed: give more text, in English"
        )
    return found


def choices(
    paths: Sequence[str | Path],
    folder: str | Path,
    config: IndexConfig,
    *,
    ratios: Sequence[float],
    ks: Sequence[int],
    codecs: Sequence[str] = (),
    questions: int = 40,
    seed: int = 0,
    tokens: int = 20,
    device: str = "auto",
    dtype: str = "auto",
    listen: Listen | None = None,
) -> list[Row]:
    """A row for each ratio, codec and number of passages, and for text: F1 of the answers to questions made out of the
    documents, and their standard error; how often the answer stood in what was found; bytes a source token on disk;
    medians of the seconds to the first token and to the last.

    folder: libraries are made in it, one for each ratio and codec. codecs: none are the adapter's own and
    bf16. Raises ConfigError where the documents give too few questions, and for a codec that the adapter has no basis
    for.
    """
    rows: list[Row] = []
    asked: list[tuple[str, str]] = []
    where = {"device": device, "dtype": dtype}
    for ratio in ratios:
        made = Path(folder) / f"{ratio:g}x.lib"
        if listen:
            listen("indexing", f"{ratio:g}x", 0, 1)
        with SacRag.index(paths, made, replace(config, ratio=ratio, codec="bf16"), **where) as rag:
            asked = asked or made_questions(rag.library.passages(), questions, seed)
            codecs = codecs or tuple(dict.fromkeys((usual_codec(rag.engine.adapter_path), "bf16")))
            if not rows:
                rows += [_row(rag, TEXT, "", k, asked, tokens, listen) for k in ks]
        for codec in codecs:
            coded = made
            if codec != "bf16":
                coded = Path(shutil.copytree(made, Path(folder) / f"{ratio:g}x-{codec}.lib"))
                recode(coded, codec)
            with SacRag.open(coded, **where) as rag:
                rows += [_row(rag, f"{ratio:g}x", codec, k, asked, tokens, listen) for k in ks]
    return rows


def _row(
    rag: SacRag,
    way: str,
    codec: str,
    k: int,
    asked: Sequence[tuple[str, str]],
    tokens: int,
    listen: Listen | None,
) -> Row:
    ask, answers = AskConfig(k=k, max_new_tokens=tokens), list[Answer]()
    rag.ask(asked[0][0], ask, text=way == TEXT)  # the first one loads what the others find loaded
    for done, (question, _) in enumerate(asked, 1):
        answers.append(rag.ask(question, ask, text=way == TEXT))
        if listen:
            listen(f"{way} {codec}".strip(), f"{k} passages", done, len(asked))
    pairs = [(a, answer) for a, (_, answer) in zip(answers, asked, strict=True)]
    scores = [100 * token_f1(a.text, answer) for a, answer in pairs]
    stats = rag.stats()
    return {
        "way": way,
        "codec": codec,
        "passages": k,
        "questions": len(asked),
        "f1": fmean(scores),
        "f1_error": stdev(scores) / len(scores) ** 0.5,
        "found": 100 * fmean(any(contains(h.passage.text, [answer]) for h in a.sources) for a, answer in pairs),
        "bytes_per_source_token": "" if way == TEXT else stats.kv_bytes / stats.source_tokens,
        "library_bytes": "" if way == TEXT else stats.total_bytes,
        "first_token_s": median(a.timings.first_token_s for a in answers),
        "answer_s": median(a.timings.total_s for a in answers),
    }
