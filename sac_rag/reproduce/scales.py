"""How large a reproduction is: model, steps, ratios and data of `--scale`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import ConfigError
from sac_rag.evaluate.tasks import IN_DOMAIN, OUT_OF_DOMAIN
from sac_rag.reproduce.specs import Pairs, pairs

PRETRAIN, FINETUNE, SALIENCE = "pretrain", "finetune", "salience"
"""Kinds of stages that a scale has settings for."""

PAPER_SHAPE: Pairs = pairs(
    {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
        **{"num_attention_heads": 32, "num_key_value_heads": 8},
    }
)
"""Llama-3.2-1B."""


@dataclass(frozen=True)
class Scale:
    """Everything that differs between a rehearsal and the paper. Files are relative to the folder of data."""

    name: str
    model: str
    """Base model; "" is the random one that the run makes itself."""
    ratios: tuple[float, ...]
    settings: Mapping[str, Mapping[str, Any]]
    """Kind of a stage -> settings of `sac train`, steps among them."""
    lora: Mapping[str, Any]
    """Fields of LoraSpec."""
    texts: tuple[str, ...]
    """PATH=WEIGHT to pretrain on."""
    questions: tuple[str, ...]
    """PATH=WEIGHT to finetune on."""
    summaries: tuple[str, ...]
    """PATH=WEIGHT to finetune on for summaries."""
    held_out: str
    """Texts that perplexity is measured on."""
    sets: Mapping[str, tuple[str, ...]]
    """Groups of files of questions: in-domain, out-of-domain, long and summaries."""
    limit: int | None = None
    """Questions of a set; None is all."""
    long_tokens: int = 4096
    """A long context is cut to so many tokens."""
    summary_tokens: int = 128
    """Longest summary that is generated."""
    held_out_texts: int = 64
    """Texts that perplexity is measured on."""
    text_tokens: int = 1020
    """Tokens of such a text: one half is compressed, the other scored."""
    sizes: tuple[tuple[str, str, float], ...] = ()
    """(model of the paper, what stands in for it, share of its layers that are kept)."""
    counted_shape: Pairs = PAPER_SHAPE
    """Of the model whose operations are counted beside the formula."""
    latency_tokens: int = 510
    """Tokens of the sub-contexts whose compression is timed."""
    points: int = 300
    """Slots, and tokens, that are projected to two dimensions."""
    map_tokens: int = 256
    """Tokens of the text whose attention maps are drawn."""
    batch: int = 32
    """Questions decoded together."""
    rounds: int = 7
    """Pairs of compressions that are timed."""
    seed: int = 0
    faithful: bool = False
    """With options, prompt and LoRA of the published code (`systems.PUBLISHED`)."""

    def as_published(self) -> Scale:
        """The same with LoRA on queries and values, started as the published code has it, of rank 128 but for a random
        model; methods and prompt follow suit."""
        size = {"rank": 128, "alpha": 256.0} if self.model else self.lora
        lora = {**size, "targets": ("q_proj", "v_proj"), "start": "rank"}
        return dataclasses.replace(self, lora=lora, faithful=True)

    def with_steps(self, steps: int) -> Scale:
        """So many steps of finetuning, and of all else in proportion."""
        if steps < 1:
            raise ConfigError(f"--steps is {steps}; use 1 or more")
        factor = steps / self.settings[FINETUNE]["steps"]
        scaled = {
            kind: {**found, "steps": max(1, round(found["steps"] * factor))} for kind, found in self.settings.items()
        }
        return dataclasses.replace(self, settings=scaled)


_TINY_STAGE = {"step_tokens": 256, "accumulate": 1, "warmup": 1, "max_context": 128, "first_context": 128}
_SMALL_STAGE = {"step_tokens": 1000, "accumulate": 1, "warmup": 20}

TINY = Scale(
    name="tiny",
    model="",
    ratios=(5.0, 15.0),
    settings={
        PRETRAIN: {**_TINY_STAGE, "steps": 2, "cosine_every": 1},
        FINETUNE: {**_TINY_STAGE, "steps": 3, "max_context": 256, "first_context": 256, "distractor_share": 0.0},
        SALIENCE: {"steps": 2, "step_tokens": 128, "max_context": 256, "first_context": 256},
    },
    lora={"rank": 4, "alpha": 8.0},
    texts=("lm/train-00.jsonl.gz",),
    questions=("qa/squad.train.jsonl.gz",),
    summaries=("summ/scitldr.train.jsonl.gz",),
    held_out="lm/valid.jsonl.gz",
    sets={
        "in-domain": ("qa/squad.dev.jsonl.gz",),
        "out-of-domain": ("qa/duorc.test.jsonl.gz",),
        "long": ("qa/musique.test.jsonl.gz",),
        "summaries": ("summ/qmsum.test.jsonl.gz",),
    },
    limit=4,
    long_tokens=600,
    summary_tokens=8,
    held_out_texts=3,
    text_tokens=128,
    sizes=(("Llama-3.2-3B", "", 1.0), ("Llama-3.1-8B", "", 0.67)),
    counted_shape=pairs(
        {
            **{"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4, "head_dim": 64},
            **{"num_attention_heads": 8, "num_key_value_heads": 2},
        }
    ),
    latency_tokens=60,
    points=24,
    map_tokens=64,
    rounds=2,
)
SMALL = Scale(
    name="small",
    model=DEFAULT_MODEL,
    ratios=(5.0, 15.0, 51.0),
    settings={
        PRETRAIN: {
            **{**_SMALL_STAGE, "steps": 100, "learning_rate": 6e-4, "max_context": 1020, "first_context": 1020},
            "cosine_every": 5,
        },
        FINETUNE: {**_SMALL_STAGE, "steps": 300, "first_context": 288, "distractor_share": 0.0},
        SALIENCE: {"steps": 600, "step_tokens": 3000, "learning_rate": 1e-3, "max_context": 510, "first_context": 510},
    },
    lora={},
    texts=("lm/train-00.jsonl.gz",),
    questions=(
        *("qa/squad.train.jsonl.gz=0.5", "qa/nq.train.jsonl.gz=0.2"),
        *("qa/squadshifts_amazon.train.jsonl.gz=0.1", "qa/fairytaleqa.train.jsonl.gz=0.2"),
    ),
    summaries=("summ/scitldr.train.jsonl.gz",),
    held_out="lm/valid.jsonl.gz",
    sets={
        "in-domain": ("qa/squad.dev.jsonl.gz", "qa/nq.test.jsonl.gz", "qa/fairytaleqa.test.jsonl.gz"),
        "out-of-domain": ("qa/duorc.test.jsonl.gz", "qa/drop_contrast.test.jsonl.gz", "qa/policyqa.test.jsonl.gz"),
        "long": ("qa/hotpotqa.test.jsonl.gz", "qa/musique.test.jsonl.gz", "qa/leval_multidoc_qa.test.jsonl.gz"),
        "summaries": ("summ/qmsum.test.jsonl.gz", "summ/govreport_leval.test.jsonl.gz"),
    },
    limit=100,
    sizes=(("Llama-3.2-3B", DEFAULT_MODEL, 1.0), ("Llama-3.1-8B", DEFAULT_MODEL, 0.67)),
)
PAPER = Scale(
    name="paper",
    model="meta-llama/Llama-3.2-1B",
    ratios=(5.0, 15.0, 51.0),
    # Section 4.1: batches of 16, 20,000 steps a stage, 300 of warm-up, then a constant rate.
    settings={
        kind: {
            **{"steps": 20_000, "learning_rate": rate, "warmup": 300, "decay_from": 1.0, "weight_decay": 0.1},
            **{"clip": 2.0, "step_tokens": 4 * longest, "accumulate": 4},
            **{"max_context": longest, "first_context": longest, **more},
        }
        for kind, rate, longest, more in (
            (PRETRAIN, 1e-4, 2040, {}),
            (FINETUNE, 5e-5, 1020, {"distractor_share": 0.0, "recall_weight": 0.0}),
            (SALIENCE, 1e-3, 510, {"steps": 600, "accumulate": 1, "decay_from": 0.6}),
        )
    },
    lora={"rank": 128, "alpha": 256.0, "targets": ("q_proj", "v_proj")},
    texts=("lm/train-*.jsonl.gz=1",),
    questions=("qa/*.train.jsonl.gz=1",),
    summaries=("summ/*.train.jsonl.gz=1",),
    held_out="lm/valid.jsonl.gz",
    sets={
        "in-domain": tuple(f"qa/{name}" for name in IN_DOMAIN),
        "out-of-domain": tuple(f"qa/{name}" for name in OUT_OF_DOMAIN),
        "long": tuple(f"qa/leval_{n}.test.jsonl.gz" for n in ("multidoc_qa", "natural_question", "scientific_qa")),
        "summaries": ("summ/qmsum.test.jsonl.gz", "summ/govreport_leval.test.jsonl.gz", "summ/squality.test.jsonl.gz"),
    },
    long_tokens=32_000,
    summary_tokens=512,
    held_out_texts=1000,
    text_tokens=1020,
    sizes=(("Llama-3.2-3B", "meta-llama/Llama-3.2-3B", 1.0), ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B", 1.0)),
    rounds=30,
)
SCALES = {scale.name: scale for scale in (TINY, SMALL, PAPER)}


def scale_of(name: str) -> Scale:
    """A scale by name; raises ConfigError naming those there are."""
    if name not in SCALES:
        raise ConfigError(f"unknown scale {name!r}; use {', '.join(SCALES)}")
    return SCALES[name]
