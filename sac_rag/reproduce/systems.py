"""What is compared: the paper's systems and ablations, each a method with options and the stages that train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sac_rag.compress.methods import METHODS
from sac_rag.compress.selectors import SELECTORS
from sac_rag.errors import ConfigError
from sac_rag.train.objectives import OBJECTIVES


@dataclass(frozen=True)
class System:
    """A method as one experiment has it. `objectives` are those of its stages before finetuning."""

    name: str
    called: str
    """In tables."""
    method: str
    objectives: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    """What a reader of the page must know of it."""
    reader: str = "memory"
    """Of `sac eval`; those that read no memory have no ratio."""
    like: str = ""
    """Another system whose adapter it has: for readers that take nothing but its prompt."""

    @property
    def trains(self) -> bool:
        return bool(METHODS.load(self.method).trains)

    def lacks(self) -> str | None:
        """What is not there of it yet; None where all is."""
        if self.method not in METHODS:
            return f"method {self.method!r} is not registered"
        selector = self.options.get("selector")
        if selector and selector not in SELECTORS:
            return f"selector {selector!r} is not registered"
        missing = next((name for name in self.objectives if name not in OBJECTIVES), None)
        return f"objective {missing!r} is not registered" if missing else None


WORDS = "a classifier trained here, not its own weights; what it keeps is read by Full-FT"
_ENDED = {"lm_token": True, "header": "{bos}"}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "sac": {**_ENDED, "selector": "stride", "anchor_rows": True},
    **dict.fromkeys(("icae", "500x", "epl"), _ENDED),
}
"""Options of methods as the published code has them; those of a system go before them."""
PUBLISHED_HEADER = "{bos}### Context:\n"
"""What its encoder reads ahead of a context when it is finetuned on questions."""
PUBLISHED_LAYOUT = {"prefix": "", "before": "\n### Question:\n", "after": "\n### Answer:\n"}
RIVALS = ("ae+lm",)
"""How the paper pretrains the systems that append memory tokens."""

_ALL = (
    System("full-ft", "Full-FT", "full-ft", note="LoRA that reads the whole text: the ceiling", reader="full-ft"),
    System("text", "frozen model on the text", "sac", ("lm",), reader="text", like="sac"),
    System("closed", "frozen model without the text", "sac", ("lm",), reader="closed", like="sac"),
    System("sac", "SAC", "sac", ("lm",)),
    System("icae", "ICAE", "icae", RIVALS),
    System("500x", "500xCompressor", "500x", RIVALS, note="the form of the paper: AE and LM, then questions"),
    System("epl", "EPL", "epl", RIVALS, note="slots counted by length"),
    System("beacon", "Activation Beacon", "beacon", ("lm",), note="our interpretation"),
    System("dast", "DAST", "dast", ("lm",), note="our interpretation"),
    System("llmlingua2", "LLMLingua-2", "full-ft", note=WORDS, reader="words", like="full-ft"),
    System("kept-words", "LLMLingua-2, frozen reader", "llmlingua2", note="no training"),
    System("full-kv", "all keys and values", "full-kv", note="no training; ratio 1"),
    System("kvzip", "KVzip", "kvzip", note="no training"),
    System("attention-matching", "Attention Matching", "attention-matching", note="no training"),
    System("sac-no-mask", "SAC without bidirectional mask", "sac", ("lm",), {"causal": True}),
    System("sac-no-anchor", "SAC without anchor embedding", "sac", ("lm",), {"mark_anchors": False}),
    System("sac-random", "SAC, random anchors", "sac", ("lm",), {"selector": "random"}),
    System("sac-llmlingua2", "SAC, LLMLingua-2 anchors", "sac", ("lm",), {"selector": "llmlingua2"}),
    System("sac-salient", "SAC, salient anchors", "sac", ("salience", "lm"), {"selector": "salient"}),
    System("sac-ae", "SAC, pretrained by AE", "sac", ("ae",)),
    System("sac-ae+lm", "SAC, pretrained by AE and LM", "sac", ("ae+lm",)),
)
SYSTEMS: Mapping[str, System] = {system.name: system for system in _ALL}


def system_of(name: str) -> System:
    """A system by name; raises ConfigError naming those there are."""
    if name not in SYSTEMS:
        raise ConfigError(f"unknown system {name!r}; use {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
