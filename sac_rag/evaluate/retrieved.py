"""The retrieved-context track: contexts go into a library, each question is answered from what is found there."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sac_rag.answer import gate
from sac_rag.answer.assemble import text_prompt
from sac_rag.answer.engine import Engine, placing_of
from sac_rag.answer.reader import Sampling
from sac_rag.compress.placing import Placing
from sac_rag.config import AskConfig, IndexConfig
from sac_rag.evaluate.cost import measured
from sac_rag.evaluate.harness import STORED, Listen, check_readers
from sac_rag.evaluate.metrics import contains
from sac_rag.evaluate.prompts import ANSWER_TOKENS, answers_of
from sac_rag.evaluate.results import Origin, Results, file_sha256
from sac_rag.evaluate.runs import Prediction, Run, Scored, summary, with_macro, with_retention
from sac_rag.evaluate.tasks import Task, check_names, grouped, load_task, set_name
from sac_rag.models.embedder import Embedder
from sac_rag.models.loading import choose_device, choose_dtype
from sac_rag.pipeline import SacRag
from sac_rag.records import Document, Hit
from sac_rag.train.data import Question, read_contexts

READERS = ("memory", "mixed", "text", "full-ft")
MIXING = ("text_passages", "text_tokens", "text_score")
"""Settings of AskConfig that the mixed reader alone goes by."""
BEFORE = Placing(order="best-first", prior=0.0)
"""How passages stood before there was a choice."""
PUT_TOGETHER = 16
"""Contexts committed together."""
POOL_PASSAGES = 5000
"""A pool below this size makes retrieval easier than it is in use."""


@dataclass(frozen=True, kw_only=True)
class RetrievedRun(Run):
    """Mean scores (0..1) over retrieved passages. recall: questions with an accepted answer in what was found."""

    passage_tokens: int
    k: int
    passages: int
    """Passages searched."""
    recall: float


@dataclass(frozen=True)
class _Reading:
    """Who answers, and how: engine of the memories for memory, mixed and text, of Full-FT for full-ft."""

    reader: str
    engine: Engine
    ask: AskConfig
    batch: int
    listen: Listen | None


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
    ratios = [float(r) for r in ratios or (config.ratio,)]
    check_readers(readers, READERS, config.method, ratios)
    paths, parts = grouped(files)
    check_names(paths)
    tasks = [load_task(f, limit=limit, seed=seed, first=contexts) for f in paths]
    number = str(choose_dtype(dtype, choose_device(device)))
    hashes = [file_sha256(f) if results else "" for f in paths]
    found_by = Embedder(config.embedder).fingerprint if results else ""
    placing = placing_of(config.model, config.method, config.adapter).overridden(ask)
    together = [list(range(len(paths)))] if pool else [[i] for i in range(len(paths))]
    done: dict[tuple[str, float | None], dict[int, Scored[RetrievedRun]]] = {}

    def settings_of(reader: str, ratio: float | None, index: int, group: Sequence[int]) -> dict[str, Any]:
        """What determines the scores of one run."""
        if results is None:
            return {}
        used, weights = ("full-ft", full_ft_adapter) if reader == "full-ft" else (config.method, config.adapter)
        return {
            **{"track": "retrieved", "set": tasks[index].name, "file_sha256": hashes[index], "limit": limit},
            **{"seed": seed, "reader": reader, "ratio": ratio, "dtype": number, "contexts": contexts},
            **{"searched": sorted(hashes[i] for i in group), "passage_tokens": config.passage_tokens},
            **{"overlap": config.overlap, "embedder_sha256": found_by, "ask": _asked(ask, reader, placing)},
            **({"codec": config.codec} if reader in STORED else {}),
            **Origin.of(config.model, used, weights).determines("memory" if reader in STORED else reader),
        }

    for at, ratio in enumerate(ratios):
        wanted = [(r, ratio if r in STORED else None) for r in readers if r in STORED or not at]
        for group in together:
            missing: list[tuple[int, str, dict[str, Any]]] = []
            for reader, own in wanted:
                for i in group:
                    settings = settings_of(reader, own, i, group)
                    if results and (stored := results.find(RetrievedRun, settings)):
                        done.setdefault((reader, own), {})[i] = stored
                    else:
                        missing.append((i, reader, settings))
            if not missing:
                continue
            own_config = dataclasses.replace(config, ratio=ratio)
            with _library([paths[i] for i in group], contexts, own_config, libraries, device, dtype, listen) as rag:
                found: dict[int, list[list[Hit]]] = {}
                for i, reader, settings in missing:
                    if i not in found:
                        found[i] = [rag.retrieve(q.question, ask) for q in _questions(tasks[i])]
                    engine = rag.engine
                    if reader == "full-ft":
                        engine = Engine.shared(rag.config.model, reader, full_ft_adapter, device=device, dtype=dtype)
                    scored = _answer(rag, tasks[i], found[i], _Reading(reader, engine, ask, batch, listen))
                    if results:
                        results.keep(scored, settings)
                    done.setdefault((reader, scored.run.ratio), {})[i] = scored
    runs: list[RetrievedRun] = []
    for reader in readers:
        for own_ratio in ratios if reader in STORED else (None,):
            for name, part in parts.items():
                rows = [done[reader, own_ratio][i] for i in range(len(paths))[part]]
                sizes = [s.run.passages for s in rows]
                recall = fmean(s.run.recall for s in rows)
                runs += with_macro(rows, name, recall=recall, passages=sizes[0] if pool else sum(sizes))
    return with_retention(runs)


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


def _questions(task: Task) -> list[Question]:
    return [q for _, questions in task.contexts for q in questions]


def _answer(rag: SacRag, task: Task, found: Sequence[Sequence[Hit]], how: _Reading) -> Scored[RetrievedRun]:
    """Score one reader on what was found for each question of a task; memories are loaded a batch at a time."""
    questions, engine = _questions(task), how.engine
    ask = dataclasses.replace(how.ask, fidelity=how.reader if how.reader in STORED else "text")
    sampling = Sampling(ask.max_new_tokens, ask.temperature, ask.top_p, ask.seed)
    memory, stats = how.reader in STORED, rag.stats()
    predictions: list[Prediction] = []
    cut = 0
    if memory:
        gate.check(rag.engine, rag.library)
    with engine.busy(), measured(engine.device) as cost:
        for start in range(0, len(questions), how.batch):
            part = slice(start, start + how.batch)
            assembled = [
                rag.assemble(hits, q.question, ask)
                if memory
                else text_prompt(engine.method, hits, q.question, reserve=ask.max_new_tokens)
                for q, hits in zip(questions[part], found[part], strict=True)
            ]
            cut += sum(len(a.hits) < len(hits) for a, hits in zip(assembled, found[part], strict=True))
            answers = answers_of(engine.reader, [a.prompt for a in assembled], how.batch, sampling)
            for q, hits, (text, logprob) in zip(questions[part], found[part], answers, strict=True):
                held = any(contains(h.passage.text, q.answers) for h in hits)
                predictions.append(Prediction.of(q, text, logprob, held))
            if how.listen:
                how.listen(task.name, _label(rag, how.reader), len(predictions), len(questions))
    run = RetrievedRun(
        reader=how.reader,
        method=None if how.reader == "text" else engine.method_name,
        ratio=rag.config.ratio if memory else None,
        peak_mib=cost.peak_mib,
        cut=cut,
        bytes_per_source_token=stats.kv_bytes / stats.source_tokens if memory else None,
        passage_tokens=rag.config.passage_tokens,
        k=ask.k,
        passages=stats.passages,
        recall=fmean(bool(p.found) for p in predictions),
        **summary(predictions, task.name, cost.seconds),
    )
    return Scored(run, tuple(predictions))


def _asked(ask: AskConfig, reader: str, placing: Placing) -> dict[str, Any]:
    """The settings of `ask` that decide a reader's answers; how passages are read is the reader's own."""
    left_out = {
        "fidelity",
        "abstain",
        "closed_book",
        "placing",
        "order",
        "prior",
        *(() if reader == "mixed" else MIXING),
    }
    asked = {name: value for name, value in dataclasses.asdict(ask).items() if name not in left_out}
    memories = reader in STORED and ask.k > 1
    # Order and prior are named only where they say something: runs from before there were any are still found.
    unusual = {"order": placing.order, "prior": placing.prior} if memories and placing != BEFORE else {}
    asked["seed"] = ask.seed or 0  # a greedy answer has none, and runs were stored under 0
    return {**asked, "placing": placing.positions if reader in STORED else "source", **unusual}


def _label(rag: SacRag, reader: str) -> str:
    at = f"{rag.config.ratio:g}x"
    return {"memory": f"{rag.config.method} {at}", "mixed": f"mixed {at}"}.get(reader, reader)
