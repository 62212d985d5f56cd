"""Perplexity behind memory, of going on with a text (LM) and of saying it again (AE), and BLEU of the latter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Sampling, decode
from sac_rag.reproduce.bleu import bleu4
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Perplexity
from sac_rag.train.batch import Batch
from sac_rag.train.data import SHORTEST, TokenisedContext, read_contexts
from sac_rag.train.objectives import OBJECTIVES, configured


def compute(
    spec: Perplexity, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Mean loss (nats a token, texts alike) with each text's own, and BLEU-4 (0..100) where it is asked for."""
    engine = place.engine(spec.adapter.method, spec.adapter.model, spec.adapter)
    method = engine.method
    texts = []
    for context in read_contexts(place.file(spec.file)):
        ids = method.backbone.tokens(context.text)[: spec.text_tokens]
        if len(ids) >= SHORTEST:
            texts.append(TokenisedContext(ids, ()))
        if len(texts) == spec.texts:
            break
    config = configured(spec.objective, ratios=(spec.ratio,), ratio_weights=(1.0,))
    objective = OBJECTIVES.load(spec.objective)(config, method)
    losses: list[float] = []
    said: list[str] = []
    meant: list[str] = []
    with engine.busy(), torch.no_grad():
        for number, text in enumerate(texts):
            batch = objective.batch([text], number, random.Random(number))
            losses.append(objective.loss(batch, 0)[1]["loss"])
            if spec.bleu:
                for given, wanted in again(batch, engine):
                    said.append(given)
                    meant.append(wanted)
            listen(number + 1, len(texts))
    mean = fmean(losses)
    result: dict[str, Any] = {"texts": len(texts), "loss": mean, "perplexity": math.exp(mean), "losses": losses}
    return {**result, "bleu4": bleu4(said, meant)} if spec.bleu else result


def again(batch: Batch, engine: Any) -> list[tuple[str, str]]:
    """(what is said greedily, what stands there) of each piece that a batch asks for, as long as the piece."""
    method, reader = engine.method, engine.reader
    memories = batch.memories(method, batch.written(method))
    rows = [(memory, row) for memory, asked in zip(memories, batch.readings, strict=True) for row in asked]
    prompts = [Prompt((memory, row.ids[: row.first])) for memory, row in rows]
    longest = max(len(row.ids) - row.first for _, row in rows)
    done = reader.generate(prompts, Sampling(max_new_tokens=longest))
    tokenizer = method.backbone.tokenizer
    return [
        (decode(tokenizer, d.token_ids[: len(row.ids) - row.first]), decode(tokenizer, row.ids[row.first :]))
        for d, (_, row) in zip(done, rows, strict=True)
    ]
