"""The retrieved-context track: contexts go into a library, each question is answered from what is found there."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sac_rag.answer.engine import placing_of
from sac_rag.compress.placing import Placing
from sac_rag.config import AUTO, AskConfig, IndexConfig
from sac_rag.evaluate.harness import Engines
from sac_rag.evaluate.jobs import Job, Planner, Variant, Work, complete, variants
from sac_rag.evaluate.prompts import ANSWER_TOKENS
from sac_rag.evaluate.readers import RETRIEVED, QuestionReader, check_readers, ratios_of
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.runs import RetrievedRun, Scored, with_macro, with_shares
from sac_rag.evaluate.sources import Found, Listen, score
from sac_rag.evaluate.tasks import check_names, grouped, load_task, set_name
from sac_rag.models.embedder import Embedder
from sac_rag.pipeline import SacRag
from sac_rag.records import Document, Hit
from sac_rag.train.data import read_contexts

MIXING = ("text_passages", "text_tokens", "text_score")
"""Settings of AskConfig that the mixed reader alone goes by."""
BEFORE = Placing(order="best-first", prior=0.0)
"""How passages stood before there was a choice."""
PUT_TOGETHER = 16
"""Contexts committed together."""
POOL_PASSAGES = 5000
"""A pool below this size makes retrieval easier than it is in use."""


def evaluate_retrieved(
    files: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    config: IndexConfig | None = None,
    ask: AskConfig | None = None,
    readers: Sequence[str] = ("memory", "text"),
    ratios: Sequence[float] | None = None,
    full_ft_adapter: str = "default",
    pool: bool = False,
    libraries: str | Path | None = None,
    limit: int | None = None,
    contexts: int | None = None,
    seed: int = 0,
    batch: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    results: Results | None = None,
    listen: Listen | None = None,
) -> list[RetrievedRun]:
    """Index all contexts of each file (the first `contexts`, if given) and answer `limit` of their questions.

    All readers get the same passages: as memory, the best as text and the others as memory (mixed), as text, or as
    text read by Full-FT; what `ask` says of fidelity and of abstaining does not count. A library a file and ratio
    (None: that of `config`); with `pool` one a ratio, of all files. libraries: a folder that keeps them, so that the
    next call does not index again. text and full-ft read the same at every ratio, so once. Groups of files, batch,
    results and rows "macro" as in `evaluate`. Raises ConfigError for a reader that
    cannot retrieve or has no memory of this method, and a ratio out of range.
    """
    config, ask = config or IndexConfig(), ask or AskConfig(max_new_tokens=ANSWER_TOKENS)
    if config.codec == AUTO:  # readers and ratios are compared as they are; what codecs lose, `sac codec` says
        config = replace(config, codec="bf16")
    ratios = ratios_of(config.method, ratios or (config.ratio,))
    check_readers(readers, RETRIEVED, config.method, ratios)
    paths, rows = grouped(files)
    check_names(paths)
    tasks = {f: load_task(f, limit=limit, seed=seed, first=contexts) for f in paths}
    pools = [paths] if pool else [[f] for f in paths]
    work = Work(config.model, limit, seed, batch, device, dtype)
    planner = Planner(work, stored=results is not None)
    same = {
        **{"contexts": contexts, "passage_tokens": config.passage_tokens, "overlap": config.overlap},
        "embedder_sha256": Embedder(config.embedder).fingerprint if results else "",
    }
    placing = placing_of(config.model, config.method, config.adapter).overridden(ask)

    def job(v: Variant, file: str) -> Job:
        searched = sorted(planner.file_sha256(f) for f in next(p for p in pools if file in p))
        more = {**same, "searched": searched, "ask": _asked(ask, v.by, placing)}
        more |= {"codec": config.codec} if v.by.compressed else {}
        return planner.job(v, file, tasks[file], RETRIEVED, more, RetrievedRun)

    def compute(missing: list[Job]) -> Iterator[tuple[Job, Scored[Any]]]:
        """A library at a time. What reads no memory has no ratio and takes the first."""
        engines = Engines(work, shared=True)
        for ratio, searched in itertools.product(ratios, pools):
            here = [j for j in missing if j.file in searched and (j.variant.ratio or ratios[0]) == ratio]
            if not here:
                continue
            with _library(searched, contexts, replace(config, ratio=ratio), libraries, device, dtype, listen) as rag:
                found: dict[str, list[list[Hit]]] = {}
                for j in here:
                    v, task = j.variant, tasks[j.file]
                    if j.file not in found:
                        found[j.file] = [rag.retrieve(q.question, ask) for q in task.in_order]
                    if v.by.compressed:
                        rag.check()
                    engine = engines.of(v) if v.by.own_adapter else rag.engine
                    yield j, score(Found(task, rag, found[j.file], ask), engine, v.by, batch, v.label, listen)

    plan = {
        v: [job(v, file) for file in paths]
        for v in variants(
            readers, (config.method,), {None: config.adapter}, full_ft_adapter, ratios, option=config.option
        )
    }
    done = complete([j for jobs in plan.values() for j in jobs], results, compute)
    runs: list[RetrievedRun] = []
    for jobs in plan.values():
        for name, part in rows.items():
            scored = [done[j] for j in jobs[part]]
            sizes = [s.run.passages for s in scored]
            recall = fmean(s.run.recall for s in scored)
            runs += with_macro(scored, name, recall=recall, passages=sizes[0] if pool else sum(sizes))
    return with_shares(runs)


@contextlib.contextmanager
def _library(
    files: Sequence[str],
    contexts: int | None,
    config: IndexConfig,
    keep: str | Path | None,
    device: str,
    dtype: str,
    listen: Listen | None,
) -> Iterator[SacRag]:
    """A library of the files' contexts, each text once: in the folder `keep`, where one is there already, or a
    temporary one."""
    texts: dict[str, str] = {}
    for file in files:
        for i, context in enumerate([c for c in read_contexts(file) if c.questions][:contexts]):
            texts.setdefault(context.text, f"{set_name(file)}/{i}")
    documents = [Document(uri, text) for text, uri in texts.items()]
    name = set_name(files[0]) if len(files) == 1 else "pool"
    kept = contextlib.nullcontext(str(keep)) if keep is not None else tempfile.TemporaryDirectory()
    with (
        kept as folder,
        SacRag.index([], Path(folder) / f"{name}-{config.ratio:g}x.lib", config, device=device, dtype=dtype) as rag,
    ):
        for i in range(0, len(documents), PUT_TOGETHER):
            rag.put(documents[i : i + PUT_TOGETHER])
            if listen:
                listen(name, f"indexing {config.ratio:g}x", min(i + PUT_TOGETHER, len(documents)), len(documents))
        yield rag


def _asked(ask: AskConfig, reader: QuestionReader, placing: Placing) -> dict[str, Any]:
    """The settings of `ask` that decide a reader's answers; how passages are read is the reader's own."""
    left_out = {"fidelity", "reader", "evidence", "abstain", "closed_book", "placing", "order", "prior", "history"}
    left_out |= {"small_talk", *(() if reader.mixes else MIXING), *(() if ask.rerank else ("rerank", "candidates"))}
    asked = {name: value for name, value in asdict(ask).items() if name not in left_out}
    asked["seed"] = ask.seed or 0  # a greedy answer has none, and runs were stored under 0
    # Order and prior are named only where they say something: runs from before there were any are still found.
    unusual = {"order": placing.order, "prior": placing.prior} if placing != BEFORE else {}
    memories = reader.compressed and ask.k > 1
    return {**asked, "placing": placing.positions if reader.compressed else "source", **(unusual if memories else {})}
